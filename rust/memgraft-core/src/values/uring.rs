//! Cold reads through `io_uring`: one thread keeps the device's queue full.
//!
//! A ring lives for one batch of reads, so that none crosses a `fork` and
//! nothing of it outlives the memory it writes to. Where the system has no
//! `io_uring` or forbids it, the caller reads with `pread` instead.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::AsRawFd;
use std::thread;
use std::time::Duration;

use io_uring::{IoUring, Probe, opcode, types};

use crate::Result;
use crate::values::cold::Run;
use crate::values::gather::explain;

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

/// Makes all reads; the outer error says that the system takes no requests, so that all are to be made otherwise.
///
/// # Errors
/// Inner: the first read that failed, naming file and offset; other outputs may then be unread.
pub(crate) fn read(runs: &mut [Run<'_>]) -> io::Result<Result<()>> {
    let mut queue = Queue { ring: IoUring::new(DEPTH)?, in_flight: 0 };
    let mut done = vec![0_usize; runs.len()];
    let mut next = 0;
    let mut again: Vec<usize> = Vec::new();
    let mut failed: Option<(usize, io::Error)> = None;
    loop {
        while queue.in_flight < DEPTH && failed.is_none() {
            let Some(place) = again.pop().or_else(|| (next < runs.len()).then_some(next)) else { break };
            if place == next {
                next += 1;
            }
            queue.push(place, &mut runs[place], done[place]);
        }
        if queue.in_flight == 0 {
            break;
        }
        for (place, result) in queue.wait()? {
            let left = runs[place].out.len() - done[place];
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
    drop(queue);
    Ok(failed.map_or(Ok(()), |(place, error)| {
        let Run { shard, offset, out } = &runs[place];
        let error = shard.read_failed(offset + done[place] as u64, out.len() - done[place], error);
        Err(explain(shard, error))
    }))
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

/// A ring, and how many reads the kernel may still be writing for.
struct Queue {
    ring: IoUring,
    in_flight: u32,
}

impl Queue {
    /// Queues the rest of `run`; the caller keeps its output alive and alone until the read is waited for.
    fn push(&mut self, place: usize, run: &mut Run<'_>, done: usize) {
        let out = &mut run.out[done..];
        let length = out.len().min(MAX_REQUEST) as u32;
        let request = opcode::Read::new(types::Fd(run.shard.file().as_raw_fd()), out.as_mut_ptr(), length)
            .offset(run.offset + done as u64)
            .build()
            .user_data(place as u64);
        // SAFETY: the output outlives the request: `runs` is borrowed until after the queue is dropped, which waits
        // for all reads in flight, also when it unwinds. The file is open as long as its shard.
        let pushed = unsafe { self.ring.submission().push(&request) };
        pushed.expect("the ring holds as many requests as may be in flight");
        self.in_flight += 1;
    }

    /// Submits what is queued and waits for some of what is in flight.
    ///
    /// # Errors
    /// The system takes no more requests; those it took are still in flight.
    fn wait(&mut self) -> io::Result<Vec<(usize, i32)>> {
        // Waiting for a quarter keeps the device busy and spares calls.
        let wanted = (self.in_flight / 4).max(1) as usize;
        match self.ring.submit_and_wait(wanted) {
            Err(error) if !matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)) => Err(error),
            _ => Ok(self.completed()),
        }
    }

    fn completed(&mut self) -> Vec<(usize, i32)> {
        let found: Vec<_> = self.ring.completion().map(|entry| (entry.user_data() as usize, entry.result())).collect();
        self.in_flight -= found.len() as u32;
        found
    }
}

impl Drop for Queue {
    /// Waits until the kernel writes to no output any more; what it was never given is forgotten.
    fn drop(&mut self) {
        while self.in_flight as usize > self.ring.submission().len() {
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
