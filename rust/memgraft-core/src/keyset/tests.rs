use super::*;
use crate::stop::Stop;

fn set(keys: &[(&[u32], u64)]) -> Result<KeySet> {
    let tokens: Vec<u32> = keys.iter().flat_map(|(k, _)| k.iter().copied()).collect();
    let mut offsets = vec![0u64];
    for (k, _) in keys {
        offsets.push(offsets.last().unwrap() + u64_of(k.len()));
    }
    let counts: Vec<u64> = keys.iter().map(|&(_, c)| c).collect();
    let arrays = Arrays { tokens: &tokens, offsets: &offsets, counts: &counts, documents: None };
    KeySet::from_arrays(arrays, 100, &[99], "{}".into())
}

#[test]
fn rows_run_by_count_then_by_tuple() {
    let keys = set(&[(&[5, 7, 9], 3), (&[5, 8], 3), (&[5, 7], 3), (&[1], 1), (&[2, 2], 40), (&[5], 3)]).unwrap();
    let found: Vec<&[u32]> = keys.iter().collect();
    let want: Vec<&[u32]> = vec![&[2, 2], &[5], &[5, 7], &[5, 7, 9], &[5, 8], &[1]];
    assert_eq!(found, want);
    assert_eq!(keys.counts(), &[40, 3, 3, 3, 3, 1]);
    assert_eq!(keys.key(RowId(3)).unwrap(), &[5, 7, 9]);
    assert_eq!((keys.max_order(), keys.keys_by_order()[1]), (3, 3));
    assert!(keys.key(RowId(6)).is_err());
}

#[test]
fn refuses_bad_keys_by_name() {
    let text = |keys: &[(&[u32], u64)]| set(keys).unwrap_err().to_string();
    assert!(text(&[(&[1, 2], 1), (&[3], 5), (&[1, 2], 9)]).contains("keys 0 and 2 are both (1, 2)"));
    assert!(text(&[(&[1, 99], 1)]).contains("reserved token 99"));
    assert!(text(&[(&[1, 100], 1)]).contains("outside the vocabulary of 100"));
    assert!(text(&[(&[], 1)]).contains("got 0"));
    assert!(text(&[(&[1; 17], 1)]).contains("got 17"));
}

#[test]
fn saves_opens_and_verifies() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keys.mgk");
    let many: Vec<Vec<u32>> = (0..300u32).map(|i| vec![i % 90, i / 90, i % 7]).collect();
    let pairs: Vec<(&[u32], u64)> = many.iter().map(|k| (k.as_slice(), u64::from(k[2]))).collect();
    for keys in [set(&pairs).unwrap(), set(&[]).unwrap()] {
        keys.save(&path).unwrap();
        let opened = KeySet::open(&path).unwrap();
        opened.verify(2).unwrap();
        assert_eq!(opened.fingerprint(), keys.fingerprint());
        assert!(opened.iter().eq(keys.iter()));
        for row in 0..keys.len() {
            let row = RowId(u32::try_from(row).unwrap());
            assert_eq!(opened.key(row).unwrap(), keys.key(row).unwrap());
        }
    }
}

#[test]
fn select_renumbers_in_order() {
    let keys = set(&[(&[1], 9), (&[2], 8), (&[3], 7), (&[4], 6)]).unwrap();
    let some = keys.select(&[1, 3]).unwrap();
    assert_eq!(some.iter().collect::<Vec<_>>(), vec![&[2u32][..], &[4]]);
    assert!(keys.select(&[3, 1]).is_err());
    assert!(keys.select(&[4]).is_err());
}

#[test]
fn work_that_is_to_end_ends_and_the_old_file_stays() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keys.mgk");
    let (old, new) = (set(&[(&[1, 2], 3)]).unwrap(), set(&[(&[3], 1)]).unwrap());
    old.save(&path).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let stop = Stop::default();
    stop.request();
    assert!(matches!(stop.during(|| new.save(&path)), Err(Error::Interrupted)));
    assert!(matches!(stop.during(|| set(&[(&[3], 1)])), Err(Error::Interrupted)));
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    Stop::default().during(|| new.save(&path)).unwrap();
    assert_eq!(KeySet::open(&path).unwrap().fingerprint(), new.fingerprint());
}
