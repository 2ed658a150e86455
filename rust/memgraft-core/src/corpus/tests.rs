use std::io::Write;
use std::path::PathBuf;

use proptest::prelude::*;

use super::*;

fn write_u16(folder: &Path, name: &str, tokens: &[u16]) -> PathBuf {
    let path = folder.join(name);
    let bytes: Vec<u8> = tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
    std::fs::File::create(&path).unwrap().write_all(&bytes).unwrap();
    path
}

fn options(eos_id: u32) -> OpenOptions {
    OpenOptions { eos_id: Some(eos_id), dtype: Some(TokenType::U16), ..OpenOptions::default() }
}

/// Documents by the definition: cut after (or before) each delimiter and at each file's end.
fn naive_documents(files: &[Vec<u16>], eos: u16, first: bool) -> Vec<Vec<u32>> {
    let mut documents = Vec::new();
    for file in files {
        let mut document = Vec::new();
        for &token in file {
            if first && token == eos && !document.is_empty() {
                documents.push(std::mem::take(&mut document));
            }
            document.push(u32::from(token));
            if !first && token == eos {
                documents.push(std::mem::take(&mut document));
            }
        }
        if !document.is_empty() {
            documents.push(document);
        }
    }
    documents
}

fn documents(corpus: &Corpus) -> Vec<Vec<u32>> {
    (0..corpus.num_documents())
        .map(|document| {
            let (start, end) = corpus.document(document);
            let mut tokens = vec![0; usize_of_u64(end - start)];
            corpus.read(start, &mut tokens).unwrap();
            tokens
        })
        .collect()
}

proptest! {
    #[test]
    fn delimiters_cut_as_defined(
        files in prop::collection::vec(prop::collection::vec(0u16..5, 1..60), 1..4),
        first in any::<bool>(),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let paths: Vec<_> =
            files.iter().enumerate().map(|(at, file)| write_u16(folder.path(), &format!("{at}.bin"), file)).collect();
        let corpus = Corpus::open(&paths, &OpenOptions { eos_first: Some(first), ..options(0) }).unwrap();
        prop_assert_eq!(documents(&corpus), naive_documents(&files, 0, first));
        let all: Vec<u32> = files.iter().flatten().map(|&token| u32::from(token)).collect();
        let mut read = vec![9; all.len()];
        corpus.read(0, &mut read).unwrap();
        prop_assert_eq!(&read, &all);
        let (from, to) = (all.len() / 3, all.len() - all.len() / 4);
        let mut window = vec![9; to - from];
        corpus.read(u64_of(from), &mut window).unwrap();
        prop_assert_eq!(&window[..], &all[from..to]);
    }

    #[test]
    fn a_split_parts_the_documents(count in 2usize..60, seed in any::<u64>(), fraction in 0.01f64..0.6) {
        let folder = tempfile::tempdir().unwrap();
        let tokens: Vec<u16> = (1..=u16::try_from(count).unwrap()).flat_map(|id| [id, id, 0]).collect();
        let corpus = Corpus::open(&[write_u16(folder.path(), "a.bin", &tokens)], &options(0)).unwrap();
        let (train, held) = corpus.split(fraction, seed, 2).unwrap();
        prop_assert_eq!(held.num_documents(), share(fraction, count));
        prop_assert_eq!(train.num_documents() + held.num_documents(), count);
        let (a, b) = (documents(&train), documents(&held));
        let mut all: Vec<_> = a.iter().chain(&b).cloned().collect();
        prop_assert!(a.is_sorted() && b.is_sorted());
        all.sort();
        prop_assert_eq!(all, documents(&corpus));
        let (again, _) = corpus.split(fraction, seed, 1).unwrap();
        prop_assert_eq!(again.fingerprint(1).unwrap(), train.fingerprint(2).unwrap());
        prop_assert_ne!(train.fingerprint(1).unwrap(), held.fingerprint(1).unwrap());
    }
}

fn share(fraction: f64, count: usize) -> usize {
    ((1..count).rev().find(|&held| held as f64 - 0.5 <= fraction * count as f64)).unwrap_or(1).max(1)
}

#[test]
fn fingerprint_does_not_see_sharding() {
    let folder = tempfile::tempdir().unwrap();
    let tokens: Vec<u16> = (0..3000).map(|at| at % 77 + 1).chain([0]).collect();
    let whole = write_u16(folder.path(), "whole.bin", &[&tokens[..], &tokens[..]].concat());
    let half = write_u16(folder.path(), "half.bin", &tokens);
    let one = Corpus::open(&[whole], &options(0)).unwrap();
    let two = Corpus::open(&[&half, &half], &options(0)).unwrap();
    assert_eq!(one.fingerprint(1).unwrap(), two.fingerprint(3).unwrap());
    let other = Corpus::open(&[half], &options(0)).unwrap();
    assert_ne!(one.fingerprint(1).unwrap(), other.fingerprint(1).unwrap());
}
