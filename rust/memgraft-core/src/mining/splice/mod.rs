//! Run files merged as they lie: records are copied, not taken apart.
//!
//! A record says how many bytes of its key it shares with the one before and gives the others. Of two records that both
//! say so of the *same* record before them, the one that shares more comes first, and of two that share as much the one
//! whose next bytes are smaller: their *codes* compare as their keys do. What the later one shares with the earlier
//! follows from where the codes differ, so that the next comparison needs nothing else. This is offset-value coding
//! (Conner, IBM Technical Disclosure Bulletin 20 (7), 1977; Graefe and Do, "Offset-value coding in database query
//! processing", EDBT 2023). [`super::stream`] joins the same records decoded, for those who count them.
//!
//! Checked on the way: checksums, the order of keys and tags, tags, counts, first tokens. That no key has a hole is seen
//! by who decodes keys: [`super::RunSet::verify`] and a selection.

mod ahead;
mod pair;
mod pick;
mod plain;
mod shape;
mod side;
#[cfg(test)]
mod tests;

pub(super) use ahead::MOST_RECORDS;
pub(super) use pair::{CAPACITY, Splice, fits, most};

/// Evaluates `$run`, in which the constant `$C` is the number of 16 bytes in which a record of `$packing`'s keys lies,
/// unless tag or count is large.
macro_rules! with_chunks {
    ($packing:expr, $C:ident => $run:expr) => {{
        match $crate::mining::codec::KeyBytes::of($packing).num {
            0..=13 => {
                const $C: usize = 1;
                $run
            }
            14..=29 => {
                const $C: usize = 2;
                $run
            }
            _ => {
                const $C: usize = 4;
                $run
            }
        }
    }};
}
pub(super) use with_chunks;
