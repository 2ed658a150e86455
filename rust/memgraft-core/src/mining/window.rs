//! N-grams as integers: the tokens that start at a position, packed so that
//! the order of the integers is the order of the tuples.

use crate::ids::{MAX_ORDER, low_u32, usize_of};

/// A number for each order, from 0.
pub(super) type Orders = [u64; MAX_ORDER + 1];

/// Words of the widest key.
pub(super) const MAX_WORDS: usize = 6;

const _: () = assert!(MAX_WORDS == 6, "`with_words` has an arm for each number of words");

/// Evaluates `$run`, in which the constant `$W` is the number of words of `$packing`'s keys.
macro_rules! with_words {
    (@ $words:literal, $W:ident => $run:expr) => {{
        const $W: usize = $words;
        $run
    }};
    ($packing:expr, $W:ident => $run:expr) => {
        match $packing.words() {
            1 => with_words!(@ 1, $W => $run),
            2 => with_words!(@ 2, $W => $run),
            3 => with_words!(@ 3, $W => $run),
            4 => with_words!(@ 4, $W => $run),
            5 => with_words!(@ 5, $W => $run),
            6 => with_words!(@ 6, $W => $run),
            words => unreachable!("a key has at most 6 words, found {words}"),
        }
    };
}
pub(super) use with_words;

/// A packed n-gram: token `i` plus one in slot `i`, from the most significant bits down; zero where it has ended.
pub(super) type Key<const W: usize> = [u64; W];

/// What the keys of a batch have in common: their bits, and the slots that none of them leaves empty.
#[derive(Debug, Clone, Copy)]
pub(super) struct Common<const W: usize> {
    any: Key<W>,
    full: Key<W>,
}

impl<const W: usize> Common<W> {
    /// Of no keys.
    pub(super) fn new() -> Self {
        Self { any: [0; W], full: [u64::MAX; W] }
    }
}

/// How tokens lie in a [`Key`]: `per_word` slots of `bits`, none across two words.
#[derive(Debug, Clone, Copy)]
pub(super) struct Packing {
    bits: u32,
    per_word: usize,
    max_order: usize,
    last_mask: u64,
    /// 2^16 over `bits`, rounded up: exact for what [`Packing::slots`] divides.
    reciprocal: u32,
    /// The highest bit of each slot of a word, and the bits of no slot.
    tops: u64,
    spare: u64,
}

impl Packing {
    pub(super) fn new(vocab_size: u32, max_order: usize) -> Self {
        // Slots hold token + 1, so `vocab_size` itself must fit.
        let bits = u32::BITS - vocab_size.leading_zeros();
        let per_word = usize_of(u64::BITS / bits);
        let in_last = max_order - (max_order.div_ceil(per_word) - 1) * per_word;
        let used = bits * low_u32(crate::ids::u64_of(in_last));
        let last_mask = if used == 64 { u64::MAX } else { !(u64::MAX >> used) };
        let tops = (0..low_u32(crate::ids::u64_of(per_word))).fold(0, |tops, slot| tops | 1 << (63 - slot * bits));
        let filled = bits * low_u32(crate::ids::u64_of(per_word));
        let spare = if filled == 64 { 0 } else { u64::MAX >> filled };
        Self { bits, per_word, max_order, last_mask, reciprocal: (1u32 << 16).div_ceil(bits), tops, spare }
    }

    /// Bytes of the last word in which no token lies.
    pub(super) fn unused_bytes(&self) -> usize {
        usize_of(self.last_mask.trailing_zeros() / 8)
    }

    /// Whole slots in `bits`, at most 64 of them: a division, which processors are slow at.
    #[inline]
    fn slots(&self, bits: u32) -> usize {
        usize_of((bits * self.reciprocal) >> 16)
    }

    /// The first token.
    #[inline]
    pub(super) fn first_token<const W: usize>(&self, key: &Key<W>) -> Option<u32> {
        low_u32(key[0] >> (u64::BITS - self.bits)).checked_sub(1)
    }

    /// Words that a key of `max_order` tokens takes.
    pub(super) fn words(&self) -> usize {
        self.max_order.div_ceil(self.per_word)
    }

    /// Bits of a slot.
    pub(super) fn token_bits(&self) -> u32 {
        self.bits
    }

    pub(super) fn max_order(&self) -> usize {
        self.max_order
    }

    fn slot_mask(&self) -> u64 {
        (1 << self.bits) - 1
    }

    fn shift(&self, slot: usize) -> u32 {
        u64::BITS - self.bits * (low_u32(crate::ids::u64_of(slot)) + 1)
    }

    /// The key that starts one position earlier, with `token`; its last token falls off.
    #[inline]
    pub(super) fn prepend<const W: usize>(&self, key: &Key<W>, token: u32) -> Key<W> {
        let mut out = [0; W];
        let mut carry = u64::from(token) + 1;
        for word in 0..W {
            let used = self.bits * low_u32(crate::ids::u64_of(self.per_word));
            let keep = if used == 64 { u64::MAX } else { !(u64::MAX >> used) };
            out[word] = ((key[word] >> self.bits) & keep) | (carry << (u64::BITS - self.bits));
            carry = (key[word] >> (u64::BITS - used)) & self.slot_mask();
        }
        out[W - 1] &= self.last_mask;
        out
    }

    /// Token `slot` of `key`, if it has that many.
    #[inline]
    pub(super) fn token<const W: usize>(&self, key: &Key<W>, slot: usize) -> Option<u32> {
        let value = (key[slot / self.per_word] >> self.shift(slot % self.per_word)) & self.slot_mask();
        low_u32(value).checked_sub(1)
    }

    /// Number of tokens.
    #[inline]
    pub(super) fn len<const W: usize>(&self, key: &Key<W>) -> usize {
        let Some(word) = key.iter().rposition(|&word| word != 0) else { return 0 };
        let unset = key[word].trailing_zeros().saturating_sub(self.spare.count_ones());
        (word + 1) * self.per_word - self.slots(unset)
    }

    /// Number of leading tokens that `a` and `b` share; at least their length where they are equal.
    #[inline]
    pub(super) fn shared<const W: usize>(&self, a: &Key<W>, b: &Key<W>) -> usize {
        for word in 0..W {
            let differ = a[word] ^ b[word];
            if differ != 0 {
                return word * self.per_word + self.slots(differ.leading_zeros());
            }
        }
        self.max_order
    }

    /// The first `len` tokens of `key`.
    pub(super) fn prefix<const W: usize>(&self, key: &Key<W>, len: usize) -> Key<W> {
        let mut out = [0; W];
        for (word, slot) in out.iter_mut().enumerate() {
            let kept = len.saturating_sub(word * self.per_word).min(self.per_word);
            let used = self.bits * low_u32(crate::ids::u64_of(kept));
            *slot = match used {
                0 => 0,
                64 => key[word],
                _ => key[word] & !(u64::MAX >> used),
            };
        }
        out
    }

    /// The key of `tokens`, at most `max_order` of them.
    pub(super) fn pack<const W: usize>(&self, tokens: &[u32]) -> Key<W> {
        tokens.iter().rev().fold([0; W], |key, &token| self.prepend(&key, token))
    }

    /// The tokens of `key`.
    pub(super) fn tokens<'k, const W: usize>(&self, key: &'k Key<W>) -> impl Iterator<Item = u32> + use<'k, W> {
        let packing = *self;
        (0..self.len(key)).filter_map(move |slot| packing.token(key, slot))
    }

    /// Whether no bit lies outside the slots and no slot is empty before a filled one.
    #[inline]
    pub(super) fn is_whole<const W: usize>(&self, key: &Key<W>) -> bool {
        let mut outside = key[W - 1] & !self.last_mask;
        let mut before = true;
        for &word in key {
            outside |= word & self.spare;
            // Adding all bits of a slot but the highest carries into the highest from any other.
            let low = !self.tops & !self.spare;
            let filled = (((word & low).wrapping_add(low)) | word) & self.tops;
            // A filled slot has a filled one before it.
            let gaps = (filled << self.bits) & self.tops & !filled;
            outside |= gaps | u64::from(!before && filled != 0);
            before = filled == self.tops;
        }
        outside == 0
    }

    /// Adds `key` to what is known of a batch.
    #[inline]
    pub(super) fn add<const W: usize>(&self, common: &mut Common<W>, key: &Key<W>) {
        let low = !self.tops & !self.spare;
        for ((word, any), full) in key.iter().zip(&mut common.any).zip(&mut common.full) {
            *any |= word;
            // The highest bit of a slot stays set while no slot of any key was empty, as in `is_whole`.
            *full &= (word & low).wrapping_add(low) | word;
        }
    }

    /// Whether every key of the batch has `max_order` tokens and nothing else: then all are whole.
    pub(super) fn all_longest<const W: usize>(&self, common: &Common<W>) -> bool {
        let last = W - 1;
        (0..W).all(|word| {
            let slots = if word == last { self.tops & self.last_mask } else { self.tops };
            let outside = if word == last { self.spare | !self.last_mask } else { self.spare };
            common.any[word] & outside == 0 && common.full[word] & slots == slots
        })
    }

    /// The smallest key whose first token is `token`.
    pub(super) fn first<const W: usize>(&self, token: u32) -> Key<W> {
        let mut out = [0; W];
        out[0] = (u64::from(token) + 1) << (u64::BITS - self.bits);
        out
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pack<const W: usize>(packing: &Packing, tokens: &[u32]) -> Key<W> {
        tokens.iter().rev().fold([0; W], |key, &token| packing.prepend(&key, token))
    }

    /// A key in which no bit is set but those of its leading tokens.
    fn slowly_whole<const W: usize>(packing: &Packing, key: &Key<W>) -> bool {
        let tokens: Vec<u32> = (0..packing.max_order()).map_while(|slot| packing.token(key, slot)).collect();
        *key == pack::<W>(packing, &tokens)
    }

    fn check<const W: usize>(packing: &Packing, a: &[u32], b: &[u32], flip: usize) {
        let max_order = packing.max_order();
        let cut = |tokens: &[u32]| tokens[..tokens.len().min(max_order)].to_vec();
        let (ka, kb) = (pack::<W>(packing, a), pack::<W>(packing, b));
        let mut flipped = ka;
        flipped[flip / 64 % W] ^= 1 << (flip % 64);
        let (a, b) = (cut(a), cut(b));
        assert_eq!(packing.len(&ka), a.len());
        assert_eq!((0..packing.len(&ka)).map(|i| packing.token(&ka, i).unwrap()).collect::<Vec<_>>(), a);
        assert_eq!(ka.cmp(&kb), a.cmp(&b));
        let shared = a.iter().zip(&b).take_while(|(x, y)| x == y).count();
        assert_eq!(packing.shared(&ka, &kb).min(a.len()).min(b.len()), shared);
        for len in 0..=a.len() {
            assert_eq!(packing.prefix(&ka, len), pack::<W>(packing, &a[..len]));
        }
        assert_eq!(packing.first_token(&ka), a.first().copied());
        for bit in 0..64 * u32::try_from(W).unwrap() {
            for base in [ka, kb, [0; W], packing.prefix(&ka, 1)] {
                let mut key = base;
                key[usize_of(bit / 64)] ^= 1 << (bit % 64);
                assert_eq!(packing.is_whole(&key), slowly_whole(packing, &key), "{key:x?}");
            }
        }
        assert!(packing.is_whole(&ka) && packing.is_whole(&kb) && packing.is_whole::<W>(&[0; W]));
        for keys in [&[ka][..], &[kb, ka], &[ka, flipped, kb]] {
            let mut common = Common::new();
            keys.iter().for_each(|key| packing.add(&mut common, key));
            let longest =
                keys.iter().all(|key| slowly_whole(packing, key) && packing.token(key, max_order - 1).is_some());
            assert_eq!(packing.all_longest(&common), longest, "{keys:x?}");
        }
        if let Some(&first) = a.first() {
            assert!(packing.first::<W>(first) <= ka);
        }
    }

    proptest! {
        #[test]
        fn packing_keeps_the_order_of_tuples(
            vocab_size in prop::sample::select(vec![1u32, 2, 255, 256, 50257, 65535, 65536, 1 << 20]),
            max_order in 1usize..=16,
            a in prop::collection::vec(any::<u32>(), 0..20),
            b in prop::collection::vec(any::<u32>(), 0..20),
            share in 0usize..20,
            flip in 0usize..384,
        ) {
            let packing = Packing::new(vocab_size, max_order);
            let a: Vec<u32> = a.iter().map(|token| token % vocab_size).collect();
            let mut b: Vec<u32> = b.iter().map(|token| token % vocab_size).collect();
            let share = share.min(a.len()).min(b.len());
            b[..share].copy_from_slice(&a[..share]);
            with_words!(packing, W => check::<W>(&packing, &a, &b, flip));
        }
    }
}
