//! What a run file says about itself, as JSON.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::fingerprint::Fingerprint;
use crate::format::CREATOR;
use crate::ids::{MAX_ORDER, MAX_VOCAB_SIZE, fit_u32, u64_of, usize_of_u64};
use crate::mining::codec::KeyBytes;
use crate::mining::window::Packing;
use crate::{Error, Result};

/// Sums of all shards stay below this, so that no sum of counts overflows.
const MAX_SUM: u64 = 1 << 62;

/// A stretch of whole documents of which a part holds all n-grams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shard {
    /// Which of the `world` shards of the corpus this is.
    pub rank: u64,
    /// Fingerprint of its tokens and documents.
    pub fingerprint: Fingerprint,
    /// Its tokens.
    pub num_tokens: u64,
    /// Its documents, empty ones included.
    pub num_documents: u64,
    /// `fits[n - 1]`: positions where an n-gram of order `n` fits.
    pub fits: Vec<u64>,
    /// Hashes of the corpus's leaves of 2^20 tokens that start in the shard; none where shards are corpora of their own.
    pub leaves: Vec<Fingerprint>,
    /// Hash of the leaf that its first token lies in, where that leaf starts in a shard before it.
    pub shared_leaf: Option<Fingerprint>,
    /// Where the lengths of its documents lie: offset, bytes, BLAKE3.
    pub lengths: (u64, u64, Fingerprint),
}

/// What a run file holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Every token is smaller than this.
    pub vocab_size: u32,
    /// Longest n-gram of a record.
    pub max_order: usize,
    /// Tokens that end every n-gram, ascending.
    pub reserved: Vec<u32>,
    /// First tokens of its n-grams: from, to.
    pub tokens: (u32, u32),
    /// Records.
    pub num_records: u64,
    /// Shards that the corpus was cut into.
    pub world: u64,
    /// Whether the shards are corpora of their own, not stretches of one.
    pub apart: bool,
    /// What every rank knows of the whole corpus: [`crate::corpus::Corpus::outline`]; none where shards are corpora of their
    /// own, and in files of before.
    pub outline: Option<Fingerprint>,
    /// What the caller wants equal in all parts: JSON.
    pub settings: Value,
    /// What is in it; empty in the blocks of an unfinished part.
    pub shards: Vec<Shard>,
    /// Blocks of an unfinished part: positions from, to of each stretch.
    pub pieces: Vec<(u64, u64)>,
    /// Blocks: documents that are in several of them, by the number that tags have beyond `max_order + 1`.
    pub longs: Vec<u64>,
    /// Blocks: the shard they are of.
    pub block_of: Option<Fingerprint>,
}

impl Facts {
    /// Names what a file with these facts holds, for a writer that goes on.
    pub(in crate::mining) fn identity(&self) -> String {
        self.encode()
    }

    pub(super) fn encode(&self) -> String {
        let shards: Vec<Value> = self.shards.iter().map(Shard::encode).collect();
        json!({
            "vocab_size": self.vocab_size,
            "max_order": self.max_order,
            "reserved": self.reserved,
            "tokens": [self.tokens.0, self.tokens.1],
            "num_records": self.num_records,
            "key_bytes": KeyBytes::of(&Packing::new(self.vocab_size, self.max_order)).num,
            "world": self.world,
            "apart": self.apart,
            "outline": self.outline.map(|outline| outline.to_string()),
            "settings": self.settings,
            "shards": shards,
            "pieces": self.pieces.iter().map(|&(from, to)| json!([from, to])).collect::<Vec<_>>(),
            "longs": self.longs,
            "block_of": self.block_of.map(|block_of| block_of.to_string()),
            "creator": CREATOR,
        })
        .to_string()
    }

    /// Facts, and the bytes of a key in a record, of which version 1.0 said nothing.
    pub(super) fn decode(path: &Path, text: &[u8]) -> Result<(Self, Option<u64>)> {
        let parsed = serde_json::from_slice::<Value>(text).ok();
        let facts = parsed.as_ref().and_then(Value::as_object).and_then(Self::from_json);
        let facts =
            facts.ok_or_else(|| Error::format(path, "the facts of the run file are not what they should be"))?;
        let refuse =
            |what: &str| Err(Error::format(path, format!("the facts of the run file contradict each other: {what}")));
        if facts.vocab_size == 0 || facts.vocab_size > MAX_VOCAB_SIZE || !(1..=MAX_ORDER).contains(&facts.max_order) {
            return refuse("vocabulary size or order");
        }
        let ascending = facts.reserved.windows(2).all(|pair| pair[0] < pair[1]);
        if !ascending || facts.reserved.last().is_some_and(|&token| token >= facts.vocab_size) {
            return refuse("reserved tokens");
        }
        let (from, to) = facts.tokens;
        if from > to || to > facts.vocab_size {
            return refuse("first tokens");
        }
        let ranks = facts.shards.windows(2).all(|pair| pair[0].rank < pair[1].rank);
        if !ranks || facts.shards.last().is_some_and(|shard| shard.rank >= facts.world) {
            return refuse("shards");
        }
        if facts.shards.iter().any(|shard| shard.fits.len() != facts.max_order) || facts.totals().is_none() {
            return refuse("positions");
        }
        if facts.shards.is_empty() == facts.block_of.is_none() {
            return refuse("a part names its shards, a block the shard it is of");
        }
        let sorted = facts.pieces.iter().all(|piece| piece.0 < piece.1)
            && facts.pieces.windows(2).all(|pair| pair[0].1 <= pair[1].0);
        if !sorted || facts.block_of.is_none() && !(facts.pieces.is_empty() && facts.longs.is_empty()) {
            return refuse("pieces");
        }
        Ok((facts, parsed.as_ref().and_then(|map| map.get("key_bytes")?.as_u64())))
    }

    /// Positions by order where an n-gram fits, of all shards; `None` where they are beyond any corpus.
    pub(crate) fn totals(&self) -> Option<[u64; MAX_ORDER + 1]> {
        let mut totals = [0u64; MAX_ORDER + 1];
        for shard in &self.shards {
            for (total, &fits) in totals[1..].iter_mut().zip(&shard.fits) {
                *total = total.checked_add(fits).filter(|&total| total < MAX_SUM)?;
            }
        }
        Some(totals)
    }

    fn from_json(map: &Map<String, Value>) -> Option<Self> {
        let numbers = |name: &str| map.get(name)?.as_array()?.iter().map(Value::as_u64).collect::<Option<Vec<_>>>();
        let small =
            |values: Vec<u64>| values.into_iter().map(|value| u32::try_from(value).ok()).collect::<Option<Vec<_>>>();
        let tokens = small(numbers("tokens")?)?;
        let pair = |value: &Value| match value.as_array()?.as_slice() {
            [from, to] => Some((from.as_u64()?, to.as_u64()?)),
            _ => None,
        };
        Some(Self {
            vocab_size: fit_u32(usize_of_u64(map.get("vocab_size")?.as_u64()?), "vocab_size").ok()?,
            max_order: usize_of_u64(map.get("max_order")?.as_u64()?),
            reserved: small(numbers("reserved")?)?,
            tokens: (*tokens.first()?, *tokens.get(1)?),
            num_records: map.get("num_records")?.as_u64()?,
            world: map.get("world")?.as_u64()?,
            apart: map.get("apart")?.as_bool()?,
            outline: hash_or_none(map.get("outline"))?,
            settings: map.get("settings")?.clone(),
            shards: map.get("shards")?.as_array()?.iter().map(Shard::decode).collect::<Option<_>>()?,
            pieces: map.get("pieces")?.as_array()?.iter().map(pair).collect::<Option<_>>()?,
            longs: numbers("longs")?,
            block_of: hash_or_none(Some(map.get("block_of")?))?,
        })
    }
}

impl Shard {
    fn encode(&self) -> Value {
        json!({
            "rank": self.rank,
            "fingerprint": self.fingerprint.to_string(),
            "num_tokens": self.num_tokens,
            "num_documents": self.num_documents,
            "fits": self.fits,
            "leaves": self.leaves.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "shared_leaf": self.shared_leaf.map(|leaf| leaf.to_string()),
            "lengths": {"offset": self.lengths.0, "bytes": self.lengths.1, "blake3": self.lengths.2.to_string()},
        })
    }

    fn decode(value: &Value) -> Option<Self> {
        let hash = |value: &Value| value.as_str()?.parse().ok();
        let number = |name: &str| value.get(name)?.as_u64();
        let lengths = value.get("lengths")?;
        Some(Self {
            rank: number("rank")?,
            fingerprint: hash(value.get("fingerprint")?)?,
            num_tokens: number("num_tokens")?,
            num_documents: number("num_documents")?,
            fits: value.get("fits")?.as_array()?.iter().map(Value::as_u64).collect::<Option<_>>()?,
            leaves: value.get("leaves")?.as_array()?.iter().map(hash).collect::<Option<_>>()?,
            shared_leaf: hash_or_none(value.get("shared_leaf"))?,
            lengths: (lengths.get("offset")?.as_u64()?, lengths.get("bytes")?.as_u64()?, hash(lengths.get("blake3")?)?),
        })
    }

    /// Whether both are the same stretch of the same corpus, wherever their lengths lie.
    pub(crate) fn same(&self, other: &Self) -> bool {
        let place = |shard: &Self| Self { lengths: (0, shard.lengths.1, shard.lengths.2), ..shard.clone() };
        place(self) == place(other)
    }
}

/// A fingerprint that may be null or absent; `None` where it is neither.
#[allow(clippy::option_option, reason = "what is not there, and what is wrong")]
fn hash_or_none(value: Option<&Value>) -> Option<Option<Fingerprint>> {
    match value {
        None | Some(Value::Null) => Some(None),
        Some(hex) => Some(Some(hex.as_str()?.parse().ok()?)),
    }
}

/// Adds a stretch `from..to` to sorted stretches, joining what touches.
pub(crate) fn add_piece(pieces: &mut Vec<(u64, u64)>, piece: (u64, u64)) {
    let at = pieces.partition_point(|other| other.0 < piece.0);
    pieces.insert(at, piece);
    pieces.dedup_by(|next, kept| {
        let touches = kept.1 == next.0;
        if touches {
            kept.1 = next.1;
        }
        touches
    });
    debug_assert!(u64_of(pieces.len()) > 0);
}
