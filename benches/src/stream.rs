//! Token streams to look up: a part of a Megatron corpus, whole documents.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use crate::Fallible;

/// Tokens with the starts of their documents and one end.
#[derive(Debug, Clone)]
pub struct Stream {
    /// Flat token ids.
    pub tokens: Vec<u32>,
    /// Ascending starts, and the number of tokens at the end.
    pub starts: Vec<u64>,
}

impl Stream {
    /// The last documents of the corpus at `stem` (`.bin` and `.idx`, uint16), at least `num_tokens` tokens.
    ///
    /// # Errors
    /// A file that is missing or of another layout.
    pub fn tail(stem: &Path, num_tokens: usize) -> Fallible<Self> {
        let index = std::fs::read(stem.with_extension("idx"))?;
        let fields: Option<([u8; 8], u8)> =
            index.get(18..26).and_then(|bytes| bytes.try_into().ok()).zip(index.get(17).copied());
        let Some((sequences, code)) = fields.filter(|_| index.starts_with(b"MMIDIDX\0\0")) else {
            return Err(format!("{}: expected a Megatron index", stem.display()).into());
        };
        if code != 8 {
            return Err(format!("{}: expected dtype code 8 (uint16), got {code}", stem.display()).into());
        }
        let sequences = u64::from_le_bytes(sequences) as usize;
        let lengths = index.get(34..34 + 4 * sequences).ok_or("the Megatron index is shorter than it says")?;
        let lengths: Vec<u64> =
            lengths.as_chunks::<4>().0.iter().map(|&bytes| u64::from(u32::from_le_bytes(bytes))).collect();
        let (mut taken, mut first) = (0u64, sequences);
        while first > 0 && taken < num_tokens as u64 {
            first -= 1;
            taken += lengths[first];
        }
        let mut starts = vec![0];
        starts.extend(lengths[first..].iter().scan(0, |at, &n| {
            *at += n;
            Some(*at)
        }));
        let mut file = File::open(stem.with_extension("bin"))?;
        file.seek(SeekFrom::End(-i64::try_from(taken * 2)?))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let tokens = bytes.as_chunks::<2>().0.iter().map(|&pair| u32::from(u16::from_le_bytes(pair))).collect();
        Ok(Self { tokens, starts })
    }

    /// Segment ids, one a token.
    #[must_use]
    pub fn segment_ids(&self) -> Vec<i64> {
        let mut ids = Vec::with_capacity(self.tokens.len());
        for (i, pair) in self.starts.windows(2).enumerate() {
            ids.resize(pair[1] as usize, i as i64);
        }
        ids
    }
}
