//! Which of several sorted streams has the smallest head: a tree of losers (Knuth, TAOCP volume 3, section 5.4.1).

#![forbid(unsafe_code)]

/// Contenders are 0 to `losers.len() - 1`; node `n` has the nodes `2n` and `2n + 1` below it, contender `i` is leaf
/// `losers.len() + i`.
pub(super) struct Tournament {
    /// By node, from 1: who lost there.
    losers: Vec<usize>,
    winner: usize,
}

impl Tournament {
    /// Plays all matches of at least one contender; `less(a, b)` says whether `a` wins against `b`.
    pub(super) fn new(contenders: usize, less: impl Fn(usize, usize) -> bool) -> Self {
        let mut losers = vec![0; contenders];
        let mut winners: Vec<usize> = (0..2 * contenders).map(|node| node.saturating_sub(contenders)).collect();
        for node in (1..contenders).rev() {
            let (a, b) = (winners[2 * node], winners[2 * node + 1]);
            (winners[node], losers[node]) = if less(b, a) { (b, a) } else { (a, b) };
        }
        Self { winner: if contenders > 1 { winners[1] } else { 0 }, losers }
    }

    #[inline]
    pub(super) fn winner(&self) -> usize {
        self.winner
    }

    /// Plays the winner's matches again: its head is another one.
    #[inline]
    pub(super) fn replay(&mut self, less: impl Fn(usize, usize) -> bool) {
        let mut node = (self.losers.len() + self.winner) / 2;
        while node > 0 {
            if less(self.losers[node], self.winner) {
                std::mem::swap(&mut self.losers[node], &mut self.winner);
            }
            node /= 2;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn streams_come_out_sorted_and_equal_heads_by_stream(
            mut streams in prop::collection::vec(prop::collection::vec(0u8..20, 0..12), 1..12),
        ) {
            let mut expected = Vec::new();
            for (index, stream) in streams.iter_mut().enumerate() {
                stream.sort_unstable();
                expected.extend(stream.iter().map(|&value| (value, index)));
                stream.reverse();
            }
            expected.sort_unstable();
            let next = |streams: &mut Vec<Vec<u8>>, index: usize| streams[index].pop().map_or(255, u16::from);
            let mut heads: Vec<u16> = (0..streams.len()).map(|index| next(&mut streams, index)).collect();
            let mut tree = Tournament::new(heads.len(), |a, b| (heads[a], a) < (heads[b], b));
            let mut found = Vec::new();
            while heads[tree.winner()] < 255 {
                let winner = tree.winner();
                found.push((u8::try_from(heads[winner]).unwrap(), winner));
                heads[winner] = next(&mut streams, winner);
                tree.replay(|a, b| (heads[a], a) < (heads[b], b));
            }
            prop_assert_eq!(found, expected);
        }
    }
}
