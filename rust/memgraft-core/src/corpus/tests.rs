use std::io::Write;
use std::path::PathBuf;

use proptest::prelude::*;

use super::*;

fn write_u16(folder: &Path, name: &str, tokens: &[u16]) -> PathBuf {
    let path = folder.join(name);
    let bytes: Vec<u8> = tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
    std::fs::File::create(&path).unwrap().write_all(&bytes).unwrap();
    path
}

fn options(eos_id: u32) -> OpenOptions {
    OpenOptions { eos_id: Some(eos_id), dtype: Some(TokenType::U16), ..OpenOptions::default() }
}

/// Documents by the definition: cut after (or before) each delimiter and at each file's end.
fn naive_documents(files: &[Vec<u16>], eos: u16, first: bool) -> Vec<Vec<u32>> {
    let mut documents = Vec::new();
    for file in files {
        let mut document = Vec::new();
        for &token in file {
            if first && token == eos && !document.is_empty() {
                documents.push(std::mem::take(&mut document));
            }
            document.push(u32::from(token));
            if !first && token == eos {
                documents.push(std::mem::take(&mut document));
            }
        }
        if !document.is_empty() {
            documents.push(document);
        }
    }
    documents
}

fn documents(corpus: &Corpus) -> Vec<Vec<u32>> {
    (0..corpus.num_documents())
        .map(|document| {
            let (start, end) = corpus.document(document);
            let mut tokens = vec![0; usize_of_u64(end - start)];
            corpus.read(start, &mut tokens).unwrap();
            tokens
        })
        .collect()
}

proptest! {
    #[test]
    fn delimiters_cut_as_defined(
        files in prop::collection::vec(prop::collection::vec(0u16..5, 1..60), 1..4),
        first in any::<bool>(),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let paths: Vec<_> =
            files.iter().enumerate().map(|(at, file)| write_u16(folder.path(), &format!("{at}.bin"), file)).collect();
        let corpus = Corpus::open(&paths, &OpenOptions { eos_first: Some(first), ..options(0) }).unwrap();
        prop_assert_eq!(documents(&corpus), naive_documents(&files, 0, first));
        let all: Vec<u32> = files.iter().flatten().map(|&token| u32::from(token)).collect();
        let mut read = vec![9; all.len()];
        corpus.read(0, &mut read).unwrap();
        prop_assert_eq!(&read, &all);
        let (from, to) = (all.len() / 3, all.len() - all.len() / 4);
        let mut window = vec![9; to - from];
        corpus.read(u64_of(from), &mut window).unwrap();
        prop_assert_eq!(&window[..], &all[from..to]);
    }

    #[test]
    fn a_split_parts_the_documents(count in 2usize..60, seed in any::<u64>(), fraction in 0.01f64..0.6) {
        let folder = tempfile::tempdir().unwrap();
        let tokens: Vec<u16> = (1..=u16::try_from(count).unwrap()).flat_map(|id| [id, id, 0]).collect();
        let corpus = Corpus::open(&[write_u16(folder.path(), "a.bin", &tokens)], &options(0)).unwrap();
        let (train, held) = corpus.split(fraction, seed, 2).unwrap();
        prop_assert_eq!(held.num_documents(), share(fraction, count));
        prop_assert_eq!(train.num_documents() + held.num_documents(), count);
        let (a, b) = (documents(&train), documents(&held));
        let mut all: Vec<_> = a.iter().chain(&b).cloned().collect();
        prop_assert!(a.is_sorted() && b.is_sorted());
        all.sort();
        prop_assert_eq!(all, documents(&corpus));
        let (again, _) = corpus.split(fraction, seed, 1).unwrap();
        prop_assert_eq!(again.fingerprint(1).unwrap(), train.fingerprint(2).unwrap());
        prop_assert_ne!(train.fingerprint(1).unwrap(), held.fingerprint(1).unwrap());
    }
}

fn share(fraction: f64, count: usize) -> usize {
    ((1..count).rev().find(|&held| held as f64 - 0.5 <= fraction * count as f64)).unwrap_or(1).max(1)
}

#[test]
fn fingerprint_does_not_see_sharding() {
    let folder = tempfile::tempdir().unwrap();
    let tokens: Vec<u16> = (0..3000).map(|at| at % 77 + 1).chain([0]).collect();
    let whole = write_u16(folder.path(), "whole.bin", &[&tokens[..], &tokens[..]].concat());
    let half = write_u16(folder.path(), "half.bin", &tokens);
    let one = Corpus::open(&[whole], &options(0)).unwrap();
    let two = Corpus::open(&[&half, &half], &options(0)).unwrap();
    assert_eq!(one.fingerprint(1).unwrap(), two.fingerprint(3).unwrap());
    let other = Corpus::open(&[half], &options(0)).unwrap();
    assert_ne!(one.fingerprint(1).unwrap(), other.fingerprint(1).unwrap());
}

/// A file's name and bytes.
type Named = (&'static str, Vec<u8>);

/// Valid files of every format, as (name, bytes, what else lies beside).
fn valid_files() -> Vec<(&'static str, Vec<u8>, Option<Named>)> {
    let tokens: Vec<u8> = (1..=20u16).flat_map(u16::to_le_bytes).collect();
    let mut idx = b"MMIDIDX\0\0".to_vec();
    idx.extend(1u64.to_le_bytes());
    idx.push(8);
    idx.extend([2u64, 3].iter().flat_map(|v| v.to_le_bytes()));
    idx.extend([12i32, 8].iter().flat_map(|v| v.to_le_bytes()));
    idx.extend([0i64, 24, 0, 1, 2].iter().flat_map(|v| v.to_le_bytes()));
    let ends = [5u64, 5, 20].iter().flat_map(|v| v.to_le_bytes()).collect();
    let mut llmc = vec![0; 1024];
    for (at, value) in [20240520i32, 1, 20].iter().enumerate() {
        llmc[at * 4..at * 4 + 4].copy_from_slice(&value.to_le_bytes());
    }
    llmc.extend(&tokens);
    let mut npy = b"\x93NUMPY\x01\x00\x76\x00".to_vec();
    npy.extend(format!("{:<117}\n", "{'descr': '<u2', 'fortran_order': False, 'shape': (20,), }").bytes());
    npy.extend(&tokens);
    vec![
        ("a.bin", tokens.clone(), Some(("a.idx", idx))),
        ("b.ds", tokens.clone(), Some(("b.ds.index", ends))),
        ("c.bin", llmc, None),
        ("d.npy", npy, None),
        ("e.bin", tokens, None),
    ]
}

#[test]
fn the_valid_files_open() {
    for (name, bytes, beside) in valid_files() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(name), &bytes).unwrap();
        if let Some((name, bytes)) = &beside {
            std::fs::write(folder.path().join(name), bytes).unwrap();
        }
        let options = OpenOptions { eos_id: Some(7), ..OpenOptions::default() };
        let corpus = Corpus::open(&[folder.path().join(name)], &options).unwrap();
        assert_eq!(corpus.window(0, 20).unwrap(), (1..=20).collect::<Vec<u32>>(), "{name}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn damaged_files_never_panic_nor_read_elsewhere(
        which in 0usize..5,
        in_index in any::<bool>(),
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let (name, mut bytes, mut beside) = valid_files().swap_remove(which);
        let target = match &mut beside {
            Some((_, index)) if in_index => index,
            _ => &mut bytes,
        };
        for (at, value) in edits {
            let at = at.index(target.len());
            target[at] = value;
        }
        if let Some(cut) = cut {
            target.truncate(cut.index(target.len()));
        }
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(name), &bytes).unwrap();
        if let Some((name, bytes)) = &beside {
            std::fs::write(folder.path().join(name), bytes).unwrap();
        }
        let options = OpenOptions { eos_id: Some(7), ..OpenOptions::default() };
        if let Ok(corpus) = Corpus::open(&[folder.path().join(name)], &options) {
            let starts = corpus.document_starts();
            prop_assert!(starts.is_sorted());
            prop_assert_eq!(starts.last().copied(), Some(corpus.num_tokens()));
            prop_assert!(corpus.num_tokens() <= u64_of(bytes.len()));
            if let Ok(tokens) = corpus.window(0, corpus.num_tokens()) {
                prop_assert_eq!(u64_of(tokens.len()), corpus.num_tokens());
            }
        }
    }
}
