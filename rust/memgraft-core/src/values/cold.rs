//! Rows that are not in memory: many reads in flight, in the order of the file.
//!
//! With `pread` each worker announces a batch of reads (`WILLNEED`) and then
//! makes them, so that the device sees a deep queue whatever the number of
//! threads; `io_uring` does the same from one thread. Reads bring in what was
//! asked for and nothing around it.
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use super::reads::{Read, sort};
use super::sys::will_need;
#[cfg(target_os = "linux")]
use super::uring;
use crate::{Error, Result, stop, threads};

/// Reads that one worker announces at a time.
const BATCH: usize = 64;
/// Workers wait for the device, not for a core.
const MAX_WORKERS: usize = 16;

/// How rows that are not in memory are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ColdReader {
    /// Threads that `pread`.
    #[default]
    Pread,
    /// One thread and an `io_uring` (Linux); `pread` where the system refuses that.
    IoUring,
}

impl ColdReader {
    /// All readers, in the order of the documentation.
    pub const ALL: [Self; 2] = [Self::Pread, Self::IoUring];

    /// The name in Python.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pread => "pread",
            Self::IoUring => "io_uring",
        }
    }

    /// The reader called `name`.
    ///
    /// # Errors
    /// [`Error::Argument`] for an unknown name.
    pub fn from_name(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|reader| reader.name() == name).ok_or_else(|| {
            let known = Self::ALL.map(Self::name).join(", ");
            Error::argument(format!("cold_reader {name:?}: expected one of {known}"))
        })
    }
}

/// The reader that was asked for, and why another is used where one is.
#[derive(Debug, Default)]
pub(crate) struct ColdReads {
    asked: ColdReader,
    refusal: OnceLock<String>,
    /// Whether the last gather met rows that were not in memory: the next then looks at every row rather than at a few.
    expected: AtomicBool,
}

impl ColdReads {
    /// `asked`, or `pread` with a reason where the system refuses it.
    pub fn new(asked: ColdReader) -> Self {
        let reads = Self { asked, ..Self::default() };
        if asked == ColdReader::IoUring
            && let Err(error) = uring::probe()
        {
            reads.refuse(&error);
        }
        reads
    }

    /// The reader in use.
    pub fn reader(&self) -> ColdReader {
        if self.refusal.get().is_some() { ColdReader::Pread } else { self.asked }
    }

    /// Why the reader in use is not the one asked for.
    pub fn refusal(&self) -> Option<&str> {
        self.refusal.get().map(String::as_str)
    }

    fn refuse(&self, error: &io::Error) {
        self.refusal.get_or_init(|| format!("the system refuses io_uring: {error}"));
    }

    /// Whether to look at every row rather than at a few.
    pub fn expected(&self) -> bool {
        self.expected.load(Ordering::Relaxed)
    }

    /// Says whether rows were not in memory.
    pub fn expect(&self, cold: bool) {
        self.expected.store(cold, Ordering::Relaxed);
    }

    /// Makes all reads.
    ///
    /// # Errors
    /// The first error met, naming file and offset, or [`Error::Interrupted`]; other outputs may then be unread.
    pub fn read(&self, mut reads: Vec<Read<'_>>) -> Result<()> {
        sort(&mut reads);
        if self.reader() == ColdReader::IoUring && !reads.is_empty() {
            match uring::read(&mut reads) {
                uring::Outcome::Read => return Ok(()),
                uring::Outcome::Failed(error) => return Err(error),
                // A later refusal: another process's limit, or a sandbox entered after the bank was opened.
                uring::Outcome::Refused(error) => self.refuse(&error),
            }
        }
        pread(reads)
    }
}

/// Makes all reads on threads of their own.
fn pread(mut reads: Vec<Read<'_>>) -> Result<()> {
    let workers = reads.len().div_ceil(BATCH / 4).clamp(1, MAX_WORKERS);
    let batch = reads.len().div_ceil(workers).clamp(1, BATCH);
    let batches = Mutex::new(reads.chunks_mut(batch));
    let results = threads::run(workers, |_| {
        loop {
            // A worker that panicked was not inside the iterator: the lock holds no broken state.
            let next = batches.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some(batch) = next else { return Ok(()) };
            stop::check()?;
            for read in batch.iter() {
                will_need(read.file.file(), read.offset, read.out.len());
            }
            for read in batch {
                read.file.read_at(read.offset, read.out).map_err(|error| read.file.explain(error))?;
            }
        }
    });
    // All have ended before the first error is returned: none may still write to the output.
    results.into_iter().collect()
}

#[cfg(not(target_os = "linux"))]
mod uring {
    use std::io;

    pub(super) enum Outcome {
        Read,
        Failed(crate::Error),
        Refused(io::Error),
    }

    pub(super) fn probe() -> io::Result<()> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "this system has none"))
    }

    pub(super) fn read(_: &mut [super::Read<'_>]) -> Outcome {
        probe().map_or_else(Outcome::Refused, |()| Outcome::Read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::values::Shard;

    /// Four bf16 rows of 4 KiB.
    fn shard(folder: &std::path::Path) -> Shard {
        let header = r#"{"values":{"dtype":"BF16","shape":[4,1,2048],"data_offsets":[0,16384]}}"#;
        let mut bytes = 4088_u64.to_le_bytes().to_vec();
        bytes.extend_from_slice(format!("{header:4088}").as_bytes());
        bytes.extend((0..16384_usize).map(|at| (at * 31 % 251) as u8));
        let path = folder.join("values");
        std::fs::write(&path, bytes).unwrap();
        Shard::open(&path).unwrap()
    }

    #[test]
    fn each_reader_names_the_byte_where_reading_stopped() {
        let folder = tempfile::tempdir().unwrap();
        let shard = shard(folder.path());
        for reader in ColdReader::ALL {
            let mut out = vec![0_u8; 3 * 4096];
            let (good, bad) = out.split_at_mut(4096);
            let file = shard.file();
            let reads = vec![Read { file, offset: 4096 * 4, out: bad }, Read { file, offset: 4096, out: good }];
            let error = ColdReads::new(reader).read(reads).unwrap_err().to_string();
            let expected = format!("{}: reading 4096 bytes at byte 20480: the file ends here", shard.path().display());
            assert_eq!(error, expected);
            let whole = std::fs::read(shard.path()).unwrap();
            assert!(out[..4096] == whole[4096..8192], "the good read is made all the same");
            assert!(out[4096..8192] == whole[16384..20480], "and the bad one up to the end");
        }
    }

    #[test]
    fn unknown_readers_are_refused() {
        for reader in ColdReader::ALL {
            assert_eq!(ColdReader::from_name(reader.name()).unwrap(), reader);
        }
        let error = ColdReader::from_name("aio").unwrap_err().to_string();
        assert!(error.contains("\"aio\": expected one of pread, io_uring"), "{error}");
    }
}
