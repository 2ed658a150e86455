//! A strictly ascending sequence in 2 + log2(universe / n) bits an element,
//! with access to any element.

use crate::format::Store;
use crate::ids::{u64_of, usize_of_u64};

/// Elements between two stored positions of the high part.
const SAMPLE: usize = 256;
/// Words before the low part: n, universe, low bits, high words.
const HEAD: usize = 4;

/// The sequence; words as in `docs/FORMAT.md`.
#[derive(Debug, Clone)]
pub(crate) struct EliasFano {
    words: Store<u64>,
    len: usize,
    low_bits: u32,
    /// First word of the high part and of the samples.
    high: usize,
    samples: usize,
}

impl EliasFano {
    /// Encodes `values`, strictly ascending and below `universe`.
    pub fn encode(values: impl ExactSizeIterator<Item = u64>, universe: u64) -> Vec<u64> {
        let n = values.len();
        let low_bits = (universe / u64_of(n.max(1))).checked_ilog2().unwrap_or(0);
        let low_words = (n * crate::ids::usize_of(low_bits)).div_ceil(64);
        let high_words = (n + usize_of_u64(universe >> low_bits) + 1).div_ceil(64);
        let (high, samples) = (HEAD + low_words, HEAD + low_words + high_words);
        let mut words = vec![0u64; samples + n.div_ceil(SAMPLE)];
        words[..HEAD].copy_from_slice(&[u64_of(n), universe, u64::from(low_bits), u64_of(high_words)]);
        for (i, value) in values.enumerate() {
            let low = value & ((1u64 << low_bits) - 1);
            let at = i * crate::ids::usize_of(low_bits);
            words[HEAD + at / 64] |= if low_bits > 0 { low << (at % 64) } else { 0 };
            if at % 64 + crate::ids::usize_of(low_bits) > 64 {
                words[HEAD + at / 64 + 1] |= low >> (64 - at % 64);
            }
            let bit = usize_of_u64(value >> low_bits) + i;
            words[high + bit / 64] |= 1 << (bit % 64);
            if i % SAMPLE == 0 {
                words[samples + i / SAMPLE] = u64_of(bit);
            }
        }
        words
    }

    /// The sequence in `words`; `None` if the lengths contradict each other.
    pub fn new(words: Store<u64>) -> Option<Self> {
        let &[n, universe, low_bits, high_words] = words.first_chunk::<HEAD>()?;
        let low_bits = u32::try_from(low_bits).ok().filter(|&bits| bits < 64)?;
        let len = usize::try_from(n).ok().filter(|&len| len <= crate::ids::usize_of(u32::MAX))?;
        let low_words = (len * crate::ids::usize_of(low_bits)).div_ceil(64);
        let wanted = (n.checked_add(universe >> low_bits)?.checked_add(1)?).div_ceil(64);
        let high = HEAD + low_words;
        let samples = high.checked_add(usize::try_from(high_words).ok()?)?;
        let whole = high_words == wanted && samples.checked_add(len.div_ceil(SAMPLE))? == words.len();
        whole.then_some(Self { words, len, low_bits, high, samples })
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn words(&self) -> &[u64] {
        &self.words
    }

    fn low(&self, i: usize) -> u64 {
        if self.low_bits == 0 {
            return 0;
        }
        let width = crate::ids::usize_of(self.low_bits);
        let (word, shift) = (HEAD + i * width / 64, i * width % 64);
        let mut value = self.words[word] >> shift;
        if shift + width > 64 {
            value |= self.words[word + 1] << (64 - shift);
        }
        value & ((1 << self.low_bits) - 1)
    }

    /// The `i`-th value; `None` past the end or where the high part is damaged.
    pub fn get(&self, i: usize) -> Option<u64> {
        if i >= self.len {
            return None;
        }
        let high = &self.words[self.high..self.samples];
        let start = usize::try_from(self.words[self.samples + i / SAMPLE]).ok()?;
        let mut wanted = i % SAMPLE;
        let mut at = start / 64;
        let mut word = high.get(at)? & (u64::MAX << (start % 64));
        loop {
            let ones = crate::ids::usize_of(word.count_ones());
            if wanted < ones {
                break;
            }
            wanted -= ones;
            at += 1;
            word = *high.get(at)?;
        }
        for _ in 0..wanted {
            word &= word - 1;
        }
        let bit = at * 64 + crate::ids::usize_of(word.trailing_zeros());
        Some(u64_of(bit.checked_sub(i)?) << self.low_bits | self.low(i))
    }

    /// All values in order; ends early where the high part is damaged.
    pub fn iter(&self) -> impl Iterator<Item = u64> {
        let high = &self.words[self.high..self.samples];
        let ones = high.iter().enumerate().flat_map(|(at, &word)| {
            let mut rest = word;
            std::iter::from_fn(move || {
                let bit = (rest != 0).then(|| at * 64 + crate::ids::usize_of(rest.trailing_zeros()))?;
                rest &= rest - 1;
                Some(bit)
            })
        });
        (0..self.len).zip(ones).map_while(|(i, bit)| Some(u64_of(bit.checked_sub(i)?) << self.low_bits | self.low(i)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_comes_back() {
        for (n, step, universe) in
            [(0u64, 1u64, 5u64), (1, 1, 1), (1, 7, 1 << 52), (700, 1, 700), (5000, 3, 15_000), (3000, 999_983, 1 << 52)]
        {
            let values: Vec<u64> = (0..n).map(|i| i * step + (i * i % step.min(97)).min(step - 1)).collect();
            let coded = EliasFano::new(Store::from(EliasFano::encode(values.iter().copied(), universe))).unwrap();
            assert_eq!(coded.iter().collect::<Vec<_>>(), values);
            for (i, &value) in values.iter().enumerate() {
                assert_eq!(coded.get(i), Some(value));
            }
            assert_eq!(coded.get(values.len()), None);
        }
    }

    #[test]
    fn refuses_broken_lengths() {
        let words = EliasFano::encode((0..1000u32).map(|i| u64::from(i) * 9), 9000);
        for at in 0..HEAD {
            for wrong in [0, 1, 63, 64, u64::MAX] {
                let mut broken = words.clone();
                if broken[at] == wrong {
                    continue;
                }
                broken[at] = wrong;
                if let Some(coded) = EliasFano::new(Store::from(broken)) {
                    assert!(coded.iter().count() <= 1000);
                }
            }
        }
        assert!(EliasFano::new(Store::from(words[..words.len() - 1].to_vec())).is_none());
    }
}
