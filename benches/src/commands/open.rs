//! `open`: opening and verifying a file that is already in the page cache.

use std::time::Instant;

use memgraft_core::format::Load;
use memgraft_core::index::Index;
use serde_json::{Value, json};

use crate::Fallible;
use crate::arguments::Arguments;
use crate::contest::median;

/// Opens `--index` `--rounds` times by mapping, and verifies it with 1 and with `--threads` threads.
///
/// # Errors
/// Those of the core.
pub fn run(arguments: &mut Arguments) -> Fallible<Value> {
    let path = arguments.path("index")?;
    let rounds: usize = arguments.take("rounds", 5)?;
    let threads: usize = arguments.take("threads", 2)?;
    let file_bytes = std::fs::metadata(&path)?.len();
    let mut open = Vec::new();
    for _ in 0..rounds * 20 {
        let began = Instant::now();
        let index = Index::open(&path, Load::Map)?;
        open.push(began.elapsed().as_secs_f64() * 1e3);
        drop(index);
    }
    let index = Index::open(&path, Load::Map)?;
    index.verify(threads)?; // from here on the file is in the page cache, if it fits
    let (mut one, mut many) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        for (threads, times) in [(1, &mut one), (threads, &mut many)] {
            let began = Instant::now();
            index.verify(threads)?;
            times.push(file_bytes as f64 / began.elapsed().as_secs_f64() / 1e9);
        }
    }
    let began = Instant::now();
    let copy = Index::open(&path, Load::Ram)?;
    let ram_seconds = began.elapsed().as_secs_f64();
    drop(copy);
    Ok(json!({
        "file_bytes": file_bytes,
        "open_ms": median(&open),
        "open_ms_worst": open.iter().copied().fold(0.0, f64::max),
        "verify_gb_per_second": {"1": median(&one), threads.to_string(): median(&many)},
        "load_ram_gb_per_second": file_bytes as f64 / ram_seconds / 1e9,
    }))
}
