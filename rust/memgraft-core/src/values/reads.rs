//! Which reads bring missing rows in: plain arithmetic, no file is touched.
use std::ops::Range;

use super::file::ValueFile;
use super::rows::Rows;
use crate::ids::usize_of_row;

/// Longest single read; longer runs of neighbours are shared between workers.
const MAX_READ_BYTES: usize = 256 << 10;

/// One read: bytes of a file into their place in the output.
pub(crate) struct Read<'a> {
    pub file: &'a ValueFile,
    pub offset: u64,
    pub out: &'a mut [u8],
}

/// The reads that bring in `wanted[place]` for each place in `missing` (ascending); `out`
/// has room for all of `wanted`.
pub(crate) fn plan<'a>(rows: &'a Rows, wanted: &[i32], missing: &[usize], out: &'a mut [u8]) -> Vec<Read<'a>> {
    let row_bytes = rows.row_bytes();
    let longest = (MAX_READ_BYTES / row_bytes).max(1);
    let (mut reads, mut rest, mut end) = (Vec::new(), out, 0);
    for places in neighbours(wanted, missing, longest, |row| rows.begins_shard(row)) {
        let (_, after) = rest.split_at_mut((places.start - end) * row_bytes);
        let (out, after) = after.split_at_mut(places.len() * row_bytes);
        let (shard, local) = rows.locate(usize_of_row(wanted[places.start]));
        reads.push(Read { file: shard.file(), offset: shard.row_offset(local), out });
        (rest, end) = (after, places.end);
    }
    reads
}

/// Puts reads in the order of the files.
pub(crate) fn sort(reads: &mut [Read<'_>]) {
    reads.sort_unstable_by(|a, b| (a.file.path(), a.offset).cmp(&(b.file.path(), b.offset)));
}

/// The places of `missing` (ascending) as ranges of at most `longest`, whose rows follow each other in one shard.
fn neighbours(
    wanted: &[i32],
    missing: &[usize],
    longest: usize,
    begins_shard: impl Fn(usize) -> bool,
) -> Vec<Range<usize>> {
    let mut ranges: Vec<Range<usize>> = Vec::new();
    for &place in missing {
        if let Some(last) = ranges.last_mut()
            && last.end == place
            && last.len() < longest
            && wanted[place] == wanted[place - 1].wrapping_add(1)
            && !begins_shard(usize_of_row(wanted[place]))
        {
            last.end = place + 1;
        } else {
            ranges.push(place..place + 1);
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_follow_each_other_in_one_shard_are_one_read() {
        let wanted = [3, 4, 5, 6, 9, 10, 10, 11, 12, 13, 14];
        let all: Vec<usize> = (0..wanted.len()).collect();
        assert_eq!(neighbours(&wanted, &all, 9, |_| false), [0..4, 4..6, 6..11]);
        assert_eq!(neighbours(&wanted, &all, 2, |_| false), [0..2, 2..4, 4..6, 6..8, 8..10, 10..11]);
        assert_eq!(neighbours(&wanted, &all, 9, |row| row == 5), [0..2, 2..4, 4..6, 6..11]);
        assert_eq!(neighbours(&wanted, &[0, 2, 3, 8], 9, |_| false), [0..1, 2..4, 8..9]);
        assert!(neighbours(&wanted, &[], 9, |_| false).is_empty());
    }
}
