//! Times lookups of an index over a token stream: `profile_lookup INDEX TOKENS.bin (uint16) [ROUNDS] [MILLIONS]`.
//!
//! Variants run interleaved; the median of the rounds is printed. For a look under the hood:
//! `valgrind --tool=callgrind target/release/examples/profile_lookup …` or `perf record`.
#![allow(clippy::as_conversions, reason = "benches turn counts into figures")]
#![allow(clippy::print_stdout, reason = "a command line tool")]

use std::path::PathBuf;
use std::time::Instant;

use memgraft_core::batch::{Bounds, Instructions, Options, Unknown};
use memgraft_core::format::Load;
use memgraft_core::index::Index;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let index_path: PathBuf = arguments.next().ok_or("expected INDEX TOKENS.bin [ROUNDS] [MILLIONS]")?.into();
    let tokens_path: PathBuf = arguments.next().ok_or("expected TOKENS.bin after INDEX")?.into();
    let mut number = |default: usize| -> Result<usize, Box<dyn std::error::Error>> {
        Ok(arguments.next().map_or(Ok(default), |text| text.to_string_lossy().parse())?)
    };
    let (rounds, millions) = (number(5)?, number(8)?);
    let began = Instant::now();
    let mapped = Index::open(&index_path, Load::Map)?;
    println!("open          {:9.3} ms", began.elapsed().as_secs_f64() * 1e3);
    let began = Instant::now();
    mapped.verify(1)?;
    let bytes = std::fs::metadata(&index_path)?.len();
    println!("verify        {:9.2} GB/s", bytes as f64 / began.elapsed().as_secs_f64() / 1e9);
    let index = Index::open(&index_path, Load::Ram)?;
    let stats = index.stats();
    let per_key = |bytes: u64| bytes as f64 / stats.num_keys.max(1) as f64;
    println!(
        "bytes per key {:9.2} fast ({:.2} table), {:.2} archived; {} keys, spill {}",
        per_key(stats.bytes),
        per_key(stats.table_bytes),
        per_key(stats.canonical_bytes),
        stats.num_keys,
        stats.max_spill
    );
    let bytes = std::fs::read(tokens_path)?;
    let pairs = bytes.chunks_exact(2).take(millions * 1_000_000);
    let tokens: Vec<u32> = pairs.map(|pair| u32::from(u16::from_le_bytes([pair[0], pair[1]]))).collect();
    let variant = |threads, lanes, prefetch, instructions| Options { threads, lanes, prefetch, instructions };
    let variants = [
        ("scalar", &index, variant(1, 1, false, Instructions::Best)),
        ("8 lanes", &index, variant(1, 8, true, Instructions::Best)),
        ("16 lanes", &index, variant(1, 16, true, Instructions::Best)),
        ("32 lanes", &index, variant(1, 32, true, Instructions::Best)),
        ("32 portable", &index, variant(1, 32, true, Instructions::Portable)),
        ("16 no prefetch", &index, variant(1, 16, false, Instructions::Best)),
        ("32 mapped", &mapped, variant(1, 32, true, Instructions::Best)),
        ("32, 2 threads", &index, variant(2, 32, true, Instructions::Best)),
    ];
    let mut times = vec![Vec::new(); variants.len()];
    let (mut rows, mut orders) = (vec![0i32; tokens.len()], vec![0u8; tokens.len()]);
    let bounds = Bounds { eos: Some(0), ..Bounds::default() };
    for _ in 0..rounds {
        for (i, (_, index, options)) in variants.iter().enumerate() {
            let began = Instant::now();
            index.lookup(&tokens, &bounds, Unknown::Error, &mut rows, &mut orders, *options)?;
            times[i].push(began.elapsed().as_secs_f64() * 1e9 / tokens.len() as f64);
        }
    }
    let hits = rows.iter().filter(|&&row| row >= 0).count();
    println!("coverage      {:9.3} of {} tokens", hits as f64 / tokens.len() as f64, tokens.len());
    for ((name, _, _), mut times) in variants.into_iter().zip(times) {
        times.sort_by(f64::total_cmp);
        println!("{name:14} {:9.2} ns/token median, {:.2} best", times[times.len() / 2], times[0]);
    }
    Ok(())
}
