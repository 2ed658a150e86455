//! From the prefixes of a key set to the finished table.

use std::sync::Arc;

use super::layout::{Placer, blocks};
use super::prefetch::prefetch;
use super::table::Table;
use super::trie::Trie;
use super::words::{ENTRIES, LINE, NO_ROW, TokenWord, UNIT, home, root_lines};
use crate::format::{HugeBuffer, Store};
use crate::ids::{low_u8, saturating_u32, usize_of};
use crate::{Error, Result};

/// Families ahead whose blocks are asked for while links are set.
const FAMILIES_AHEAD: usize = 8;

/// Builds the table of `trie`, whose rows have `counts`. The same arguments give the same bytes.
///
/// # Errors
/// [`Error::Limit`] beyond 2^30 lines, [`Error::Io`] without memory.
pub fn build(trie: &Trie, counts: &[u64], vocab_size: u32) -> Result<Table> {
    let blocks = blocks(trie, counts)?;
    let mut placer = Placer::new(&blocks, vocab_size);
    let mut buffer = HugeBuffer::zeroed(placer.bound(&blocks) * LINE * 4)?;
    let words = buffer.words_mut();
    for token in 0..=vocab_size {
        let at = usize_of(token) * UNIT;
        words[at..at + UNIT].copy_from_slice(&lone(token));
    }
    for slot in usize_of(vocab_size) + 1..usize_of(root_lines(vocab_size)) * UNIT {
        words[slot * UNIT..(slot + 1) * UNIT].copy_from_slice(&lone(TokenWord::EMPTY));
    }
    // The unit of each state, one level a depth from 1, in the order of the families.
    let families = |depth| if depth < trie.levels.len() { trie.families(depth).count() } else { 0 };
    let mut units: Vec<Vec<u32>> = (1..=trie.levels.len()).map(|depth| vec![0; families(depth)]).collect();
    let mut max_spill = 0;
    let mut children = Vec::new();
    for block in &blocks {
        let level = &trie.levels[usize::from(block.depth)];
        let family = usize_of(block.first)..usize_of(block.first + block.children);
        children.clear();
        children.extend(level.tokens(family.clone()));
        let unit = if block.lines() == 1 {
            let unit = placer.small(block)?;
            write_part(&mut words[usize_of(unit) * UNIT..], &children, false);
            unit
        } else {
            let lines = spread(&children, &level.row[family], block.lines());
            let first = placer.large(block.lines(), saturating_u32(lines.len()))?;
            for (i, (tokens, spill)) in lines.iter().enumerate() {
                write_part(&mut words[(usize_of(first) + i) * LINE..], tokens, *spill);
            }
            let run = lines.chunk_by(|a, b| a.1 && b.1).map(<[_]>::len).max().unwrap_or(0);
            max_spill = max_spill.max(saturating_u32(run) + 1);
            first * saturating_u32(UNIT)
        };
        units[usize::from(block.depth) - 1][usize_of(block.family)] = unit;
    }
    drop(blocks);
    let num_words = usize_of(placer.num_lines()) * LINE;
    link(trie, &units, &mut words[..num_words], &placer)?;
    drop(units);
    let map = Arc::new(buffer.freeze()?);
    let Some(words) = Store::mapped(map, 0..num_words * 4) else {
        return Err(Error::argument("transition table: the buffer is not word-aligned"));
    };
    Table::new(words, placer.regions, placer.fan_shift, vocab_size, max_spill)
}

/// A unit with one entry, without output and without a state to go on in.
fn lone(token: u32) -> [u32; UNIT] {
    [TokenWord::from_bits(token).begin(1, false).bits(), 0, NO_ROW, 0]
}

/// Distributes `tokens` over `lines` home lines and as many spill lines as it takes, frequent keys at home.
fn spread(tokens: &[u32], rows: &[u32], lines: u32) -> Vec<(Vec<u32>, bool)> {
    let mut order: Vec<(u32, u32)> = rows.iter().copied().zip(tokens.iter().copied()).collect();
    order.sort_unstable();
    let mut out = vec![(Vec::with_capacity(ENTRIES), false); usize_of(lines)];
    for (_, token) in order {
        let mut at = usize_of(home(token, lines));
        while out[at].0.len() == ENTRIES {
            out[at].1 = true;
            at += 1;
            if at == out.len() {
                out.push((Vec::with_capacity(ENTRIES), false));
            }
        }
        out[at].0.push(token);
    }
    for (tokens, _) in &mut out {
        if tokens.is_empty() {
            tokens.push(TokenWord::EMPTY);
        }
    }
    out
}

/// Writes the tokens of one line or part of a line; states, rows and link come later.
fn write_part(words: &mut [u32], tokens: &[u32], spill: bool) {
    let n = tokens.len();
    words[..n].copy_from_slice(tokens);
    words[n..2 * n].fill(0);
    words[2 * n..3 * n].fill(NO_ROW);
    words[0] = TokenWord::from_bits(words[0]).begin(saturating_u32(n), spill).bits();
}

/// A table under construction: the words, and a map from line to home lines.
struct Draft<'a> {
    words: &'a mut [u32],
    /// (first line, home lines), descending, so that the first match is the region.
    regions: Vec<(u32, u32)>,
}

/// Where an entry lies: its token word, with the distance to its state and row.
#[derive(Clone, Copy)]
struct Entry {
    at: usize,
    n: usize,
}

impl Draft<'_> {
    fn lines(&self, unit: u32) -> u32 {
        let line = unit / saturating_u32(UNIT);
        self.regions.iter().find(|&&(start, _)| line >= start).map_or(1, |&(_, lines)| lines)
    }

    /// Number of entries of the part at word `at`.
    fn part_len(&self, at: usize) -> usize {
        usize_of(self.token_word(at).len())
    }

    fn token_word(&self, at: usize) -> TokenWord {
        TokenWord::from_bits(self.words[at])
    }

    /// The entry of `token` in the block at `unit` (0: the root row).
    fn find(&self, unit: u32, token: u32) -> Option<Entry> {
        if unit == 0 {
            return Some(Entry { at: usize_of(token) * UNIT, n: 1 });
        }
        let mut at = usize_of(unit) * UNIT + usize_of(home(token, self.lines(unit))) * LINE;
        loop {
            let n = self.part_len(at);
            if let Some(i) = (0..n).find(|i| self.token_word(at + i).token() == token) {
                return Some(Entry { at: at + i, n });
            }
            if !self.token_word(at).spills() {
                return None;
            }
            at += LINE;
        }
    }

    /// Asks for the first line of the block at `unit`.
    fn expect(&self, unit: u32) {
        prefetch(&self.words[usize_of(unit) * UNIT]);
    }

    fn link_of(&self, unit: u32) -> u32 {
        let at = usize_of(unit) * UNIT;
        self.words[at + 3 * self.part_len(at)]
    }

    /// Writes the suffix link into every line of the block at `unit`.
    fn set_link(&mut self, unit: u32, link: u32) {
        let at = usize_of(unit) * UNIT;
        let lines = usize_of(self.lines(unit));
        let mut i = 0;
        loop {
            let at = at + i * LINE;
            let spill = self.token_word(at).spills();
            let word = at + 3 * self.part_len(at);
            self.words[word] = link;
            i += 1;
            if i >= lines && !spill {
                return;
            }
        }
    }
}

/// Fills in continuations, outputs and suffix links, shortest states first.
fn link(trie: &Trie, units: &[Vec<u32>], words: &mut [u32], placer: &Placer) -> Result<()> {
    let mut regions: Vec<(u32, u32)> = placer.regions.iter().map(|r| (r.start, r.lines)).collect();
    regions.reverse();
    let mut draft = Draft { words, regions };
    for (depth, level) in trie.levels.iter().enumerate() {
        let order = low_u8(saturating_u32(depth + 1));
        // Families come in the order of their parents, and a parent is what has a block.
        let parents = depth.checked_sub(1).map_or(&[][..], |up| &units[up]);
        let (mut families, mut owns) = (0, units[depth].iter());
        let (mut parent, mut above) = (0, 0);
        for node in level.nodes() {
            if node.begins_family
                && let Some(&next) = parents.get(families)
            {
                (parent, above) = (next, draft.link_of(next));
                // Blocks lie anywhere: first the parent's is asked for, then the one that its link names.
                if let Some(&later) = parents.get(families + 2 * FAMILIES_AHEAD) {
                    draft.expect(later);
                }
                if let Some(&later) = parents.get(families + FAMILIES_AHEAD) {
                    draft.expect(draft.link_of(later));
                }
                families += 1;
            }
            let token = node.token;
            // The longest proper suffix of the child that is a prefix of a key; at depth 1 the empty one.
            let (mut state, mut row, mut out_order) = (0, NO_ROW, 0);
            if depth > 0 {
                let mut suffix = above;
                let entry = loop {
                    match draft.find(suffix, token) {
                        Some(entry) => break entry,
                        None => suffix = draft.link_of(suffix),
                    }
                };
                state = draft.words[entry.at + entry.n];
                row = draft.words[entry.at + 2 * entry.n];
                out_order = draft.token_word(entry.at).order();
            }
            if node.has_children
                && let Some(&own) = owns.next()
            {
                if let Some(&later) = owns.as_slice().get(FAMILIES_AHEAD) {
                    draft.expect(later);
                }
                draft.set_link(own, state);
                state = own;
            }
            if node.row != NO_ROW {
                (row, out_order) = (node.row, order);
            }
            let Some(entry) = draft.find(parent, token) else {
                return Err(Error::argument("transition table: a child is missing from its block"));
            };
            draft.words[entry.at] = draft.token_word(entry.at).with_order(out_order).bits();
            draft.words[entry.at + entry.n] = state;
            draft.words[entry.at + 2 * entry.n] = row;
        }
    }
    Ok(())
}
