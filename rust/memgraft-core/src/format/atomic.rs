//! Write beside, fsync, rename, fsync the directory.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{Error, Result, stop};

/// Tells apart two writes of one process to one path.
static SERIAL: AtomicU64 = AtomicU64::new(0);

/// Bytes written between two looks whether the caller still waits.
const BLOCK: usize = 16 << 20;

/// What failed and the way out, for a file whose bytes did not reach the disk.
const UNWRITTEN: &str = "cannot be written; free some space or choose another place";

/// A file that appears under its name only when [`AtomicFile::commit`] succeeds.
///
/// Until then the bytes live beside it as `.NAME.tmp-PID-SERIAL`, removed on drop.
#[derive(Debug)]
pub struct AtomicFile {
    file: File,
    beside: PathBuf,
    path: PathBuf,
    committed: bool,
}

impl AtomicFile {
    /// Opens a temporary file beside `path`.
    ///
    /// # Errors
    /// [`Error::Argument`] if `path` names no file, [`Error::Io`] if the directory cannot be written.
    pub fn create(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_path_buf();
        let Some(name) = path.file_name() else {
            return Err(Error::argument(format!("path: expected a file name, got {:?}", path.display().to_string())));
        };
        let mut beside_name = std::ffi::OsString::from(".");
        beside_name.push(name);
        beside_name.push(format!(".tmp-{}-{}", std::process::id(), SERIAL.fetch_add(1, Ordering::Relaxed)));
        let beside = path.with_file_name(beside_name);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&beside)
            .map_err(|e| Error::io(&path, "cannot create a file beside it; choose a folder you may write", e))?;
        Ok(Self { file, beside, path, committed: false })
    }

    /// Where the finished file will appear.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends `bytes` at the current position.
    ///
    /// # Errors
    /// [`Error::Io`] when the disk is full or fails, [`Error::Interrupted`] where the caller has asked the work to end.
    pub fn write_all(&mut self, bytes: &[u8]) -> Result<()> {
        for block in bytes.chunks(BLOCK) {
            stop::check()?;
            self.file.write_all(block).map_err(|e| Error::io(&self.path, UNWRITTEN, e))?;
        }
        Ok(())
    }

    /// Moves to byte `offset`; a gap reads as zeros.
    ///
    /// # Errors
    /// [`Error::Io`] from the system.
    pub fn seek(&mut self, offset: u64) -> Result<()> {
        self.file.seek(SeekFrom::Start(offset)).map_err(|e| Error::io(&self.beside, "cannot seek", e))?;
        Ok(())
    }

    /// Sets the length; a grown part reads as zeros.
    ///
    /// # Errors
    /// [`Error::Io`] from the system.
    pub fn set_len(&mut self, length: u64) -> Result<()> {
        self.file.set_len(length).map_err(|e| Error::io(&self.beside, "cannot set the length", e))
    }

    /// Makes the bytes durable, then visible under the final name.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Interrupted`]: the target is left as it was.
    pub fn commit(mut self) -> Result<()> {
        self.file.sync_all().map_err(|e| Error::io(&self.path, UNWRITTEN, e))?;
        // Who asked the work to end may have gone on already, so that nothing is to appear under the name any more.
        stop::check()?;
        fs::rename(&self.beside, &self.path).map_err(|e| {
            let way = "cannot rename the finished temporary file onto its name \
                       (some FUSE mounts refuse this: write to a local disk and copy)";
            Error::io(&self.path, way, e)
        })?;
        self.committed = true;
        sync_parent(&self.path).map_err(|e| Error::io(&self.path, "cannot fsync the directory", e))
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if !self.committed {
            // Best effort on the error path: the first error is the one to report.
            fs::remove_file(&self.beside).ok();
        }
    }
}

pub(crate) fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    match File::open(parent).and_then(|folder| folder.sync_all()) {
        // Some network and user-mapped file systems cannot make a folder durable, or let nobody open one.
        Err(error) if cannot_sync(&error) => Ok(()),
        result => result,
    }
}

/// Whether a file system says that it has no fsync of folders, as opposed to a device that failed.
fn cannot_sync(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidInput, IsADirectory, PermissionDenied, Unsupported};
    const EBADF: i32 = 9;
    matches!(error.kind(), InvalidInput | IsADirectory | PermissionDenied | Unsupported)
        || error.raw_os_error() == Some(EBADF)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn appears_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.bin");
        let mut file = AtomicFile::create(&path).unwrap();
        file.write_all(b"one").unwrap();
        assert!(!path.exists());
        drop(file);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        let mut file = AtomicFile::create(&path).unwrap();
        file.write_all(b"two").unwrap();
        file.commit().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
