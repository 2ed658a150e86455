//! daachorse, charwise: each token is one `char`, the longest pattern at each
//! position comes from `find_overlapping_no_suffix_iter`.

use daachorse::{CharwiseDoubleArrayAhoCorasick, CharwiseDoubleArrayAhoCorasickBuilder};
use memgraft_core::keyset::KeySet;

use crate::Fallible;

/// The automaton and the text it was last given.
#[derive(Clone)]
pub struct CharAutomaton {
    automaton: CharwiseDoubleArrayAhoCorasick<u32>,
}

impl std::fmt::Debug for CharAutomaton {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CharAutomaton").field("states", &self.automaton.num_states()).finish()
    }
}

/// One token as a `char`: the code points from 1 up, without the surrogates.
fn char_of(token: u32) -> Option<char> {
    let code = token + 1;
    char::from_u32(if code < 0xD800 { code } else { code + 0x800 })
}

/// Tokens as text.
///
/// # Errors
/// A vocabulary larger than Unicode.
pub fn text_of(tokens: &[u32]) -> Fallible<String> {
    Ok(tokens.iter().copied().map(char_of).collect::<Option<String>>().ok_or("a token has no code point")?)
}

/// What a scan found, in the order of the text: where a match ends (in bytes) and its row.
#[derive(Debug, Default, Clone)]
pub struct Matches {
    /// Byte offsets of match ends, ascending.
    pub ends: Vec<usize>,
    /// Rows.
    pub rows: Vec<u32>,
}

impl CharAutomaton {
    /// Builds the automaton; with `profile`, states that this text visits are packed together.
    ///
    /// # Errors
    /// daachorse's own, for a set beyond its limits.
    pub fn new(keys: &KeySet, profile: Option<&str>) -> Fallible<Self> {
        let mut patterns = Vec::with_capacity(keys.len());
        for (row, key) in keys.iter().enumerate() {
            patterns.push((text_of(key)?, u32::try_from(row)?));
        }
        let builder = CharwiseDoubleArrayAhoCorasickBuilder::new().corpus(profile);
        let automaton = builder.build_with_values(patterns).map_err(|e| format!("daachorse: {e}"))?;
        Ok(Self { automaton })
    }

    /// Heap bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.automaton.heap_bytes() as u64
    }

    /// Scans `text`; positions without a match leave no trace.
    pub fn scan(&self, text: &str, found: &mut Matches) {
        found.ends.clear();
        found.rows.clear();
        for one in self.automaton.find_overlapping_no_suffix_iter(text) {
            found.ends.push(one.end());
            found.rows.push(one.value());
        }
    }
}

impl Matches {
    /// The row at each position of `tokens`, -1 where nothing matched.
    #[must_use]
    pub fn by_position(&self, tokens: &[u32]) -> Vec<i32> {
        let mut found = self.ends.iter().zip(&self.rows).peekable();
        let mut end = 0;
        tokens
            .iter()
            .map(|&token| {
                end += char_of(token).map_or(0, char::len_utf8);
                found.next_if(|&(&at, _)| at == end).map_or(-1, |(_, &row)| row as i32)
            })
            .collect()
    }
}
