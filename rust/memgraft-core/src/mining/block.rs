//! One block: every n-gram that starts in it, sorted, equal ones joined.
//!
//! Document frequency of all orders falls out of the same sort. Of a document's occurrences of an n-gram exactly one may
//! count, and whichever comes first in sorted order will do: it is marked with the longest order that this document has
//! already shown in the current groups. A document that has shown an n-gram has shown the n-gram's prefixes, so one
//! number per occurrence, its *tag*, tells for every order whether it counts: the orders above the tag do.

use super::buckets::{Buckets, changed};
use super::plan::CorpusBlock;
use super::sketch::Sketch;
use super::window::{Key, Orders, Packing};
use crate::Result;
use crate::corpus::{BLOCK, Corpus};
use crate::ids::{MAX_ORDER, fit_u32, u64_of, usize_of, usize_of_u64};

/// An n-gram, how it counts towards document frequency, and how often it occurs so.
#[derive(Debug, Clone, Copy)]
pub(super) struct Record<const W: usize> {
    pub(super) key: Key<W>,
    /// The document while a block is filled. Then the longest order already shown by it (at most `max_order`), or, in
    /// pieces of long documents, `max_order + 1` and the number of the long document.
    pub(super) tag: u32,
    pub(super) count: u32,
}

/// Bytes per position of a block: its record, and its share of what is kept per document.
pub(super) fn bytes_per_position(words: usize) -> u64 {
    u64_of(words * 8 + 8 + 4)
}

/// Reads, sorts and joins a block; `sketch` shortens n-grams that cannot be frequent. Returns the records and, by order,
/// the n-grams left out.
pub(super) fn sorted<const W: usize>(
    corpus: &Corpus,
    block: &CorpusBlock,
    reserved: &[bool],
    packing: &Packing,
    sketch: Option<&Sketch>,
) -> Result<(Vec<Record<W>>, Orders)> {
    let mut buckets = Buckets::count(corpus, block, reserved)?;
    let mut dropped = [0; MAX_ORDER + 1];
    // Apart, so that without a sketch nothing takes the address of a key: it then stays in registers. Stored as words and
    // read back as a vector it makes the processor wait, a tenth of the whole time.
    let mut records = match sketch {
        None => filled(corpus, block, reserved, packing, &mut buckets, |key| key),
        Some(sketch) => {
            filled(corpus, block, reserved, packing, &mut buckets, |key| sketch.shorten(packing, &key, &mut dropped))
        }
    }?;
    let bounds = buckets.bounds().ok_or_else(|| changed(corpus))?;
    for bucket in bounds.windows(2) {
        records[bucket[0]..bucket[1]].sort_unstable_by_key(|record| record.key);
    }
    match block.long {
        Some(_) => join_long(&mut records),
        None => join(&mut records, packing),
    }
    Ok((records, dropped))
}

/// The records of all positions of `block`, each in its bucket, with what `shorten` leaves of its n-gram.
#[inline]
fn filled<const W: usize>(
    corpus: &Corpus,
    block: &CorpusBlock,
    reserved: &[bool],
    packing: &Packing,
    buckets: &mut Buckets,
    mut shorten: impl FnMut(Key<W>) -> Key<W>,
) -> Result<Vec<Record<W>>> {
    let mut records = vec![Record { key: [0; W], tag: 0, count: 0 }; buckets.num_records()];
    walk(corpus, block, reserved, packing, |document, key| {
        let tag = match block.long {
            Some(long) => fit_u32(packing.max_order() + 1, "order")? + long,
            None => fit_u32(document - block.document, "documents of a block")?,
        };
        let key = shorten(key);
        let place = packing.first_token(&key).and_then(|token| buckets.place(token));
        let record = place.and_then(|place| records.get_mut(place));
        *record.ok_or_else(|| changed(corpus))? = Record { key, tag, count: 1 };
        Ok(())
    })?;
    Ok(records)
}

/// Visits document and longest n-gram of every position of `block`, cut at document ends and reserved tokens.
pub(super) fn walk<const W: usize>(
    corpus: &Corpus,
    block: &CorpusBlock,
    reserved: &[bool],
    packing: &Packing,
    mut visit: impl FnMut(usize, Key<W>) -> Result<()>,
) -> Result<()> {
    let max_order = packing.max_order();
    let mut buffer = vec![0; BLOCK + max_order];
    let mut position = block.start;
    let mut document = block.document;
    while position < block.end {
        let document_end = corpus.document(document).1;
        while position < document_end.min(block.end) {
            let chunk_end = (position + u64_of(BLOCK)).min(document_end).min(block.end);
            let seen_end = (chunk_end + u64_of(max_order - 1)).min(document_end);
            let tokens = &mut buffer[..usize_of_u64(seen_end - position)];
            corpus.read(position, tokens)?;
            let starts = usize_of_u64(chunk_end - position);
            let mut key = [0; W];
            for (at, &token) in tokens.iter().enumerate().rev() {
                match reserved.get(usize_of(token)) {
                    Some(false) => key = packing.prepend(&key, token),
                    Some(true) => {
                        key = [0; W];
                        continue;
                    }
                    None => return Err(changed(corpus)),
                }
                if at < starts {
                    visit(document, key)?;
                }
            }
            position = chunk_end;
        }
        document += 1;
    }
    Ok(())
}

/// Replaces documents by tags and joins records of equal key and tag, in place.
fn join<const W: usize>(records: &mut Vec<Record<W>>, packing: &Packing) {
    let max_order = packing.max_order();
    let num_documents = records.iter().map(|record| usize_of(record.tag) + 1).max().unwrap_or(0);
    // shown[document][order - 1]: the group of that order in which the document was last seen; groups count from 1.
    let mut shown = vec![0u32; num_documents * max_order];
    let mut groups = [0u32; MAX_ORDER];
    let mut by_tag = [0u32; MAX_ORDER + 1];
    let mut written = 0;
    let mut read = 0;
    let mut group = 0;
    let mut last: Option<Key<W>> = None;
    while read < records.len() {
        let key = records[read].key;
        let len = packing.len(&key);
        let shared = last.map_or(0, |last| packing.shared(&last, &key));
        group += 1;
        groups[shared.min(len)..len].fill(group);
        while read < records.len() && records[read].key == key {
            let first = usize_of(records[read].tag) * max_order;
            let mine = &mut shown[first..first + len];
            let mut tag = 0;
            while tag < len && mine[tag] == groups[tag] {
                tag += 1;
            }
            mine[tag..].copy_from_slice(&groups[tag..len]);
            by_tag[tag] += 1;
            read += 1;
        }
        for (tag, count) in (0u32..).zip(&mut by_tag[..=len]) {
            if *count > 0 {
                records[written] = Record { key, tag, count: std::mem::take(count) };
                written += 1;
            }
        }
        last = Some(key);
    }
    records.truncate(written);
}

/// Joins records of equal key; they are all of one document.
fn join_long<const W: usize>(records: &mut Vec<Record<W>>) {
    records.dedup_by(|next, kept| {
        let same = next.key == kept.key;
        if same {
            kept.count += next.count;
        }
        same
    });
}
