//! Small numbers in four-bit groups (three bits and a "more" bit, low group
//! first), with a stored offset every 128 numbers.

use crate::format::Store;
use crate::ids::{u64_of, usize_of_u64};

const SAMPLE: usize = 128;
/// Words before the samples: n, number of groups.
const HEAD: usize = 2;

/// The numbers; words as in `docs/FORMAT.md`.
#[derive(Debug, Clone)]
pub(crate) struct Nibbles {
    words: Store<u64>,
    len: usize,
    groups: usize,
    data: usize,
}

impl Nibbles {
    /// Encodes `values`.
    pub fn encode(values: impl Iterator<Item = u64>) -> Vec<u64> {
        let (mut samples, mut data, mut groups, mut len) = (Vec::new(), Vec::new(), 0usize, 0usize);
        // The word being filled; a local, since most numbers are one group and a store for each costs more than it.
        let mut word = 0;
        for mut value in values {
            if len % SAMPLE == 0 {
                samples.push(u64_of(groups));
            }
            len += 1;
            loop {
                let more = value > 7;
                word |= (value & 7 | u64::from(more) << 3) << (4 * (groups % 16));
                groups += 1;
                if groups % 16 == 0 {
                    data.push(std::mem::take(&mut word));
                }
                value >>= 3;
                if !more {
                    break;
                }
            }
        }
        if groups % 16 != 0 {
            data.push(word);
        }
        let mut words = vec![u64_of(len), u64_of(groups)];
        words.append(&mut samples);
        words.append(&mut data);
        words
    }

    /// The numbers in `words`; `None` if the lengths contradict each other.
    pub fn new(words: Store<u64>) -> Option<Self> {
        let &[n, groups] = words.first_chunk::<HEAD>()?;
        let (len, groups) = (usize::try_from(n).ok()?, usize::try_from(groups).ok()?);
        let data = HEAD.checked_add(len.div_ceil(SAMPLE))?;
        (data.checked_add(groups.div_ceil(16))? == words.len()).then_some(Self { words, len, groups, data })
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// The number at group `at`, and the group after it; `None` past the end or beyond 64 bits.
    fn read(&self, mut at: usize) -> Option<(u64, usize)> {
        let mut value = 0u64;
        for shift in (0..66).step_by(3) {
            if at >= self.groups {
                return None;
            }
            let group = self.words[self.data + at / 16] >> (4 * (at % 16)) & 15;
            at += 1;
            value |= (group & 7) << shift;
            if group & 8 == 0 {
                return Some((value, at));
            }
        }
        None
    }

    /// The `i`-th number; `None` past the end or in damaged groups.
    pub fn get(&self, i: usize) -> Option<u64> {
        if i >= self.len {
            return None;
        }
        let mut at = usize_of_u64(self.words[HEAD + i / SAMPLE]);
        for _ in 0..i % SAMPLE {
            at = self.read(at)?.1;
        }
        self.read(at).map(|(value, _)| value)
    }

    /// All numbers in order; ends early in damaged groups.
    pub fn iter(&self) -> impl Iterator<Item = u64> {
        let mut at = 0;
        (0..self.len).map_while(move |_| {
            let (value, next) = self.read(at)?;
            at = next;
            Some(value)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_comes_back() {
        let values: Vec<u64> =
            (0..1000u64).map(|i| (i * i * i % 4099) >> (i % 12)).chain([0, 7, 8, u64::MAX >> 1, u64::MAX]).collect();
        let coded = Nibbles::new(Store::from(Nibbles::encode(values.iter().copied()))).unwrap();
        assert_eq!(coded.iter().collect::<Vec<_>>(), values);
        for (i, &value) in values.iter().enumerate() {
            assert_eq!(coded.get(i), Some(value));
        }
        assert_eq!(coded.get(values.len()), None);
        let empty = Nibbles::new(Store::from(Nibbles::encode(std::iter::empty()))).unwrap();
        assert_eq!((empty.len(), empty.get(0)), (0, None));
    }
}
