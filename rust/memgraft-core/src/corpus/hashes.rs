//! Hashes of documents and of the runs of tokens inside them, by which corpora are compared (`docs/FORMAT.md`, "Sample of
//! a mined corpus").

use crate::ids::{u64_of, usize_of_u64};
use crate::{Error, Result};

/// What splitmix64 adds before each output; odd, so that its powers can be undone.
pub(super) const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;
/// `GAMMA * INVERSE` is 1.
const INVERSE: u64 = inverse(GAMMA);

/// The inverse of an odd number modulo 2^64: each step of Newton's doubles the bits that are right.
const fn inverse(odd: u64) -> u64 {
    let (mut found, mut step) = (odd, 0);
    while step < 5 {
        found = found.wrapping_mul(2u64.wrapping_sub(odd.wrapping_mul(found)));
        step += 1;
    }
    found
}

/// splitmix64's output function, without [`GAMMA`] added before.
#[inline]
pub(super) fn scramble(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Which runs of tokens are kept.
#[derive(Debug, Clone, Copy)]
pub struct Runs {
    /// Tokens of a run.
    pub length: usize,
    /// Zeros that the hash ends in, at least.
    pub zeros: u32,
    /// The largest hash.
    pub most: u64,
}

/// Hashes of some documents.
#[derive(Debug, Clone, Default)]
pub struct Hashes {
    /// Of each document that is not empty.
    pub documents: Vec<u64>,
    /// Tokens of each of those.
    pub sizes: Vec<i64>,
    /// Of the runs inside them that are kept, in their order.
    pub runs: Vec<u64>,
}

/// Hashes the documents that begin at `edges` and end where the next begins, the last at the last edge; a delimiter at
/// either end belongs to the format, not to the document.
///
/// # Errors
/// [`Error::Argument`] for edges that fall or lie outside `tokens`, and runs of no tokens.
pub fn hash_documents(tokens: &[u32], edges: &[u64], eos_id: Option<u32>, runs: Runs) -> Result<Hashes> {
    if runs.length == 0 {
        return Err(Error::argument("length: expected runs of at least 1 token, got 0"));
    }
    let mut found = Hashes::default();
    for pair in edges.windows(2) {
        let place = usize_of_u64(pair[0])..usize_of_u64(pair[1]);
        let document = tokens.get(place).ok_or_else(|| {
            let (from, to, all) = (pair[0], pair[1], tokens.len());
            Error::argument(format!("edges: expected places that rise from 0 to {all}, got {from} before {to}"))
        })?;
        let document = without_ends(document, eos_id);
        if document.is_empty() {
            continue;
        }
        let whole = polynomial(document).wrapping_add(u64_of(document.len()));
        found.documents.push(scramble(whole));
        found.sizes.push(i64::try_from(document.len()).unwrap_or(i64::MAX));
        push_runs(document, runs, &mut found.runs);
    }
    Ok(found)
}

fn without_ends(document: &[u32], eos_id: Option<u32>) -> &[u32] {
    let document = match document.split_last() {
        Some((&last, before)) if Some(last) == eos_id => before,
        _ => document,
    };
    match document.split_first() {
        Some((&first, rest)) if Some(first) == eos_id => rest,
        _ => document,
    }
}

/// The sum of (t + 1) times [`GAMMA`] to the power of t's place, from 0.
fn polynomial(tokens: &[u32]) -> u64 {
    tokens.iter().rev().fold(0u64, |sum, &token| sum.wrapping_mul(GAMMA).wrapping_add(u64::from(token) + 1))
}

fn push_runs(document: &[u32], runs: Runs, out: &mut Vec<u64>) {
    let Some(first) = document.get(..runs.length) else { return };
    let mask = 1u64.checked_shl(runs.zeros).map_or(u64::MAX, |bit| bit - 1);
    let mut keep = |sum: u64| {
        let hash = scramble(sum);
        if hash & mask == 0 && hash <= runs.most {
            out.push(hash);
        }
    };
    let mut sum = polynomial(first);
    keep(sum);
    let top = (1..runs.length).fold(1u64, |power, _| power.wrapping_mul(GAMMA));
    for (&gone, &come) in document.iter().zip(&document[runs.length..]) {
        // Apart from `sum`, so that one step waits for a product and a sum of the one before, no more.
        let change = (u64::from(come) + 1).wrapping_mul(top).wrapping_sub((u64::from(gone) + 1).wrapping_mul(INVERSE));
        sum = sum.wrapping_mul(INVERSE).wrapping_add(change);
        keep(sum);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As the format says, term by term.
    fn slow(tokens: &[u32], add: u64) -> u64 {
        let (mut sum, mut power) = (add, 1u64);
        for &token in tokens {
            sum = sum.wrapping_add(power.wrapping_mul(u64::from(token) + 1));
            power = power.wrapping_mul(GAMMA);
        }
        scramble(sum)
    }

    proptest! {
        #[test]
        fn hashes_are_those_of_the_format(
            documents in prop::collection::vec(prop::collection::vec(prop_oneof![0u32..4, any::<u32>()], 0..20), 0..8),
            eos_id in prop::option::of(0u32..3),
            length in 1usize..9,
            zeros in prop::sample::select(vec![0u32, 1, 3, 64]),
            most in prop_oneof![Just(u64::MAX), any::<u64>()],
        ) {
            let mut edges = vec![0u64];
            documents.iter().for_each(|document| edges.push(edges[edges.len() - 1] + u64_of(document.len())));
            let found = hash_documents(&documents.concat(), &edges, eos_id, Runs { length, zeros, most }).unwrap();
            let mut bare: Vec<&[u32]> = Vec::new();
            for document in &documents {
                let end = document.len() - usize::from(!document.is_empty() && document.last().copied() == eos_id);
                let start = usize::from(end > 0 && document.first().copied() == eos_id);
                bare.push(&document[start..end]);
            }
            bare.retain(|document| !document.is_empty());
            let documents: Vec<u64> = bare.iter().map(|each| slow(each, u64_of(each.len()))).collect();
            let kept = |hash: &u64| hash.trailing_zeros() >= zeros && *hash <= most;
            let runs: Vec<u64> =
                bare.iter().flat_map(|each| each.windows(length)).map(|run| slow(run, 0)).filter(kept).collect();
            prop_assert_eq!(found.documents, documents);
            prop_assert_eq!(found.sizes, bare.iter().map(|each| i64::try_from(each.len()).unwrap()).collect::<Vec<_>>());
            prop_assert_eq!(found.runs, runs);
        }
    }

    #[test]
    fn edges_outside_are_refused() {
        let runs = Runs { length: 2, zeros: 0, most: u64::MAX };
        for edges in [vec![0, 4], vec![2, 1], vec![1, u64::MAX]] {
            assert!(matches!(hash_documents(&[1, 2, 3], &edges, None, runs), Err(Error::Argument { .. })));
        }
        assert!(hash_documents(&[1], &[0, 1], None, Runs { length: 0, ..runs }).is_err());
        assert_eq!(INVERSE.wrapping_mul(GAMMA), 1);
    }
}
