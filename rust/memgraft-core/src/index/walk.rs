//! Reading tokens with an index: whole batches, and one token for each sequence.

use super::Index;
use crate::batch::{self, Bounds, Layer, Limits, Options, Tokens, Unknown};
use crate::ids::{StateId, row_as_i32, saturating_u32};
use crate::{Error, Result, stop};

/// Sequences whose lines are asked for before the first is read.
const ADVANCE_AHEAD: usize = 24;
/// Turns of so many sequences between two looks whether the caller still waits.
const ADVANCE_TURNS: usize = 1 << 12;

impl Index {
    /// Fills `rows` (-1 at a miss) and `orders` (0 at a miss) for every position of `tokens`.
    ///
    /// # Errors
    /// [`Error::Token`] for a token outside the vocabulary, unless `unknown` lets it miss;
    /// [`Error::Argument`] where lengths differ; [`Error::Format`] in a damaged file.
    pub fn lookup(
        &self,
        tokens: &[u32],
        bounds: &Bounds<'_>,
        unknown: Unknown,
        rows: &mut [i32],
        orders: &mut [u8],
        options: Options,
    ) -> Result<()> {
        let tokens = Tokens::check(tokens, self.vocab_size(), bounds, unknown)?;
        self.lookup_tokens(&tokens, bounds, rows, orders, options)
    }

    /// [`Index::lookup`] of checked ids of any integer type.
    ///
    /// # Errors
    /// [`Error::Argument`] where lengths differ or the ids were checked against another vocabulary;
    /// [`Error::Format`] in a damaged file.
    pub fn lookup_tokens(
        &self,
        tokens: &Tokens<'_>,
        bounds: &Bounds<'_>,
        rows: &mut [i32],
        orders: &mut [u8],
        options: Options,
    ) -> Result<()> {
        match batch::lookup(&[self.layer(0)], None, tokens, bounds, rows, orders, options)? {
            None => Ok(()),
            Some(_) => Err(self.damaged()),
        }
    }

    /// Reads one token for each sequence: `states` move on in place, `rows` and `orders` are filled.
    ///
    /// Nothing is changed on an error.
    ///
    /// # Errors
    /// [`Error::Argument`] for a state that is not of this index, [`Error::Token`] as in [`Index::lookup`],
    /// [`Error::Format`] in a damaged file.
    pub fn advance(
        &self,
        states: &mut [StateId],
        tokens: &[u32],
        unknown: Unknown,
        rows: &mut [i32],
        orders: &mut [u8],
    ) -> Result<()> {
        self.advance_tokens(
            states,
            &Tokens::check(tokens, self.vocab_size(), &Bounds::default(), unknown)?,
            rows,
            orders,
        )
    }

    /// [`Index::advance`] by checked ids of any integer type.
    ///
    /// # Errors
    /// As [`Index::advance`], [`Error::Argument`] where the ids were checked against another vocabulary, and
    /// [`Error::Interrupted`] where the caller has asked the work to end.
    pub fn advance_tokens(
        &self,
        states: &mut [StateId],
        checked: &Tokens<'_>,
        rows: &mut [i32],
        orders: &mut [u8],
    ) -> Result<()> {
        checked.check_vocab_size(self.vocab_size())?;
        checked.check_lengths([("states", states.len()), ("rows", rows.len()), ("orders", orders.len())])?;
        let view = self.table.view();
        if let Some(at) = states.iter().position(|&state| !view.owns(state)) {
            let message = format!(
                "states[{at}]: {} is no state of index {}; start again with start(), and keep states with their index",
                states[at].0,
                self.fingerprint()
            );
            return Err(Error::argument(message));
        }
        let limits = self.limits();
        let mut found = Vec::with_capacity(checked.len());
        let mut ahead = [0; ADVANCE_AHEAD];
        for (turn, states) in (1..).zip(states.chunks(ADVANCE_AHEAD)) {
            if usize::is_multiple_of(turn, ADVANCE_TURNS) {
                stop::check()?;
            }
            checked.read(found.len()..found.len() + states.len(), &mut ahead[..states.len()]);
            let tokens = &ahead[..states.len()];
            states.iter().zip(tokens).for_each(|(&state, &token)| view.expect(view.locate(state.0, token)));
            for (&state, &token) in states.iter().zip(tokens) {
                // A state out of the table is damage; the next token would take it for the caller's mistake.
                let one = self.table.step(state, token).filter(|&one| limits.allow(one) && view.owns(one.state));
                found.push(one.ok_or_else(|| self.damaged())?);
            }
        }
        for (i, found) in found.iter().enumerate() {
            states[i] = found.state;
            rows[i] = row_as_i32(found.row);
            orders[i] = found.order;
        }
        Ok(())
    }

    /// What a lookup walks, with rows counted from `first_row`.
    pub(crate) fn layer(&self, first_row: i32) -> Layer<'_> {
        Layer { table: &self.table, limits: self.limits(), first_row }
    }

    pub(super) fn limits(&self) -> Limits {
        Limits { num_keys: saturating_u32(self.num_keys()), max_order: saturating_u32(self.max_order()) }
    }
}
