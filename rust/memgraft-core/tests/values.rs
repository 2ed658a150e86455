//! Gathered and staged rows against naive indexing, and files that are not what they were.

#![allow(unsafe_code)]
#![allow(clippy::as_conversions, reason = "tests compute expected values in any type")]
#![allow(clippy::unwrap_used)] // helpers of tests fail like tests

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use memgraft_core::Error;
use memgraft_core::values::{ColdReader, ValueDtype, ValueTable};
use proptest::prelude::*;

/// A table as shards on disk and as plain bytes.
struct Fixture {
    folder: tempfile::TempDir,
    paths: Vec<PathBuf>,
    rows: Vec<Vec<u8>>,
    scales: Vec<Vec<u8>>,
}

fn byte(seed: usize) -> u8 {
    (seed.wrapping_mul(2_654_435_761) >> 13) as u8
}

impl Fixture {
    fn new(dtype: ValueDtype, shard_rows: &[usize], taps: usize, dim: usize) -> Self {
        Self::within(tempfile::tempdir().unwrap(), dtype, shard_rows, taps, dim)
    }

    fn within(folder: tempfile::TempDir, dtype: ValueDtype, shard_rows: &[usize], taps: usize, dim: usize) -> Self {
        let row_bytes = taps * dim * dtype.size();
        let num_rows: usize = shard_rows.iter().sum();
        let rows: Vec<Vec<u8>> =
            (0..num_rows).map(|row| (0..row_bytes).map(|at| byte(row * 7919 + at)).collect()).collect();
        let scales: Vec<Vec<u8>> =
            (0..num_rows).map(|row| (0..taps * 4).map(|at| byte(row * 31 + at + 5)).collect()).collect();
        let mut paths = Vec::new();
        let mut first = 0;
        for (place, &count) in shard_rows.iter().enumerate() {
            let path = folder.path().join(format!("values-{place:05}.safetensors"));
            let front = match dtype {
                ValueDtype::Fp8E4m3 => scales[first..first + count].concat(),
                ValueDtype::Int8 => (0..taps * dim * 4).map(byte).collect(),
                _ => Vec::new(),
            };
            let shape = match dtype {
                ValueDtype::Fp8E4m3 => format!("[{count},{taps}]"),
                _ => format!("[{taps},{dim}]"),
            };
            let scales_entry = if dtype.scales_shape(1, 1, 1).is_none() {
                String::new()
            } else {
                format!(r#""scales":{{"dtype":"F32","shape":{shape},"data_offsets":[0,{}]}},"#, front.len())
            };
            let end = front.len() + count * row_bytes;
            let entry = format!(
                r#"{{{scales_entry}"values":{{"dtype":"{}","shape":[{count},{taps},{dim}],"data_offsets":[{},{end}]}}}}"#,
                dtype.safetensors_name(),
                front.len()
            );
            write_shard(&path, &entry, &[front, rows[first..first + count].concat()].concat(), end - count * row_bytes);
            paths.push(path);
            first += count;
        }
        Self { folder, paths, rows, scales }
    }

    fn table(&self) -> ValueTable {
        ValueTable::open(&self.paths).unwrap()
    }

    fn expected(&self, rows: &[i32]) -> Vec<u8> {
        rows.iter().flat_map(|&row| self.rows[row as usize].clone()).collect()
    }
}

fn write_shard(path: &Path, header: &str, data: &[u8], before_values: usize) {
    let length = (8 + header.len() + before_values).next_multiple_of(4096) - before_values - 8;
    let mut file = File::create(path).unwrap();
    file.write_all(&(length as u64).to_le_bytes()).unwrap();
    file.write_all(format!("{header:length$}").as_bytes()).unwrap();
    file.write_all(data).unwrap();
    file.sync_all().unwrap();
}

/// The system drops what nobody holds at the moment, and a page is held for a while now and then: tests try again.
const EVICTIONS: usize = 100;

/// Throws the files out of the page cache; what is mapped and was touched stays. False where there is nothing behind
/// that cache, as on tmpfs: then no row is ever cold.
fn evict(fixture: &Fixture) -> bool {
    // A page that another processor has not let go of yet stays.
    std::thread::sleep(std::time::Duration::from_millis(2));
    for path in &fixture.paths {
        let file = File::open(path).unwrap();
        // SAFETY: takes no pointers.
        assert_eq!(unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) }, 0);
    }
    let folder = CString::new(fixture.folder.path().as_os_str().as_bytes()).unwrap();
    // SAFETY: a zeroed `statfs` is one; the path ends in a zero; the system fills what it is given.
    let facts = unsafe {
        let mut facts: libc::statfs = std::mem::zeroed();
        assert_eq!(libc::statfs(folder.as_ptr(), &raw mut facts), 0);
        facts
    };
    facts.f_type != libc::TMPFS_MAGIC
}

fn any_dtype() -> impl Strategy<Value = ValueDtype> {
    prop::sample::select(ValueDtype::ALL.to_vec())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn staged_is_naive_indexing(
        dtype in any_dtype(),
        shard_rows in prop::collection::vec(0_usize..40, 1..5),
        taps in 1_usize..4,
        dim in 1_usize..70,
        seeds in prop::collection::vec(any::<u32>(), 0..600),
        misses in 0_u32..4,
        resident in 0_u64..100,
        threads in 1_usize..5,
        cold in any::<bool>(),
        reader in prop::sample::select(ColdReader::ALL.to_vec()),
    ) {
        let fixture = Fixture::new(dtype, &shard_rows, taps, dim);
        if cold {
            evict(&fixture);
        }
        let mut table = fixture.table();
        table.set_cold_reader(reader);
        if resident < 50 {
            table.make_resident(resident, threads).unwrap();
        }
        let num_rows = fixture.rows.len();
        let row =
            |seed: u32| if seed % 4 < misses || num_rows == 0 { -1 } else { (seed as usize / 4 % num_rows) as i32 };
        let rows: Vec<i32> = seeds.into_iter().map(row).collect();
        let mut out = vec![0xA5_u8; rows.len() * table.row_bytes() + 3];
        let staged = table.stage(&rows, &mut out, threads).unwrap();
        let facts = staged.gathered.unwrap();
        let unique = &staged.dedup.unique;
        prop_assert!(unique.is_sorted() && unique.windows(2).all(|pair| pair[0] != pair[1]));
        prop_assert_eq!(facts.num_bytes, (unique.len() * table.row_bytes()) as u64);
        for (&row, &place) in rows.iter().zip(&staged.dedup.inverse) {
            prop_assert_eq!(row, if place < 0 { -1 } else { unique[place as usize] });
        }
        let bytes = unique.len() * table.row_bytes();
        prop_assert_eq!(&out[..bytes], fixture.expected(unique));
        prop_assert!(out[bytes..].iter().all(|&byte| byte == 0xA5));
        if dtype == ValueDtype::Fp8E4m3 {
            let mut scales = vec![0; unique.len() * taps * 4];
            table.gather_scales(unique, &mut scales).unwrap();
            let expected: Vec<u8> = unique.iter().flat_map(|&row| fixture.scales[row as usize].clone()).collect();
            prop_assert_eq!(scales, expected);
        }
        let hits: Vec<i32> = rows.into_iter().filter(|&row| row >= 0).collect();
        let mut out = vec![0; hits.len() * table.row_bytes()];
        table.gather(&hits, &mut out, threads).unwrap();
        prop_assert_eq!(out, fixture.expected(&hits));
    }
}

#[test]
fn large_gathers_stream_on_several_threads() {
    let fixture = Fixture::new(ValueDtype::Bf16, &[700, 0, 900], 2, 1025);
    let mut table = fixture.table();
    let rows: Vec<i32> = (0..2400).map(|i| i * 37 % 1600).collect();
    for resident in [0, 400, 1600] {
        if resident > 0 {
            table.make_resident(resident, 2).unwrap();
        }
        for threads in [1, 2, 3, 8] {
            let mut out = vec![0; rows.len() * table.row_bytes()];
            table.gather(&rows, &mut out, threads).unwrap();
            assert!(out == fixture.expected(&rows), "{resident} resident, {threads} threads");
        }
    }
}

#[test]
fn cold_rows_are_read_and_counted() {
    let fixture = Fixture::new(ValueDtype::Fp32, &[300, 300], 1, 1024);
    let rows: Vec<i32> = (0..600).step_by(3).collect();
    let mut out = vec![0xA5; rows.len() * fixture.rows[0].len()];
    let mut most_cold = 0;
    let mut opened = None;
    for _ in 0..EVICTIONS {
        let evicted = evict(&fixture);
        let table = opened.insert(fixture.table());
        let facts = table.gather(&rows, &mut out, 2).unwrap();
        assert_eq!(out, fixture.expected(&rows));
        most_cold = facts.num_cold_rows.max(most_cold);
        if most_cold >= 150 || !evicted {
            break;
        }
    }
    let table = opened.unwrap();
    assert!(most_cold >= 150 || !evict(&fixture), "at most {most_cold} of 200 rows counted as cold");
    table.gather(&rows, &mut out, 2).unwrap();
    let _warms_up = table.gather(&rows, &mut out, 2).unwrap();
    assert_eq!(table.gather(&rows, &mut out, 2).unwrap().num_cold_rows, 0);
    assert_eq!(table.warm(1000, 2).unwrap(), 600 * 4096);
    let all: Vec<i32> = (0..600).collect();
    let mut out = vec![0; 600 * table.row_bytes()];
    assert_eq!(table.gather(&all, &mut out, 2).unwrap().num_cold_rows, 0);
    assert_eq!(out, fixture.expected(&all));
}

/// Whether the tests' own process may use `io_uring`; where it may not, the twin below compares `pread` with itself.
fn io_uring_allowed(fixture: &Fixture) -> bool {
    let mut table = fixture.table();
    table.set_cold_reader(ColdReader::IoUring);
    table.cold_reader() == (ColdReader::IoUring, None)
}

/// A file system that cannot say what it holds in memory is asked through the map.
#[cfg(target_os = "linux")]
#[test]
fn rows_on_tmpfs_are_never_cold() {
    let Ok(folder) = tempfile::tempdir_in("/dev/shm") else { return };
    let fixture = Fixture::within(folder, ValueDtype::Fp32, &[300, 300], 2, 700);
    if evict(&fixture) {
        return;
    }
    let table = fixture.table();
    for rows in [(0..600).rev().collect::<Vec<i32>>(), vec![599, 3, 3]] {
        let mut out = vec![0; rows.len() * table.row_bytes()];
        assert_eq!(table.gather(&rows, &mut out, 2).unwrap().num_cold_rows, 0);
        assert!(out == fixture.expected(&rows));
    }
}

#[test]
fn io_uring_reads_what_pread_reads() {
    let num_read = std::cell::Cell::new(0);
    let mut num_asked = 0;
    for dtype in ValueDtype::ALL {
        for shard_rows in [vec![1200], vec![1, 700, 0, 499], vec![40; 30]] {
            let fixture = Fixture::new(dtype, &shard_rows, 2, 700);
            let allowed = io_uring_allowed(&fixture);
            let patterns: [Vec<i32>; 5] = [
                (0..1200).collect(),
                (0..1200).step_by(7).rev().collect(),
                (0..3000).map(|i| i * 37 % 1200 / 2).collect(),
                vec![1199],
                vec![],
            ];
            for rows in patterns {
                let read = |reader: ColdReader| {
                    let mut out = vec![0xA5; rows.len() * fixture.rows[0].len()];
                    for _ in 0..EVICTIONS {
                        // Before it is opened too: reading the headers maps what lies beside them in the cache.
                        evict(&fixture);
                        let mut table = fixture.table();
                        table.set_cold_reader(reader);
                        let evicted = evict(&fixture);
                        let facts = table.gather(&rows, &mut out, 2).unwrap();
                        if rows.is_empty() || facts.num_cold_rows > 0 || !evicted {
                            assert_eq!(table.cold_reader().0 == reader, reader == ColdReader::Pread || allowed);
                            num_read.set(num_read.get() + 1);
                            return out;
                        }
                    }
                    // The system holds on to these pages; the other patterns are read cold.
                    out
                };
                let out = read(ColdReader::IoUring);
                assert!(out == fixture.expected(&rows), "{dtype:?}, {} shards, {} rows", shard_rows.len(), rows.len());
                assert!(out == read(ColdReader::Pread));
                num_asked += 2;
            }
        }
    }
    assert!(num_read.get() * 2 > num_asked, "{} of {num_asked} reads were cold", num_read.get());
}

/// Forbids this thread, and those it starts, the system call `number`: it fails with `errno`.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn forbid(number: i64, errno: i32) {
    let statement = |code: u32, k: u32, jt: u8, jf: u8| libc::sock_filter { code: code as u16, jt, jf, k };
    let filter = [
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, number as u32, 0, 1),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | errno as u32, 0, 0),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW, 0, 0),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    // SAFETY: the filter is read during the call; it binds this thread alone.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program), 0);
    }
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[test]
fn where_io_uring_is_refused_pread_takes_over_and_says_so() {
    let fixture = Fixture::new(ValueDtype::Bf16, &[300, 100], 1, 2048);
    let rows: Vec<i32> = (0..400).step_by(3).collect();
    let allowed = io_uring_allowed(&fixture);
    // Before the bank is opened, and between opening and reading; the set-up, and only the requests.
    for (number, errno, opened_before) in [
        (libc::SYS_io_uring_setup, libc::EPERM, false),
        (libc::SYS_io_uring_setup, libc::ENOSYS, false),
        (libc::SYS_io_uring_register, libc::EACCES, false),
        (libc::SYS_io_uring_enter, libc::EPERM, false),
        (libc::SYS_io_uring_setup, libc::EPERM, true),
        (libc::SYS_io_uring_enter, libc::EPERM, true),
    ] {
        if !evict(&fixture) {
            return;
        }
        let check = || {
            let mut table = fixture.table();
            if opened_before {
                table.set_cold_reader(ColdReader::IoUring);
                assert_eq!(table.cold_reader().0 == ColdReader::IoUring, allowed);
            }
            forbid(number, errno);
            if !opened_before {
                table.set_cold_reader(ColdReader::IoUring);
                assert_eq!(table.cold_reader().0, ColdReader::Pread);
            }
            let mut out = vec![0; rows.len() * table.row_bytes()];
            evict(&fixture);
            // Opened before, the table learns of the refusal at its first request.
            let facts = table.gather(&rows, &mut out, 2).unwrap();
            assert!(out == fixture.expected(&rows));
            if facts.num_cold_rows == 0 {
                return false;
            }
            let (reader, refusal) = table.cold_reader();
            assert_eq!(reader, ColdReader::Pread);
            assert!(refusal.unwrap().contains("the system refuses io_uring"), "{refusal:?}");
            true
        };
        // Pages that were not let go of in time are mapped by the gather and stay, so each try opens the table anew, in
        // a thread of its own, since what is forbidden stays forbidden.
        let asked =
            (0..EVICTIONS).any(|_| evict(&fixture) && std::thread::scope(|scope| scope.spawn(check).join().unwrap()));
        assert!(asked, "nothing was read cold");
    }
}

#[test]
fn rows_out_of_range_leave_the_output_alone() {
    let fixture = Fixture::new(ValueDtype::Bf16, &[10], 1, 8);
    let table = fixture.table();
    for rows in [vec![0, 10], vec![0, -2], vec![i32::MAX], vec![3, i32::MIN]] {
        let mut out = vec![9_u8; 1000];
        assert!(matches!(table.stage(&rows, &mut out, 1), Err(Error::Argument { .. })));
        assert!(out.iter().all(|&byte| byte == 9));
    }
    let mut out = vec![9_u8; 16];
    assert!(matches!(table.gather(&[-1], &mut out, 1), Err(Error::Argument { .. })));
    assert!(matches!(table.gather(&[1, 2], &mut out, 1), Err(Error::Argument { .. })));
    let staged = table.stage(&[1, 2], &mut out, 1).unwrap();
    assert!(staged.gathered.is_none() && staged.dedup.unique == [1, 2] && out == [9; 16]);
}

fn truncate(path: &Path) {
    OpenOptions::new().write(true).open(path).unwrap().set_len(5000).unwrap();
}

fn grow(path: &Path) {
    OpenOptions::new().append(true).open(path).unwrap().write_all(b"x").unwrap();
}

fn overwrite(path: &Path) {
    // Longer than the clock that stamps files ticks.
    std::thread::sleep(std::time::Duration::from_millis(20));
    OpenOptions::new().write(true).open(path).unwrap().write_all(b"x").unwrap();
}

fn replace(path: &Path) {
    let copy = path.with_extension("copy");
    std::fs::copy(path, &copy).unwrap();
    std::fs::rename(copy, path).unwrap();
}

fn remove(path: &Path) {
    std::fs::remove_file(path).unwrap();
}

#[test]
fn changed_files_are_refused() {
    type Change = fn(&Path);
    let changes = [
        (truncate as Change, "found 5000"),
        (grow, "changed while it was open"),
        (overwrite, "written to while"),
        (replace, "replaced by another"),
        (remove, "removed or moved"),
    ];
    for (change, expected) in changes {
        let fixture = Fixture::new(ValueDtype::Bf16, &[100], 1, 2048);
        let table = fixture.table();
        let mut resident = fixture.table();
        resident.make_resident(100, 1).unwrap();
        change(&fixture.paths[0]);
        let mut out = vec![0; table.row_bytes()];
        let error = table.gather(&[99], &mut out, 1).expect_err(expected).to_string();
        assert!(error.contains(expected), "{expected}: {error}");
        resident.gather(&[99], &mut out, 1).unwrap();
        assert_eq!(out, fixture.expected(&[99]), "{expected}: resident rows do not depend on the file");
    }
}

#[test]
fn damaged_shards_do_not_open() {
    let fixture = Fixture::new(ValueDtype::Fp8E4m3, &[10], 2, 8);
    let path = &fixture.paths[0];
    let good = std::fs::read(path).unwrap();
    for length in [0, 5, 8, 100, 4096, good.len() - 1] {
        std::fs::write(path, &good[..length]).unwrap();
        assert!(matches!(ValueTable::open(&[path]), Err(Error::Format { .. })), "{length} bytes");
    }
    let header_length = u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
    let header = std::str::from_utf8(&good[8..8 + header_length]).unwrap().to_owned();
    let edits = [
        ("\"values\"", "\"valuez\""),
        ("F8_E4M3", "F8_E5M2"),
        ("[10,2,8]", "[11,2,8]"),
        ("[10,2,8]", "[10,2,9]"),
        ("[10,2,8]", "[20,8]"),
        ("[80,240]", "[81,241]"),
        ("[80,240]", "[240,80]"),
        ("[10,2],", "[2,10],"),
        ("\"F32\"", "\"F16\""),
        ("{\"scales", "{\"scalez"),
        ("[10,2,8]", "[99999999999999,99999999999,2]"),
    ];
    for (old, new) in edits {
        let edited = header.replacen(old, new, 1);
        assert_ne!(edited, header, "{old} is in the header");
        let mut bytes = good.clone();
        let text = format!("{:header_length$}", edited.trim_end());
        bytes[8..8 + header_length].copy_from_slice(&text.as_bytes()[..header_length]);
        std::fs::write(path, &bytes).unwrap();
        let error = ValueTable::open(&[path]).expect_err(new);
        assert!(matches!(error, Error::Format { .. }), "{new}: {error}");
    }
    std::fs::write(path, &good).unwrap();
    let other = Fixture::new(ValueDtype::Fp8E4m3, &[10], 2, 9);
    let error = ValueTable::open(&[path, &other.paths[0]]).unwrap_err().to_string();
    assert!(error.contains("2 taps x 8") && error.contains("2 x 9"), "{error}");
    let missing = fixture.folder.path().join("none");
    assert!(matches!(ValueTable::open(&[missing]), Err(Error::Io { .. })));
    assert!(matches!(ValueTable::open::<&Path>(&[]), Err(Error::Argument { .. })));
}

#[test]
fn channel_scales_must_agree() {
    let fixture = Fixture::new(ValueDtype::Int8, &[3, 4], 2, 5);
    let expected: Vec<u8> = (0..40).map(byte).collect();
    assert_eq!(fixture.table().channel_scales().unwrap(), expected);
    let mut bytes = std::fs::read(&fixture.paths[1]).unwrap();
    let at = bytes.len() - 4 * 10 - 1;
    bytes[at] ^= 1;
    std::fs::write(&fixture.paths[1], bytes).unwrap();
    assert!(matches!(fixture.table().channel_scales(), Err(Error::Format { .. })));
}
