//! System calls of the value table: read-only maps, reads that do not wait,
//! advice about pages, page-fault counts. Where a system lacks a call, a portable
//! function of the same name stands in for it; it is slower and gives the same rows.
#![allow(unsafe_code)]

use std::fs::File;
use std::path::Path;

use memmap2::{Mmap, MmapOptions};

use crate::{Error, Result};

/// Maps the whole of `file`, told that reads come at random places.
///
/// Default readahead reads hundreds of times what a random row needs.
///
/// # Errors
/// [`Error::Io`] where the system refuses the map.
pub(crate) fn map_random(path: &Path, file: &File) -> Result<Mmap> {
    // SAFETY: the map is read-only and its owner never lends it out past itself.
    // Another process may change the file: a gather may then read stale bytes,
    // and its identity checks report that. The head of `table` says what these
    // checks cannot exclude.
    let map = unsafe { MmapOptions::new().map(file) }.map_err(|source| {
        Error::io(path, "mapping the file (where a mount allows no memory maps, copy the bank to a local disk)", source)
    })?;
    #[cfg(unix)]
    map.advise(memmap2::Advice::Random).map_err(|source| Error::io(path, "advising random reads", source))?;
    Ok(map)
}

/// Maps pages of `map` that are in memory already, so that the first copy does not fault on each.
pub(crate) fn populate(map: &Mmap, start: usize, bytes: usize) {
    #[cfg(target_os = "linux")]
    // Advice: kernels before 5.14 do not know it, and pages are then mapped at first touch.
    let _advice_only = map.advise_range(memmap2::Advice::PopulateRead, start, bytes);
    #[cfg(not(target_os = "linux"))]
    let _ = (map, start, bytes);
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod imp {
    use std::fs::File;
    use std::os::fd::AsRawFd;

    /// Reads `out.len()` bytes at `offset` if all of them are in memory and returns true. Returns false where any byte
    /// must come from the device, and `None` where the file system cannot tell, as tmpfs and most network ones.
    pub(crate) fn read_cached(file: &File, offset: u64, out: &mut [u8]) -> Option<bool> {
        let Ok(offset) = libc::off_t::try_from(offset) else { return Some(false) };
        let vector = libc::iovec { iov_base: out.as_mut_ptr().cast(), iov_len: out.len() };
        // SAFETY: one vector over memory that is ours to write for the length of the call.
        let read = unsafe { libc::preadv2(file.as_raw_fd(), &raw const vector, 1, offset, libc::RWF_NOWAIT) };
        let refused = read < 0 && std::io::Error::last_os_error().raw_os_error() == Some(libc::EOPNOTSUPP);
        (!refused).then(|| usize::try_from(read) == Ok(out.len()))
    }

    /// Whether all pages of `bytes` of a map are in memory. Linux answers yes for a file that the process may not write.
    pub(crate) fn in_memory(bytes: &[u8]) -> bool {
        const PAGES: usize = 64;
        // SAFETY: takes no pointers.
        let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096);
        let before = bytes.as_ptr().addr() % page;
        let (first, len) = (bytes.as_ptr().wrapping_sub(before), bytes.len() + before);
        (0..len).step_by(PAGES * page).all(|at| {
            let mut pages = [0u8; PAGES];
            let some = (len - at).min(PAGES * page);
            // SAFETY: the call reads no memory, writes one byte a page, of at most PAGES, and refuses what is not mapped.
            let told = unsafe { libc::mincore(first.wrapping_add(at).cast_mut().cast(), some, pages.as_mut_ptr()) };
            told == 0 && pages[..some.div_ceil(page)].iter().all(|page| page & 1 == 1)
        })
    }

    /// Starts reading `bytes` at `offset` into the page cache.
    pub(crate) fn will_need(file: &File, offset: u64, bytes: usize) {
        advise(file, offset, bytes, libc::POSIX_FADV_WILLNEED);
    }

    /// Asks the system to read no more than each read of `file` asks for.
    pub(crate) fn no_readahead(file: &File) {
        advise(file, 0, 0, libc::POSIX_FADV_RANDOM);
    }

    fn advise(file: &File, offset: u64, bytes: usize, advice: libc::c_int) {
        let (Ok(offset), Ok(bytes)) = (libc::off_t::try_from(offset), libc::off_t::try_from(bytes)) else { return };
        // SAFETY: takes no pointers. Advice: a refusal costs speed, and the read itself reports errors.
        let _advice_only = unsafe { libc::posix_fadvise(file.as_raw_fd(), offset, bytes, advice) };
    }

    /// Page faults of this thread so far that waited for a device.
    pub(crate) fn major_faults() -> u64 {
        // SAFETY: rusage is plain integers, for which zeros are valid, and the call writes only to it.
        let usage = unsafe {
            let mut usage: libc::rusage = std::mem::zeroed();
            libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage);
            usage
        };
        u64::try_from(usage.ru_majflt).unwrap_or(0)
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
mod imp {
    use std::fs::File;

    /// Says that nothing is in memory, because this system cannot tell: every row is then read.
    pub(crate) fn read_cached(_: &File, _: u64, _: &mut [u8]) -> Option<bool> {
        Some(false)
    }

    pub(crate) fn in_memory(_: &[u8]) -> bool {
        false
    }

    pub(crate) fn will_need(_: &File, _: u64, _: usize) {}

    pub(crate) fn no_readahead(_: &File) {}

    pub(crate) fn major_faults() -> u64 {
        0
    }
}

pub(crate) use imp::{in_memory, major_faults, no_readahead, read_cached, will_need};
