//! Shared parts of the benchmarks: contests that run interleaved, the peers,
//! the machine's own limits, and token streams to feed them.
//!
//! A number is reported only after every contender gave the same answers.

#![allow(clippy::as_conversions, reason = "benches turn counts into figures")]

pub mod arguments;
pub mod commands;
pub mod contest;
pub mod memory;
pub mod peers;
pub mod stream;

/// Anything that ends a benchmark: an error of the core, of a peer, or answers that differ.
pub type Fallible<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;
