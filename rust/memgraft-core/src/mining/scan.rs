//! The first pass: every token lies in the vocabulary; how many n-grams of each order there are to count.

use super::control::{Report, phase};
use crate::corpus::{BLOCK, Corpus};
use crate::ids::{u64_of, usize_of, usize_of_u64};
use crate::{Error, Result};

/// What the first pass learns.
pub(super) struct Scan {
    /// Occurrences of each token, reserved ones excepted.
    pub(super) weights: Vec<u64>,
    /// `fits[n]`: positions where an n-gram of order `n` starts that stays inside a document and holds no reserved token.
    pub(super) fits: Vec<u64>,
}

/// Reads the corpus once, documents shared out among threads.
pub(super) fn scan(
    corpus: &Corpus,
    reserved: &[bool],
    max_order: usize,
    threads: usize,
    report: &mut Report<'_>,
) -> Result<Scan> {
    let total = corpus.num_tokens();
    let parts = shares(corpus, threads * 8);
    let results = phase(report, "scan", total, threads, |control| {
        let mut found = Scan { weights: vec![0; reserved.len()], fits: vec![0; max_order + 1] };
        let mut buffer = vec![0; BLOCK];
        while let Some(part) = control.take(parts.len() - 1) {
            for document in parts[part]..parts[part + 1] {
                let (start, end) = corpus.document(document);
                let mut at = start;
                let mut run = 0u64;
                while at < end {
                    let len = usize_of_u64((end - at).min(u64_of(BLOCK)));
                    corpus.read(at, &mut buffer[..len])?;
                    for (offset, &token) in buffer[..len].iter().enumerate() {
                        match reserved.get(usize_of(token)) {
                            Some(false) => {
                                found.weights[usize_of(token)] += 1;
                                run += 1;
                            }
                            Some(true) => {
                                add_run(&mut found.fits, run);
                                run = 0;
                            }
                            None => return Err(outside(corpus, at + u64_of(offset), token, reserved.len())),
                        }
                    }
                    at += u64_of(len);
                    control.advance(u64_of(len))?;
                }
                add_run(&mut found.fits, run);
            }
        }
        Ok(found)
    })?;
    let mut sum = Scan { weights: vec![0; reserved.len()], fits: vec![0; max_order + 1] };
    for part in results {
        sum.weights.iter_mut().zip(&part.weights).for_each(|(all, one)| *all += one);
        sum.fits.iter_mut().zip(&part.fits).for_each(|(all, one)| *all += one);
    }
    Ok(sum)
}

/// A run of `run` tokens has `run - n + 1` n-grams of order `n`.
fn add_run(fits: &mut [u64], run: u64) {
    for (order, count) in fits.iter_mut().enumerate().skip(1) {
        *count += (run + 1).saturating_sub(u64_of(order));
    }
}

fn outside(corpus: &Corpus, position: u64, token: u32, vocab_size: usize) -> Error {
    let document = corpus.document_at(position);
    Error::Token {
        message: format!(
            "corpus {}: expected tokens below vocab_size {vocab_size}, found {token} at position {position} (document \
             {document}); give the tokenizer's full size, or the dtype the file was written with",
            corpus.paths().next().map(|path| path.display().to_string()).unwrap_or_default()
        ),
    }
}

/// Documents cut into at most `count` ranges of about equal tokens.
fn shares(corpus: &Corpus, count: usize) -> Vec<usize> {
    let total = corpus.num_tokens();
    let mut cuts: Vec<usize> =
        (0..count).map(|part| corpus.document_at(total / u64_of(count) * u64_of(part))).collect();
    cuts[0] = 0;
    cuts.push(corpus.num_documents());
    cuts.dedup();
    cuts
}
