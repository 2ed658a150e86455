//! `rows`: what one core could gather at most: rows read with nothing written, and written with nothing read.
//!
//! A gather does both. Where either alone takes as long as somebody asks the gather to take, no gather can.

#![allow(unsafe_code)]

use std::hint::black_box;
use std::path::PathBuf;

use memgraft_core::format::HugeBuffer;
use memgraft_core::values::ValueTable;
use serde_json::{Value, json};

use crate::Fallible;
use crate::arguments::Arguments;
use crate::contest::{self, Contender, check_equal};
use crate::memory::mix;

/// Rows between the one read and the one asked for.
const AHEAD: usize = 2;
const LINE: usize = 64;

/// Gathers `--asked` different random rows of the shard `--shard`, reads them alone and writes as much alone.
///
/// # Errors
/// Those of the core; a row gathered wrong.
pub fn run(arguments: &mut Arguments) -> Fallible<Value> {
    let shard: PathBuf = arguments.path("shard")?;
    let asked: usize = arguments.take("asked", 1 << 14)?;
    let rounds: usize = arguments.take("rounds", 5)?;
    let mapped = ValueTable::open(&[&shard])?;
    let mut resident = ValueTable::open(&[&shard])?;
    resident.make_resident(resident.num_rows(), 1)?;
    let (num_rows, row_bytes) = (usize::try_from(mapped.num_rows())?, mapped.row_bytes());
    let mut rows: Vec<i32> = (0..i32::try_from(num_rows)?).collect();
    rows.sort_unstable_by_key(|&row| mix(u64::from(row.unsigned_abs())));
    rows.truncate(asked);
    let mut table = HugeBuffer::zeroed(num_rows * row_bytes)?;
    let whole = table.bytes_mut();
    resident.gather(&(0..i32::try_from(num_rows)?).collect::<Vec<_>>(), whole, 1)?;
    let row = |i: i32| &whole[i.unsigned_abs() as usize * row_bytes..][..row_bytes];
    let source: Vec<u8> = rows.iter().flat_map(|&i| row(i)).copied().collect();
    let (mut one, mut other, mut copied, mut written) =
        (vec![1u8; source.len()], vec![1u8; source.len()], vec![1u8; source.len()], vec![1u8; source.len()]);
    mapped.gather(&rows, &mut one, 1)?;
    check_equal("gather", &source, &one)?;
    let mut contenders = vec![
        Contender::new("gather", rows.len(), || {
            mapped.gather(&rows, &mut one, 1)?;
            Ok(())
        }),
        Contender::new("gather, resident", rows.len(), || {
            resident.gather(&rows, &mut other, 1)?;
            Ok(())
        }),
        Contender::new("rows read, nothing written", rows.len(), || {
            let mut sum = 0;
            for (place, &i) in rows.iter().enumerate() {
                if let Some(&next) = rows.get(place + AHEAD) {
                    row(next).chunks(LINE).for_each(ask);
                }
                sum ^= read(row(i));
            }
            black_box(sum);
            Ok(())
        }),
        Contender::new("rows written, nothing read", rows.len(), || {
            write(&mut written);
            black_box(&written);
            Ok(())
        }),
        Contender::new("memcpy", rows.len(), || {
            copied.copy_from_slice(&source);
            black_box(&copied);
            Ok(())
        }),
    ];
    let timings = contest::run(&mut contenders, rounds)?;
    Ok(json!({ "row_bytes": row_bytes, "num_rows": num_rows, "timings": contest::as_json(&timings) }))
}

/// Asks for `line` into the second cache, which waits for more lines at a time than the first.
#[inline(always)]
fn ask(line: &[u8]) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint on a live reference; SSE is part of x86-64.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = line;
}

/// Every word of `row`, as fast as vectors load.
#[inline(always)]
fn read(row: &[u8]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2.
        return unsafe { read_avx2(row) };
    }
    read_plain(row)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn read_avx2(row: &[u8]) -> u64 {
    read_plain(row)
}

#[inline(always)]
fn read_plain(row: &[u8]) -> u64 {
    let words = row.as_chunks::<8>().0.iter().map(|&word| u64::from_le_bytes(word));
    words.fold(0, |sum, word| sum ^ word)
}

/// Stores past the caches, or plain ones where there are none.
fn write(out: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{__m128i, _mm_set1_epi8, _mm_sfence, _mm_stream_si128};
        // SAFETY: any bytes are an `__m128i`; SSE2 is part of x86-64; `align_to_mut` gives aligned places inside `out`.
        unsafe {
            let value = _mm_set1_epi8(7);
            out.align_to_mut::<__m128i>().1.iter_mut().for_each(|place| _mm_stream_si128(place, value));
            _mm_sfence();
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    out.fill(7);
}
