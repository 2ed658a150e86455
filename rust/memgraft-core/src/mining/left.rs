//! What a process that was killed has left of a file: a folder beside it, with a lock and, of a part, sorted blocks.

use std::cmp::Reverse;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::runs::{Facts, RunSet};
use crate::{Error, Result};

/// The folder of what is not finished, beside the file that it becomes.
pub(super) fn partial(out: &Path) -> PathBuf {
    let mut name = out.file_name().map(std::ffi::OsStr::to_os_string).unwrap_or_default();
    name.push(".partial");
    out.with_file_name(name)
}

/// Keeps a second process out of the folder.
pub(super) fn lock(folder: &Path) -> Result<fs::File> {
    let path = folder.join("lock");
    let file = fs::File::create(&path).map_err(|e| Error::io(&path, "cannot be made; choose another place", e))?;
    file.try_lock().map_err(|e| match e {
        fs::TryLockError::Error(source) => Error::io(&path, "cannot be locked; choose another place", source),
        fs::TryLockError::WouldBlock => {
            let source = std::io::Error::from(ErrorKind::WouldBlock);
            Error::io(&path, "another process is at work on this file; wait for it, or choose another out", source)
        }
    })?;
    Ok(file)
}

/// Removes the folder of a finished file; a second process of the same command may remove it at the same moment.
pub(super) fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::io(folder, "cannot be removed", e)),
        _ => Ok(()),
    }
}

/// Removes what a process left that was killed after its file was finished. A folder at which one is at work stays.
pub(super) fn remove_leftover(folder: &Path) -> Result<()> {
    if !folder.is_dir() {
        return Ok(());
    }
    match lock(folder) {
        Ok(locked) => {
            drop(locked);
            remove(folder)
        }
        // Another process holds the lock, or has just removed the folder.
        Err(Error::Io { source, .. }) if matches!(source.kind(), ErrorKind::WouldBlock | ErrorKind::NotFound) => Ok(()),
        Err(error) => Err(error),
    }
}

/// The blocks in `folder`, all of the part that is to be mined by `same`; what later blocks have merged is removed.
pub(super) fn blocks(folder: &Path, same: impl Fn(&Facts) -> bool) -> Result<Vec<RunSet>> {
    let fail = |e| Error::io(folder, "cannot be read", e);
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        if path.extension().is_some_and(|extension| extension == "block") {
            let set = RunSet::open(&path)?;
            if !same(set.facts()) {
                return Err(Error::Fingerprint {
                    message: format!(
                        "{}: expected blocks of the part that is to be mined, found one of another corpus, rank, \
                         settings or version; remove the folder, or choose another out",
                        path.display()
                    ),
                });
            }
            found.push(set);
        } else if path.to_string_lossy().contains(".block.tmp-") {
            fs::remove_file(&path).map_err(|e| Error::io(&path, "cannot be removed", e))?;
        }
    }
    // The widest first: what lies inside another has been merged into it.
    found.sort_by_key(|set| (set.facts().pieces[0].0, Reverse(end(&set.facts().pieces))));
    let mut kept: Vec<RunSet> = Vec::new();
    for set in found {
        let pieces = &set.facts().pieces;
        let inside =
            |other: &RunSet| pieces.iter().all(|p| other.facts().pieces.iter().any(|o| o.0 <= p.0 && p.1 <= o.1));
        if kept.iter().any(inside) {
            fs::remove_file(set.path()).map_err(|e| Error::io(set.path(), "cannot be removed", e))?;
        } else {
            kept.push(set);
        }
    }
    Ok(kept)
}

/// Where the last of `pieces` ends.
pub(super) fn end(pieces: &[(u64, u64)]) -> u64 {
    pieces.last().map_or(0, |piece| piece.1)
}
