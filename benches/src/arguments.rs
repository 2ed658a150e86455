//! `--name value` arguments.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;

use crate::Fallible;

/// The arguments after the command's name; each is taken once, and none may be left.
#[derive(Debug, Default)]
pub struct Arguments(BTreeMap<String, String>);

impl Arguments {
    /// Parses pairs of `--name` and value.
    ///
    /// # Errors
    /// A word that is no `--name`, or a name without value.
    pub fn parse(words: impl IntoIterator<Item = String>) -> Fallible<Self> {
        let mut words = words.into_iter();
        let mut pairs = BTreeMap::new();
        while let Some(word) = words.next() {
            let name = word.strip_prefix("--").ok_or_else(|| format!("expected --name, got {word:?}"))?;
            let value = words.next().ok_or_else(|| format!("--{name}: expected a value after it"))?;
            pairs.insert(name.to_owned(), value);
        }
        Ok(Self(pairs))
    }

    /// The value of `--name`, or `default`.
    ///
    /// # Errors
    /// A value that does not parse.
    pub fn take<T: FromStr>(&mut self, name: &str, default: T) -> Fallible<T> {
        let Some(text) = self.0.remove(name) else { return Ok(default) };
        text.parse().map_err(|_| format!("--{name}: cannot read {text:?}").into())
    }

    /// The path under `--name`.
    ///
    /// # Errors
    /// No such argument.
    pub fn path(&mut self, name: &str) -> Fallible<PathBuf> {
        Ok(self.0.remove(name).map(PathBuf::from).ok_or_else(|| format!("expected --{name} PATH"))?)
    }

    /// The comma-separated list under `--name`, or `default`.
    #[must_use]
    pub fn list(&mut self, name: &str, default: &str) -> Vec<String> {
        let text = self.0.remove(name).unwrap_or_else(|| default.to_owned());
        text.split(',').filter(|part| !part.is_empty()).map(str::to_owned).collect()
    }

    /// Refuses what no one took.
    ///
    /// # Errors
    /// An argument that the command does not have.
    pub fn finish(self) -> Fallible<()> {
        match self.0.keys().next() {
            Some(name) => Err(format!("--{name}: this command has no such argument").into()),
            None => Ok(()),
        }
    }
}
