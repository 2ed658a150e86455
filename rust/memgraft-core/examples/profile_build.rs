//! Times a build and shows its peak memory: `profile_build KEYS.mgk INDEX.mgi`.
#![allow(clippy::as_conversions, reason = "benches turn counts into figures")]
#![allow(clippy::print_stdout, reason = "a command line tool")]

use std::time::Instant;

use memgraft_core::index::{Form, Index};
use memgraft_core::keyset::KeySet;

/// A field of /proc/self/status in bytes; 0 where there is no such file.
fn status(field: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    line.and_then(|line| line.trim_start_matches(':').trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0)
        * 1024
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let keys = KeySet::open(arguments.next().ok_or("expected KEYS.mgk INDEX.mgi")?)?;
    let target = arguments.next().ok_or("expected INDEX.mgi after KEYS.mgk")?;
    let before = status("RssAnon");
    let began = Instant::now();
    let index = Index::build(&keys)?;
    let seconds = began.elapsed().as_secs_f64();
    // The pages of the mapped key set can be dropped at any time; they are no part of what the build needs.
    let mapped = status("RssFile");
    let peak = status("VmHWM").saturating_sub(before + mapped);
    let bytes = index.stats().bytes;
    let per_key = |bytes: u64| bytes as f64 / keys.len().max(1) as f64;
    println!("build {:.2} M keys/s, finished {:.2} B/key", keys.len() as f64 / seconds / 1e6, per_key(bytes));
    println!(
        "peak {:.1} B/key beside the mapped key set ({:.1} B/key): {:.2} of the finished file",
        per_key(peak),
        per_key(mapped),
        peak as f64 / bytes.max(1) as f64
    );
    index.save(target, Form::Fast)?;
    Ok(())
}
