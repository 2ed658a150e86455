//! Any keys of a base and up to three overlays, any text, any segments: every way to look the stack up equals one dictionary.
//! Where a layer's file is damaged, lookups give an error that says so or possible rows; exact ones where the file verifies.
//!
//! An input is `flags | number of keys of each of four layers | keys | damage | text`. Bits of the flags: 0 to 2 the size of the
//! vocabulary, 3 and 4 the number of overlays, 5 a damaged layer, 6 its file an archive. A key is `count and length | tokens`.
//! Damage is `layer | number of bytes | (place u16, what it is changed by) each`, and is left out where no layer is damaged.
#![no_main]

#[allow(dead_code, reason = "shared with other targets, which read one layer")]
#[path = "../../memgraft-core/tests/common/oracle.rs"]
mod oracle;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use memgraft_core::Error;
use memgraft_core::batch::{Bounds, Instructions, Options, Tokens, Unknown};
use memgraft_core::format::{HEADER_LEN, Load};
use memgraft_core::ids::{RowId, StateId};
use memgraft_core::index::{Form, Index};
use memgraft_core::keyset::{Arrays, KeySet};
use memgraft_core::stack::Stack;
use oracle::Oracle;

type Keys = Vec<(Vec<u32>, u64)>;

static FILE: LazyLock<PathBuf> = LazyLock::new(|| {
    let memory = PathBuf::from("/dev/shm");
    let folder = if memory.is_dir() { memory } else { std::env::temp_dir() };
    folder.join(format!("memgraft-fuzz-stack-{}.mgi", std::process::id()))
});

/// The distinct keys of a layer, at most `num` of them.
fn keys(bytes: &mut impl Iterator<Item = u8>, num: u8, token: impl Fn(u8) -> u32) -> Keys {
    let mut seen = HashSet::new();
    let mut keys = Vec::new();
    for _ in 0..num {
        let Some(head) = bytes.next() else { break };
        let key: Vec<u32> = bytes.by_ref().take(usize::from(head % 16) + 1).map(&token).collect();
        if !key.is_empty() && seen.insert(key.clone()) {
            keys.push((key, u64::from(head / 16)));
        }
    }
    keys
}

fn index(keys: &Keys, vocab_size: u32) -> Arc<Index> {
    let flat: Vec<u32> = keys.iter().flat_map(|(key, _)| key.iter().copied()).collect();
    let mut offsets = vec![0u64];
    offsets.extend(keys.iter().scan(0, |at, (key, _)| {
        *at += key.len() as u64;
        Some(*at)
    }));
    let counts: Vec<u64> = keys.iter().map(|&(_, count)| count).collect();
    let arrays = Arrays { tokens: &flat, offsets: &offsets, counts: &counts, documents: None };
    let set = KeySet::from_arrays(arrays, vocab_size, &[], String::new()).expect("distinct keys in range");
    Arc::new(Index::build(&set).expect("a small set fits"))
}

/// `index` as its file says after `damage`.
fn damaged(index: &Index, form: Form, damage: &[[u8; 3]]) -> Result<Index, Error> {
    index.save(&*FILE, form).expect("the fuzz file can be written");
    let mut bytes = std::fs::read(&*FILE).expect("the fuzz file can be read");
    for &[low, high, change] in damage {
        let room = bytes.len() - HEADER_LEN;
        if room > 0 {
            bytes[HEADER_LEN + usize::from(u16::from_le_bytes([low, high])) % room] ^= change;
        }
    }
    std::fs::write(&*FILE, &bytes).expect("the fuzz file can be written");
    Index::open(&*FILE, Load::Ram)
}

/// Whether an answer is what `result` may be: an error about a file is fine where some file is damaged.
fn answered(result: Result<(), Error>, exact: bool) -> bool {
    match result {
        Ok(()) => true,
        Err(Error::Format { .. }) if !exact => false,
        Err(error) => panic!("expected an answer, or an error about a damaged file, got {error}"),
    }
}

fuzz_target!(|data: &[u8]| {
    let [flags, base, first, second, third, rest @ ..] = data else { return };
    let vocab_size = [2, 3, 5, 9, 40, 64, 300, 4096][usize::from(*flags) % 8];
    let token = |byte: u8| (u32::from(byte) * [1, 31][usize::from(byte >> 7)]) % vocab_size;
    let mut bytes = rest.iter().copied();
    let num_layers = 1 + usize::from(flags >> 3) % 4;
    let layers: Vec<Keys> =
        [*base, *first, *second, *third][..num_layers].iter().map(|&num| keys(&mut bytes, num, token)).collect();
    let mut indexes: Vec<Arc<Index>> = layers.iter().map(|keys| index(keys, vocab_size)).collect();
    let mut exact = true;
    if flags & 32 != 0 {
        let (Some(layer), Some(count)) = (bytes.next(), bytes.next()) else { return };
        let changes: Vec<u8> = bytes.by_ref().take(usize::from(count % 16) * 3).collect();
        let form = if flags & 64 != 0 { Form::Archive } else { Form::Fast };
        let place = usize::from(layer) % num_layers;
        match damaged(&indexes[place], form, changes.as_chunks::<3>().0) {
            Err(error) => {
                assert!(matches!(error, Error::Format { .. }), "{error}");
                return;
            }
            Ok(index) => indexes[place] = Arc::new(index),
        }
        exact = indexes[place].verify(1).is_ok();
    }
    let text: Vec<u8> = bytes.collect();
    let tokens: Vec<u32> = text.iter().copied().map(token).collect();
    let ids: Vec<i64> = text
        .iter()
        .scan(0, |id, &byte| {
            *id += i64::from(byte == 255);
            // Padding now and then.
            Some(if *id % 4 == 3 { -1 } else { *id })
        })
        .collect();
    let starts: HashSet<usize> = (1..ids.len()).filter(|&at| ids[at] != ids[at - 1]).collect();
    let slices: Vec<&[(Vec<u32>, u64)]> = layers.iter().map(Vec::as_slice).collect();
    let oracle = Oracle::of_layers(&slices);
    let mut want = oracle.lookup(&tokens, &starts);
    ids.iter().zip(&mut want).filter(|(id, _)| **id < 0).for_each(|(_, want)| *want = (-1, 0));

    let stack = Stack::new(indexes).expect("one vocabulary");
    let num_rows = stack.num_keys() as i64;
    let holds = |found: &[(i32, u8)], want: &[(i32, u8)]| {
        if exact {
            assert_eq!(found, want);
        }
        assert!(found.iter().all(|&(row, order)| row >= -1 && i64::from(row) < num_rows && order <= 16));
    };
    let bounds = Bounds { ids: Some(&ids), ..Bounds::default() };
    let checked = Tokens::check(&tokens[..], vocab_size, &bounds, Unknown::Error).expect("tokens are in range");
    // Walked; then so much is looked up that the overlays' keys are read into a table; then those of all layers.
    let all_keys = layers.iter().map(Vec::len).sum::<usize>();
    for warm in [0, all_keys - layers[0].len(), all_keys] {
        let fill = vec![0u32; 32 * warm];
        let filled = Tokens::check(&fill[..], vocab_size, &Bounds::default(), Unknown::Error).expect("0 is in range");
        let (mut rows, mut orders) = (vec![0; fill.len()], vec![0; fill.len()]);
        let options = Options::default();
        answered(stack.lookup_tokens(&filled, &Bounds::default(), &mut rows, &mut orders, options), exact);
        for (lanes, instructions) in
            [(1, Instructions::Portable), (32, Instructions::Best), (8, Instructions::Portable)]
        {
            let (mut rows, mut orders) = (vec![0; tokens.len()], vec![0; tokens.len()]);
            let options = Options { lanes, instructions, ..Options::default() };
            if answered(stack.lookup_tokens(&checked, &bounds, &mut rows, &mut orders, options), exact) {
                holds(&rows.into_iter().zip(orders).collect::<Vec<_>>(), &want);
            }
        }
    }
    let mut states = vec![StateId::START; num_layers];
    for (at, &token) in tokens.iter().enumerate().filter(|&(at, _)| ids[at] >= 0) {
        if starts.contains(&at) {
            states.fill(StateId::START);
        }
        let one = Tokens::check(std::slice::from_ref(&token), vocab_size, &Bounds::default(), Unknown::Error);
        let (mut row, mut order) = ([0], [0]);
        if !answered(stack.advance_tokens(&mut states, &one.expect("in range"), &mut row, &mut order), exact) {
            break;
        }
        holds(&[(row[0], order[0])], &want[at..=at]);
    }
    for (key, _) in layers.iter().flatten() {
        match stack.find(key) {
            Ok(row) if exact => assert_eq!(row.map(|row| row.0 as i32), oracle.row(key)),
            Ok(row) => assert!(row.is_none_or(|row| i64::from(row.0) < num_rows)),
            Err(Error::Format { .. }) if !exact => {}
            Err(error) => panic!("{error}"),
        }
    }
    for row in (0..num_rows as u32).filter(|_| exact) {
        let (layer, local) = stack.locate(RowId(row)).expect("a row of the stack");
        let key = stack.layers()[layer].key(local).expect("a row of the layer");
        assert!(oracle.row(&key).is_some_and(|found| found >= row as i32), "the last of equal keys answers");
    }
});
