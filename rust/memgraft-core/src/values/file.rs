//! An open file of a table: what ties it to its path, and reads that name the byte where they stopped.
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::ids::u64_of;
use crate::{Error, Result};

/// What must stay the same while a file is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    length: u64,
    modified: (i64, i64),
}

impl Identity {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            length: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}

/// A file open for reading, and what it was when it was opened.
#[derive(Debug)]
pub(crate) struct ValueFile {
    path: PathBuf,
    file: File,
    identity: Identity,
}

impl ValueFile {
    /// Opens `path` while `doing` something; reads nothing.
    ///
    /// # Errors
    /// [`Error::Io`] where the file cannot be opened or does not tell its length.
    pub fn open(path: &Path, doing: &str) -> Result<Self> {
        let file = File::open(path).map_err(|source| Error::io(path, doing, source))?;
        let metadata = file.metadata().map_err(|source| Error::io(path, "reading the file's length", source))?;
        Ok(Self { path: path.to_path_buf(), file, identity: Identity::of(&metadata) })
    }

    /// Where the file was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The open file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Its length in bytes when it was opened.
    pub fn num_bytes(&self) -> u64 {
        self.identity.length
    }

    /// Fills `out` from byte `offset` on.
    ///
    /// # Errors
    /// [`Error::Io`] naming the file and the byte at which reading stopped.
    pub fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        let mut done = 0;
        while done < out.len() {
            let at = offset + u64_of(done);
            let left = out.len() - done;
            match self.file.read_at(&mut out[done..], at) {
                Ok(0) => {
                    let end = io::Error::new(io::ErrorKind::UnexpectedEof, "the file ends here");
                    return Err(self.read_failed(at, left, end));
                }
                Ok(read) => done += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.read_failed(at, left, error)),
            }
        }
        Ok(())
    }

    /// The error of a read of `bytes` bytes that failed at `offset`.
    pub fn read_failed(&self, offset: u64, bytes: usize, source: io::Error) -> Error {
        Error::io(&self.path, format!("reading {bytes} bytes at byte {offset}"), source)
    }

    /// The better of two reports on a failed read: that the file changed, else the read's own.
    pub fn explain(&self, error: Error) -> Error {
        self.check_unchanged().err().unwrap_or(error)
    }

    /// Refuses a file that was truncated, overwritten, replaced or removed since it was opened.
    ///
    /// # Errors
    /// [`Error::Format`] saying which; [`Error::Io`] where the system does not tell.
    pub fn check_unchanged(&self) -> Result<()> {
        let held = self.file.metadata().map_err(|source| Error::io(&self.path, "checking the open file", source))?;
        let held = Identity::of(&held);
        if held.length != self.identity.length {
            let message = format!(
                "the file changed while it was open: expected {} bytes, found {}; restore it and open the bank again",
                self.identity.length, held.length
            );
            return Err(Error::format(&self.path, message));
        }
        if held != self.identity {
            let message = "the file was written to while it was open; verify the bank and open it again";
            return Err(Error::format(&self.path, message));
        }
        let named = std::fs::metadata(&self.path)
            .map_err(|source| Error::io(&self.path, "the file was removed or moved while it was open", source))?;
        if Identity::of(&named) != self.identity {
            let message = "the file was replaced by another while it was open; open the bank again";
            return Err(Error::format(&self.path, message));
        }
        Ok(())
    }
}
