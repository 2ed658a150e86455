//! Times the merge of run files: `profile_merge ROUNDS SCRATCH PART…`.
//!
//! Prints nanoseconds a record by the clock and by what the processor did, a round each and their medians. To compare two
//! versions, run their binaries in turn. For a look under the hood:
//! `valgrind --tool=callgrind target/release/examples/profile_merge 1 …` or `perf record`.
#![allow(clippy::as_conversions, reason = "benches turn counts into figures")]
#![allow(clippy::print_stdout, reason = "a command line tool")]
#![allow(unsafe_code, reason = "no safe call tells the processor time of all threads")]

use std::path::PathBuf;
use std::time::Instant;

use memgraft_core::mining::{Means, RunSet, merge_parts};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let rounds: usize = arguments.next().ok_or("expected ROUNDS SCRATCH PART…")?.to_string_lossy().parse()?;
    let scratch: PathBuf = arguments.next().ok_or("expected SCRATCH PART… after ROUNDS")?.into();
    let parts: Vec<PathBuf> = arguments.map(PathBuf::from).collect();
    let mut records = 0;
    for part in &parts {
        records += RunSet::open(part)?.facts().num_records;
    }
    let means = Means {
        memory: 4 << 30,
        temporary: scratch.clone(),
        threads: 1,
        sketch: false,
        block_size: None,
        max_fan_in: None,
    };
    let out = scratch.join("profile-merge.mgr");
    let mut times = [const { Vec::new() }; 3];
    println!("{records} records of {} parts; ns a record: clock, user, system", parts.len());
    for round in 0..rounds {
        let (began, used) = (Instant::now(), processor());
        merge_parts(&parts, &out, None, &means, &mut |_, _, _| Ok(()))?;
        let now = processor();
        let each = [began.elapsed().as_secs_f64(), now[0] - used[0], now[1] - used[1]];
        std::fs::remove_file(&out)?;
        let each = each.map(|seconds| seconds * 1e9 / records as f64);
        times.iter_mut().zip(each).for_each(|(times, each)| times.push(each));
        println!("{round:6} {:8.2} {:8.2} {:8.2}", each[0], each[1], each[2]);
    }
    let median = times.map(|mut times| {
        times.sort_by(f64::total_cmp);
        times.get(rounds / 2).copied().unwrap_or(f64::NAN)
    });
    println!("median {:8.2} {:8.2} {:8.2}", median[0], median[1], median[2]);
    Ok(())
}

/// Seconds of the processor for this process: user, system.
fn processor() -> [f64; 2] {
    // SAFETY: a rusage is numbers alone, so that zeros are one.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: `usage` is a valid place for a rusage.
    unsafe { libc::getrusage(libc::RUSAGE_SELF, &raw mut usage) };
    [usage.ru_utime, usage.ru_stime].map(|time| time.tv_sec as f64 + time.tv_usec as f64 / 1e6)
}
