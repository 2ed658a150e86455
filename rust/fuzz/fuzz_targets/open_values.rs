//! Any bytes as a value shard: an error, or rows that are the file's bytes; never a crash, a hang or a read out of bounds.
//!
//! The first byte says what is mended so that the fuzzer gets past the header's length and padding: bit 0, nothing;
//! bit 1, the same shard twice as one table; bit 2, resident rows; bits 3 to 7, how many scales lie before the values
//! (bit 3 also picks the cold reader).
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use memgraft_core::values::verify::content_fingerprint;
use memgraft_core::values::{ColdReader, ValueDtype, ValueTable};

static FILE: LazyLock<PathBuf> = LazyLock::new(|| {
    let memory = PathBuf::from("/dev/shm");
    let folder = if memory.is_dir() { memory } else { std::env::temp_dir() };
    folder.join(format!("memgraft-fuzz-values-{}", std::process::id()))
});

/// Most bytes of rows that one input asks for.
const MOST: usize = 1 << 20;

/// `text | newline | values` as a file whose values start on a page.
fn mended(data: &[u8], scales: usize) -> Vec<u8> {
    let end = data.iter().position(|&byte| byte == b'\n').unwrap_or(data.len());
    let before = 4 * scales;
    let length = (8 + end + before).next_multiple_of(4096) - before - 8;
    let mut bytes = (length as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(&data[..end]);
    bytes.resize(8 + length, b' ');
    bytes.extend_from_slice(data.get(end + 1..).unwrap_or_default());
    bytes
}

fuzz_target!(|data: &[u8]| {
    let Some((&flags, data)) = data.split_first() else { return };
    let bytes = if flags & 1 != 0 { data.to_vec() } else { mended(data, usize::from(flags >> 3)) };
    std::fs::write(&*FILE, &bytes).expect("the fuzz file can be written");
    let paths = vec![FILE.clone(); if flags & 2 != 0 { 2 } else { 1 }];
    let Ok(mut table) = ValueTable::open(&paths) else { return };
    table.set_cold_reader(if flags & 8 != 0 { ColdReader::IoUring } else { ColdReader::Pread });
    let (num_rows, row_bytes) = (table.num_rows(), table.row_bytes());
    let of_one = num_rows / paths.len() as u64;
    if flags & 4 != 0 {
        table.make_resident(num_rows / 2 + 1, 1).expect("a whole file can be read");
    }
    table.warm(num_rows, 1).expect("a whole file can be read");
    let start = table.shards()[0].data_start();
    let content = content_fingerprint(&FILE, start, 1).expect("a whole file can be read");
    assert_eq!(&content.0, blake3::hash(&bytes[start as usize..]).as_bytes());
    let fit = if row_bytes == 0 { 64 } else { (MOST / row_bytes).min(64) };
    let rows: Vec<i32> = data
        .iter()
        .rev()
        .take(fit)
        .map(|&byte| (i64::from(byte) % (num_rows.min(1 << 30) as i64 + 1) - 1) as i32)
        .collect();
    let mut out = vec![0; rows.len() * row_bytes.min(MOST)];
    let staged = table.stage(&rows, &mut out, 1).expect("rows within the table are staged");
    for (&row, &place) in rows.iter().zip(&staged.dedup.inverse) {
        assert_eq!(row, if place < 0 { -1 } else { staged.dedup.unique[place as usize] });
    }
    if staged.gathered.is_some() {
        for (&row, found) in staged.dedup.unique.iter().zip(out.chunks_exact(row_bytes.max(1))) {
            // The values are what the file ends with.
            let from_end = (of_one - row as u64 % of_one) as usize * row_bytes;
            assert_eq!(found, &bytes[bytes.len() - from_end..][..row_bytes], "row {row}");
        }
    }
    if table.dtype() == ValueDtype::Fp8E4m3 {
        let unique = &staged.dedup.unique;
        let scales = table.taps() as usize * 4;
        if scales.saturating_mul(unique.len()) <= MOST {
            let mut out = vec![0; unique.len() * scales];
            table.gather_scales(unique, &mut out).expect("rows within the table have scales");
            for (&row, found) in unique.iter().zip(out.chunks_exact(scales)) {
                let at = start as usize + (row as u64 % of_one) as usize * scales;
                assert_eq!(found, &bytes[at..at + scales]);
            }
        }
    }
    if table.dtype() == ValueDtype::Int8 {
        table.channel_scales().expect("equal shards agree on the scales");
    }
    let past = i32::try_from(num_rows).unwrap_or(i32::MAX);
    table.stage(&[past], &mut out, 1).expect_err("a row past the end is refused");
});
