//! A stack of indexes against one dictionary.
#![allow(clippy::as_conversions, reason = "tests compute expected values in any type")]
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::collections::HashMap;
use std::sync::Arc;

use common::key_set;
use memgraft_core::Error;
use memgraft_core::batch::{Bounds, Instructions, Options, Tokens, Unknown};
use memgraft_core::format::{HEADER_LEN, Load};
use memgraft_core::ids::{RowId, StateId};
use memgraft_core::index::{Form, Index};
use memgraft_core::stack::Stack;
use memgraft_core::stop::Stop;
use proptest::prelude::*;

type Keys = Vec<(Vec<u32>, u64)>;
const VOCAB: u32 = 5;

fn keys() -> impl Strategy<Value = Keys> {
    let key = prop_oneof![3 => prop::collection::vec(0..VOCAB, 1..5), 1 => prop::collection::vec(0..2u32, 5..=16)];
    prop::collection::hash_map(key, 0..6u64, 0..30).prop_map(|keys| keys.into_iter().collect())
}

/// The vocabulary of tests with texts in which most positions end no key of an overlay.
const WIDE: u32 = 40;

fn wide_keys(num: std::ops::Range<usize>) -> impl Strategy<Value = Keys> {
    let key = prop_oneof![6 => prop::collection::vec(0..WIDE, 2..5), 1 => prop::collection::vec(0..WIDE, 1..2)];
    prop::collection::hash_map(key, 0..6u64, num).prop_map(|keys| keys.into_iter().collect())
}

fn stack(layers: &[Keys]) -> Stack {
    stack_over(layers, VOCAB)
}

fn stack_over(layers: &[Keys], vocab: u32) -> Stack {
    let index = |keys: &Keys| Arc::new(Index::build(&key_set(keys, vocab).unwrap()).unwrap());
    Stack::new(layers.iter().map(index).collect()).unwrap()
}

/// Looks so much up that what `num_keys` keys spare lookups is made: those of the overlays, or of all layers.
fn warm(stack: &Stack, num_keys: usize) {
    let tokens = vec![0u32; 32 * num_keys.max(1)];
    let checked = Tokens::check(&tokens[..], stack.vocab_size(), &Bounds::default(), Unknown::Error).unwrap();
    let (mut rows, mut orders) = (vec![0; tokens.len()], vec![0; tokens.len()]);
    stack.lookup_tokens(&checked, &Bounds::default(), &mut rows, &mut orders, Options::default()).unwrap();
}

fn rows_of(layers: &[Keys]) -> usize {
    layers.iter().map(Vec::len).sum()
}

/// Key to row through all layers, a later one's in place of an earlier one's; written without the stack.
fn dictionary(layers: &[Keys]) -> HashMap<Vec<u32>, i32> {
    let mut rows = HashMap::new();
    let mut first = 0;
    for layer in layers {
        let mut sorted = layer.clone();
        sorted.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        rows.extend(sorted.iter().enumerate().map(|(row, (key, _))| (key.clone(), first + row as i32)));
        first += layer.len() as i32;
    }
    rows
}

fn longest(rows: &HashMap<Vec<u32>, i32>, tokens: &[u32], ids: &[i64], at: usize) -> (i32, u8) {
    let reach = (1..=16.min(at + 1)).take_while(|&n| ids[at] >= 0 && ids[at + 1 - n] == ids[at]).last().unwrap_or(0);
    (1..=reach).rev().find_map(|n| Some((*rows.get(&tokens[at + 1 - n..=at])?, n as u8))).unwrap_or((-1, 0))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    /// Overlays small enough to be read into a table, in texts that hold their keys here and there, across all edges.
    #[test]
    fn a_small_overlay_answers_wherever_its_keys_end(
        base in wide_keys(150..250),
        overlays in prop::collection::vec(wide_keys(0..8), 1..4),
        fill in prop::collection::vec(prop::collection::vec(0..WIDE, 0..40), 1..60),
        which in prop::collection::vec(0usize..1000, 60),
        width in 1usize..300,
    ) {
        let planted: Vec<_> = overlays.iter().chain([&base]).flatten().map(|(key, _)| key.clone()).collect();
        let mut tokens = Vec::new();
        for (fill, which) in fill.iter().zip(which) {
            tokens.extend_from_slice(fill);
            tokens.extend_from_slice(&planted[which % planted.len()]);
        }
        let layers: Vec<_> = std::iter::once(base).chain(overlays).collect();
        let ids: Vec<i64> = (0..tokens.len()).map(|at| [0, 1, -1, 2][at / width % 4]).collect();
        let (stack, rows) = (stack_over(&layers, WIDE), dictionary(&layers));
        let want: Vec<_> = (0..tokens.len()).map(|at| longest(&rows, &tokens, &ids, at)).collect();
        let bounds = Bounds { ids: Some(&ids), ..Bounds::default() };
        let checked = Tokens::check(&tokens[..], WIDE, &bounds, Unknown::Error).unwrap();
        // Walked, with the overlays' keys in a table, with all keys in one.
        for (lanes, warmed) in [(32, 0), (1, rows_of(&layers[1..])), (32, 0), (1, rows_of(&layers)), (32, 0)] {
            warm(&stack, warmed);
            let (mut found, mut orders) = (vec![7; tokens.len()], vec![7; tokens.len()]);
            stack.lookup_tokens(&checked, &bounds, &mut found, &mut orders, Options { lanes, ..Options::default() }).unwrap();
            prop_assert_eq!(&found.into_iter().zip(orders).collect::<Vec<_>>(), &want);
        }
    }

    #[test]
    fn a_stack_is_one_dictionary(
        layers in prop::collection::vec(keys(), 1..9),
        tokens in prop::collection::vec(0..VOCAB, 0..300),
        lengths in prop::collection::vec(1usize..60, 1..20),
    ) {
        let (stack, rows) = (stack(&layers), dictionary(&layers));
        let runs = lengths.iter().enumerate().cycle().flat_map(|(id, &n)| vec![if id % 3 == 2 { -1 } else { id as i64 }; n]);
        // Runs of one id twice in a row would be one segment: every repeat of the list begins with another id.
        let ids: Vec<i64> = if lengths.len() < 2 { vec![0; tokens.len()] } else { runs.take(tokens.len()).collect() };
        let want: Vec<_> = (0..tokens.len()).map(|at| longest(&rows, &tokens, &ids, at)).collect();
        let bounds = Bounds { ids: Some(&ids), ..Bounds::default() };
        let checked = Tokens::check(&tokens[..], VOCAB, &bounds, Unknown::Error).unwrap();
        for (threads, lanes, warmed) in [(1, 1, 0), (1, 32, rows_of(&layers[1..])), (3, 32, rows_of(&layers)), (1, 1, 0)] {
            warm(&stack, warmed);
            let (mut found, mut orders) = (vec![7; tokens.len()], vec![7; tokens.len()]);
            let options = Options { threads, lanes, ..Options::default() };
            stack.lookup_tokens(&checked, &bounds, &mut found, &mut orders, options).unwrap();
            prop_assert_eq!(&found.into_iter().zip(orders).collect::<Vec<_>>(), &want);
        }
        let mut states = vec![StateId::START; layers.len()];
        for at in (0..tokens.len()).filter(|&at| ids[at] >= 0) {
            if at > 0 && ids[at] != ids[at - 1] {
                states.fill(StateId::START);
            }
            let one = Tokens::check(&tokens[at..=at], VOCAB, &Bounds::default(), Unknown::Error).unwrap();
            let (mut row, mut order) = ([0], [0]);
            stack.advance_tokens(&mut states, &one, &mut row, &mut order).unwrap();
            prop_assert_eq!((row[0], order[0]), want[at]);
        }
        for (key, &row) in &rows {
            prop_assert_eq!(stack.find(key).unwrap(), Some(RowId(row as u32)));
            let (layer, local) = stack.locate(RowId(row as u32)).unwrap();
            prop_assert_eq!(&stack.layers()[layer].key(local).unwrap(), key);
        }
        prop_assert!(stack.locate(RowId(stack.num_keys() as u32)).is_err());
    }
}

#[test]
fn steps_and_threads_meet_without_a_seam() {
    let layers: Vec<Keys> = (0..3u32)
        .map(|layer| {
            (0..200u32).map(move |i| (vec![i % VOCAB, (i / 5 + layer) % VOCAB, i / 25 % VOCAB, i % 7 % VOCAB], 1))
        })
        .map(|keys| keys.collect::<HashMap<_, _>>().into_iter().collect())
        .collect();
    let (stack, rows) = (stack(&layers), dictionary(&layers));
    let tokens: Vec<u32> = (0..70_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 16) % VOCAB).collect();
    let ids = vec![0; tokens.len()];
    let want: Vec<_> = (0..tokens.len()).map(|at| longest(&rows, &tokens, &ids, at)).collect();
    let checked = Tokens::check(&tokens[..], VOCAB, &Bounds::default(), Unknown::Error).unwrap();
    for threads in [1, 2, 4] {
        let (mut found, mut orders) = (vec![7; tokens.len()], vec![7; tokens.len()]);
        let options = Options { threads, ..Options::default() };
        stack.lookup_tokens(&checked, &Bounds::default(), &mut found, &mut orders, options).unwrap();
        assert!(found.into_iter().zip(orders).eq(want.iter().copied()), "{threads} threads");
    }
}

/// A long text that meets an overlay's keys here and there, then all the time, then hardly again: steps are few,
/// then everywhere, then few again; in segments that cut keys, with padding, and with what the overlay says equally long.
#[test]
fn an_overlay_answers_in_sparse_and_in_dense_text() {
    let number = |i: u32, salt: u32| (i.wrapping_add(salt).wrapping_mul(2_654_435_761) >> 12) % 500;
    let keys = |num: u32, salt: u32, longest: u32| -> Keys {
        let key = |i| (0..=i % longest).map(|n| number(17 * i + n, salt)).collect::<Vec<_>>();
        (0..num).map(|i| (key(i), u64::from(i % 3) + 1)).collect::<HashMap<_, _>>().into_iter().collect()
    };
    let (mut base, over, without_singles) = (keys(30_000, 1, 4), keys(64, 7, 16), keys(50, 9, 5));
    base.extend(over[..8].iter().filter(|(key, _)| key.len() > 4).cloned());
    let without_singles = without_singles.into_iter().filter(|(key, _)| key.len() > 1).collect();
    let layers = [base, over, without_singles];
    let mut tokens: Vec<u32> = Vec::new();
    for i in 0..24_000u32 {
        let planted = layers.iter().skip(1).flatten().nth(number(i, 3) as usize % 80).unwrap();
        let fill = if (12_000..18_000).contains(&i) { 0 } else { 11 };
        tokens.extend((0..fill).map(|n| number(i * 31 + n, 5)));
        if fill == 0 || i % 5 == 0 {
            tokens.extend_from_slice(&planted.0);
        }
    }
    let ids: Vec<i64> = (0..tokens.len()).map(|at| [0, 1, -1, 2][at / 37 % 4]).collect();
    let (stack, rows) = (stack_over(&layers, 500), dictionary(&layers));
    let bounds = Bounds { ids: Some(&ids), ..Bounds::default() };
    let checked = Tokens::check(&tokens[..], 500, &bounds, Unknown::Error).unwrap();
    let want: Vec<_> = (0..tokens.len()).map(|at| longest(&rows, &tokens, &ids, at)).collect();
    let ways = [(1, Instructions::Best), (3, Instructions::Best), (2, Instructions::Portable)];
    // From the table of the overlays' keys, which the first lookup makes, then from one of all keys.
    for (warmed, (threads, instructions)) in
        [0, rows_of(&layers)].into_iter().flat_map(|warmed| ways.map(|way| (warmed, way)))
    {
        warm(&stack, warmed);
        let (mut found, mut orders) = (vec![7; tokens.len()], vec![7; tokens.len()]);
        let options = Options { threads, instructions, ..Options::default() };
        stack.lookup_tokens(&checked, &bounds, &mut found, &mut orders, options).unwrap();
        assert!(found.into_iter().zip(orders).eq(want.iter().copied()), "{threads} threads");
    }
}

/// Lookups that grow until one overlay after another has been read: answers are the same at every stage, whatever of the
/// stack is still walked, for a stack whose overlays differ in size and one whose are alike.
#[test]
fn answers_stay_while_overlays_are_read_one_after_another() {
    let number = |i: u32| (i.wrapping_mul(2_654_435_761) >> 11) % 40;
    for sizes in [[40u32, 2, 90, 0, 7, 1], [12; 6]] {
        let keys = |(layer, &size): (usize, &u32)| -> Keys {
            let key = |i: u32| (0..=i % 5).map(|n| number(31 * i + n + 1000 * (layer as u32 % 4))).collect::<Vec<_>>();
            (0..size).map(|i| (key(i), u64::from(i % 4))).collect::<HashMap<_, _>>().into_iter().collect()
        };
        let layers: Vec<Keys> = std::iter::once((9, &300)).chain(sizes.iter().enumerate()).map(keys).collect();
        let tokens: Vec<u32> = layers.iter().flatten().flat_map(|(key, _)| key.iter().copied()).collect();
        let ids: Vec<i64> = (0..tokens.len()).map(|at| [0, 1, 1, -1][at / 23 % 4]).collect();
        let (stack, rows) = (stack_over(&layers, 40), dictionary(&layers));
        let want: Vec<_> = (0..tokens.len()).map(|at| longest(&rows, &tokens, &ids, at)).collect();
        let bounds = Bounds { ids: Some(&ids), ..Bounds::default() };
        let checked = Tokens::check(&tokens[..], 40, &bounds, Unknown::Error).unwrap();
        for time in 0..16 {
            let (mut found, mut orders) = (vec![7; tokens.len()], vec![7; tokens.len()]);
            stack.lookup_tokens(&checked, &bounds, &mut found, &mut orders, Options::default()).unwrap();
            assert!(found.into_iter().zip(orders).eq(want.iter().copied()), "lookup {time}");
        }
    }
}

#[test]
fn an_interrupted_lookup_leaves_a_stack_that_answers() {
    let base = (0..50u32).map(|i| ([&[i % 5, i / 5 % 5][..], &[0][..(i / 25) as usize]].concat(), 1)).collect();
    let layers = [base, vec![(vec![3, 1, 2], 2), (vec![1, 2], 1)]];
    let rows = dictionary(&layers);
    // The interrupted lookup is the one that would read the overlay's keys, or all keys.
    for num_tokens in [500, 2000] {
        let stack = stack(&layers);
        let tokens: Vec<u32> = (0..num_tokens).map(|i| [3, 1, 2, 4][i % 4]).collect();
        let checked = Tokens::check(&tokens[..], VOCAB, &Bounds::default(), Unknown::Error).unwrap();
        let (mut found, mut orders) = (vec![7; tokens.len()], vec![7; tokens.len()]);
        let stop = Stop::default();
        stop.request();
        let options = Options::default();
        let stopped =
            stop.during(|| stack.lookup_tokens(&checked, &Bounds::default(), &mut found, &mut orders, options));
        assert!(matches!(stopped, Err(Error::Interrupted)));
        for _ in 0..3 {
            stack.lookup_tokens(&checked, &Bounds::default(), &mut found, &mut orders, options).unwrap();
            let want = (0..tokens.len()).map(|at| longest(&rows, &tokens, &vec![0; tokens.len()], at));
            assert!(found.iter().copied().zip(orders.iter().copied()).eq(want));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    /// Bytes of an overlay's file changed anywhere but in its header: a typed error that names the file, or possible rows.
    #[test]
    fn a_damaged_overlay_gives_an_error_or_possible_rows(
        base in wide_keys(150..200),
        overlays in prop::collection::vec(wide_keys(1..5), 1..3),
        tokens in prop::collection::vec(0..WIDE, 300..400),
        damage in prop::collection::vec((any::<prop::sample::Index>(), 1u8..), 1..12),
        damaged in 0usize..2,
        form in prop_oneof![Just(Form::Fast), Just(Form::Archive)],
    ) {
        let folder = tempfile::tempdir().unwrap();
        let layers: Vec<_> = std::iter::once(base).chain(overlays).collect();
        let mut indexes: Vec<_> =
            layers.iter().map(|keys| Arc::new(Index::build(&key_set(keys, WIDE).unwrap()).unwrap())).collect();
        let path = folder.path().join("damaged.mgi");
        indexes[damaged].save(&path, form).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        for (place, change) in damage {
            let at = HEADER_LEN + place.index(bytes.len() - HEADER_LEN);
            bytes[at] ^= change;
        }
        std::fs::write(&path, &bytes).unwrap();
        let is_typed = |error: &Error| matches!(error, Error::Format { .. }) && error.to_string().contains("damaged.mgi");
        match Index::open(&path, Load::Ram) {
            Ok(index) => indexes[damaged] = Arc::new(index),
            Err(error) => {
                prop_assert!(is_typed(&error), "{}", error);
                return Ok(());
            }
        }
        let stack = Stack::new(indexes).unwrap();
        let checked = Tokens::check(&tokens[..], WIDE, &Bounds::default(), Unknown::Error).unwrap();
        // Walked at first; later lookups answer from the keys that were read, if they could be.
        for _ in 0..20 {
            let (mut rows, mut orders) = (vec![0; tokens.len()], vec![0; tokens.len()]);
            match stack.lookup_tokens(&checked, &Bounds::default(), &mut rows, &mut orders, Options::default()) {
                Err(error) => prop_assert!(is_typed(&error), "{}", error),
                Ok(()) => {
                    let possible = |(&row, &order): (&i32, &u8)| {
                        row >= -1 && i64::from(row) < stack.num_keys() as i64 && order <= 16
                    };
                    prop_assert!(rows.iter().zip(&orders).all(possible));
                }
            }
        }
        // A state that leads out of the table is the file's damage too, not a wrong argument.
        let mut states = vec![StateId::START; stack.layers().len()];
        for token in tokens.chunks(1) {
            let one = Tokens::check(token, WIDE, &Bounds::default(), Unknown::Error).unwrap();
            let (mut row, mut order) = ([0], [0]);
            match stack.advance_tokens(&mut states, &one, &mut row, &mut order) {
                Err(error) => {
                    prop_assert!(is_typed(&error), "{}", error);
                    states.fill(StateId::START);
                }
                Ok(()) => prop_assert!(row[0] >= -1 && i64::from(row[0]) < stack.num_keys() as i64 && order[0] <= 16),
            }
        }
    }
}

#[test]
fn what_does_not_stack_is_refused() {
    assert!(Stack::new(Vec::new()).unwrap_err().to_string().contains("at least one"));
    let index = |vocab_size| Arc::new(Index::build(&key_set(&[(vec![1], 1)], vocab_size).unwrap()).unwrap());
    let error = Stack::new(vec![index(5), index(6)]).unwrap_err().to_string();
    assert!(error.contains("layers[1]") && error.contains("vocabulary of 5"), "{error}");
}
