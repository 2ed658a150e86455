//! Cold reads through `io_uring`: one thread keeps the device's queue full.
//!
//! `read` makes a ring for each batch and drops it before it returns. So no ring
//! crosses a `fork`, and no request outlives the memory that it writes to. Where
//! the system has no `io_uring` or forbids it, `read` says so and the caller
//! reads with `pread` instead.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::AsRawFd;
use std::thread;
use std::time::Duration;

use io_uring::{IoUring, Probe, opcode, types};

use super::reads::Read;
use crate::ids::{saturating_u32, u64_of, usize_of, usize_of_u64};
use crate::{Error, stop};

/// Reads in flight.
const DEPTH: u32 = 128;
/// Longest single request; the kernel counts in 32 bits.
const MAX_REQUEST: usize = 1 << 30;

/// Whether the system lets this process read through `io_uring`.
///
/// # Errors
/// The system's refusal (no such call before Linux 5.6, forbidden by seccomp or by an administrator).
pub(crate) fn probe() -> io::Result<()> {
    let mut ring = IoUring::new(2)?;
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    if !probe.is_supported(opcode::Read::CODE) {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "this kernel's io_uring has no plain reads"));
    }
    // SAFETY: does nothing and refers to nothing.
    let pushed = unsafe { ring.submission().push(&opcode::Nop::new().build()) };
    pushed.expect("a new ring has room");
    // A sandbox may allow the setup and not this.
    ring.submit_and_wait(1).map(|_| ())
}

/// What became of a batch of reads.
pub(crate) enum Outcome {
    /// All were made.
    Read,
    /// One failed, or the caller has asked the work to end; other outputs may be unread. An error of a read names file and
    /// offset.
    Failed(Error),
    /// The system takes no requests: all reads are to be made otherwise.
    Refused(io::Error),
}

/// Makes all reads.
pub(crate) fn read(reads: &mut [Read<'_>]) -> Outcome {
    let mut done = vec![0_usize; reads.len()];
    match read_all(reads, &mut done) {
        Ok(None) => stop::check().map_or_else(Outcome::Failed, |()| Outcome::Read),
        Ok(Some((place, error))) => {
            let Read { file, offset, out } = &reads[place];
            let error = file.read_failed(offset + u64_of(done[place]), out.len() - done[place], error);
            Outcome::Failed(file.explain(error))
        }
        Err(refusal) => Outcome::Refused(refusal),
    }
}

/// Makes all reads, of each of which `done` bytes are read, until the caller asks the work to end; returns the first that
/// failed.
///
/// # Errors
/// The system takes no requests.
fn read_all(reads: &mut [Read<'_>], done: &mut [usize]) -> io::Result<Option<(usize, io::Error)>> {
    let mut queue = Queue { ring: IoUring::new(DEPTH)?, in_flight: 0 };
    let mut next = 0;
    let mut again: Vec<usize> = Vec::new();
    let mut failed: Option<(usize, io::Error)> = None;
    loop {
        while queue.in_flight < DEPTH && failed.is_none() && stop::check().is_ok() {
            let Some(place) = again.pop().or_else(|| (next < reads.len()).then_some(next)) else { break };
            if place == next {
                next += 1;
            }
            // SAFETY: `reads` is borrowed until this function returns, and nothing here touches an output. The queue is
            // dropped before that, also by `?` and by a panic, and waits for all requests in flight.
            unsafe { queue.push(place, &mut reads[place], done[place]) };
        }
        if queue.in_flight == 0 {
            return Ok(failed);
        }
        for (place, result) in queue.wait()? {
            let left = reads[place].out.len() - done[place];
            match settle(result, left) {
                Ok(read) if read == left => {}
                Ok(read) => {
                    done[place] += read;
                    again.push(place);
                }
                Err(error) => failed = failed.or(Some((place, error))),
            }
        }
    }
}

/// What the kernel says of one request for `left` bytes: bytes read (0 = ask again) or why not.
fn settle(result: i32, left: usize) -> io::Result<usize> {
    match usize::try_from(result) {
        Ok(0) => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file ends here")),
        Ok(read) => Ok(read.min(left)),
        Err(_) => {
            let error = io::Error::from_raw_os_error(-result);
            match error.kind() {
                io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock => Ok(0),
                _ => Err(error),
            }
        }
    }
}

/// A ring, and how many requests the kernel may still be writing for.
struct Queue {
    ring: IoUring,
    in_flight: u32,
}

impl Queue {
    /// Queues what is left of `read` after its first `done` bytes; `place` comes back with the result.
    ///
    /// # Safety
    /// The output lives, and nobody else reads or writes it, until the result has come back or the queue is dropped. The
    /// file stays open as long.
    unsafe fn push(&mut self, place: usize, read: &mut Read<'_>, done: usize) {
        let out = &mut read.out[done..];
        let length = saturating_u32(out.len().min(MAX_REQUEST));
        let request = opcode::Read::new(types::Fd(read.file.file().as_raw_fd()), out.as_mut_ptr(), length)
            .offset(read.offset + u64_of(done))
            .build()
            .user_data(u64_of(place));
        // SAFETY: the caller keeps the output and the file as the request needs them.
        let pushed = unsafe { self.ring.submission().push(&request) };
        pushed.expect("the ring holds as many requests as may be in flight");
        self.in_flight += 1;
    }

    /// Submits what is queued and returns (place, result) of some of what was in flight; waits for a quarter of it, which
    /// keeps the device busy and spares calls.
    ///
    /// # Errors
    /// The system takes no more requests; those it took are still in flight.
    fn wait(&mut self) -> io::Result<Vec<(usize, i32)>> {
        let wanted = usize_of((self.in_flight / 4).max(1));
        match self.ring.submit_and_wait(wanted) {
            Err(error) if !matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)) => Err(error),
            _ => Ok(self.completed()),
        }
    }

    /// The results that are there.
    fn completed(&mut self) -> Vec<(usize, i32)> {
        let results = self.ring.completion().map(|entry| (usize_of_u64(entry.user_data()), entry.result()));
        let results: Vec<_> = results.collect();
        self.in_flight -= saturating_u32(results.len());
        results
    }
}

impl Drop for Queue {
    /// Waits until the kernel writes to no output any more. Requests that were queued and never submitted are dropped.
    fn drop(&mut self) {
        while usize_of(self.in_flight) > self.ring.submission().len() {
            if self.completed().is_empty() {
                thread::sleep(Duration::from_micros(100));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_and_failed_requests_are_told_apart() {
        assert_eq!(settle(100, 100).unwrap(), 100);
        assert_eq!(settle(40, 100).unwrap(), 40);
        assert_eq!(settle(-libc::EINTR, 100).unwrap(), 0);
        assert_eq!(settle(-libc::EAGAIN, 100).unwrap(), 0);
        assert_eq!(settle(0, 100).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(settle(-libc::EIO, 100).unwrap_err().raw_os_error(), Some(libc::EIO));
    }
}
