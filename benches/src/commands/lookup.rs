//! `lookup`: longest match at every position of real text, beside the peers and the machine's own limit.

use memgraft_core::batch::{Bounds, Instructions, Options, Unknown};
use memgraft_core::format::Load;
use memgraft_core::ids::StateId;
use memgraft_core::index::Index;
use memgraft_core::keyset::KeySet;
use serde_json::{Value, json};

use crate::Fallible;
use crate::arguments::Arguments;
use crate::contest::{self, Contender, check_equal};
use crate::memory::{IN_FLIGHT, RandomLines};
use crate::peers::{BackwardWalk, CharAutomaton, SliceMap, char_automaton};
use crate::stream::Stream;

/// One core's way to walk without a second core's help or a hint.
const SCALAR: Options = Options { threads: 1, lanes: 1, prefetch: false, instructions: Instructions::Best };

/// What the contest runs over, read once.
struct Course {
    index: Index,
    keys: KeySet,
    stream: Stream,
    segments: Vec<i64>,
    reference: Vec<i32>,
}

impl Course {
    fn answers(&self) -> (Vec<i32>, Vec<u8>) {
        (vec![-2; self.stream.tokens.len()], vec![0xff; self.stream.tokens.len()])
    }

    fn lookup(&self, bounds: &Bounds<'_>, options: Options, rows: &mut [i32], orders: &mut [u8]) -> Fallible<()> {
        Ok(self.index.lookup(&self.stream.tokens, bounds, Unknown::Error, rows, orders, options)?)
    }

    /// Checks `options` against the reference, then returns it as a contender.
    fn contender<'a>(&'a self, name: &str, bounds: Bounds<'a>, options: Options) -> Fallible<Contender<'a>> {
        let (mut rows, mut orders) = self.answers();
        self.lookup(&bounds, options, &mut rows, &mut orders)?;
        if bounds.ids.is_none() {
            check_equal(name, &self.reference, &rows)?;
            let lengths = self.keys.lengths();
            let expected: Vec<u8> =
                rows.iter().map(|&row| usize::try_from(row).map_or(0, |row| lengths[row])).collect();
            check_equal(&format!("{name}, orders"), &expected, &orders)?;
        }
        Ok(Contender::new(name, self.stream.tokens.len(), move || {
            self.lookup(&bounds, options, &mut rows, &mut orders)
        }))
    }

    /// The stream as `batch` sequences read in step, checked against a lookup of the same sequences.
    fn advance(&self, batch: usize) -> Fallible<Contender<'_>> {
        let width = self.stream.tokens.len() / batch;
        let sequences = &self.stream.tokens[..width * batch];
        let columns: Vec<u32> = (0..width).flat_map(|t| (0..batch).map(move |b| sequences[b * width + t])).collect();
        let (mut rows, mut orders) = (vec![-2; columns.len()], vec![0xff; columns.len()]);
        let mut expected = rows.clone();
        let bounds = Bounds { width: Some(width), ..Bounds::default() };
        self.index.lookup(sequences, &bounds, Unknown::Error, &mut expected, &mut orders, SCALAR)?;
        let mut run = move |rows: &mut Vec<i32>| -> Fallible<()> {
            let mut states = vec![StateId::START; batch];
            for (t, tokens) in columns.chunks_exact(batch).enumerate() {
                let at = t * batch..(t + 1) * batch;
                self.index.advance(&mut states, tokens, Unknown::Error, &mut rows[at.clone()], &mut orders[at])?;
            }
            Ok(())
        };
        run(&mut rows)?;
        let found: Vec<i32> =
            (0..batch).flat_map(|b| (0..width).map(move |t| (t, b))).map(|(t, b)| rows[t * batch + b]).collect();
        let name = format!("advance, {batch} sequences");
        check_equal(&name, &expected, &found)?;
        Ok(Contender::new(name, width * batch, move || run(&mut rows)))
    }
}

/// Everything that reads `--tokens` tokens of `--corpus` with the keys of `--keys`; `--peers` names who takes part.
///
/// # Errors
/// Those of the core; answers that differ.
pub fn run(arguments: &mut Arguments) -> Fallible<Value> {
    let (keys, index, corpus) = (arguments.path("keys")?, arguments.path("index")?, arguments.path("corpus")?);
    let num_tokens: usize = arguments.take("tokens", 2 << 20)?;
    let rounds: usize = arguments.take("rounds", 7)?;
    let load = if arguments.take("ram", true)? { Load::Ram } else { Load::Map };
    let peers = arguments.list("peers", "backward,daachorse,map");
    let lanes = arguments.list("lanes", "8,16,32");
    let takes_part = |name: &str| peers.iter().any(|peer| peer == name);

    let keys = KeySet::open(&keys)?;
    let index = Index::open(&index, load)?;
    let stream = Stream::tail(&corpus, num_tokens)?;
    let mut backward = match takes_part("backward") {
        true => BackwardWalk::new(&keys)?,
        false => BackwardWalk::for_text(&keys, &stream.tokens)?,
    };
    let mut reference = vec![-2; stream.tokens.len()];
    backward.lookup::<true>(&stream.tokens, &mut reference);
    let course = Course { segments: stream.segment_ids(), index, keys, stream, reference };
    let tokens = &course.stream.tokens;

    let text = char_automaton::text_of(tokens)?;
    // daachorse may arrange its states by text of the same kind, as our index does by counts: not by this text.
    let earlier = Stream::tail(&corpus, 2 * num_tokens)?.tokens;
    let earlier = char_automaton::text_of(&earlier[..earlier.len() - tokens.len()])?;

    let lines = RandomLines::new(usize::try_from(course.index.stats().table_bytes)?)?;
    let whole = Bounds::default();
    let fast = Options::default();
    let mut contenders = vec![course.contender("lookup, 1 thread", whole, fast)?];
    contenders.push(course.contender("lookup, 2 threads", whole, Options { threads: 2, ..fast })?);
    for lanes in &lanes {
        let options = Options { lanes: lanes.parse()?, ..fast };
        contenders.push(course.contender(&format!("lookup, {lanes} lanes"), whole, options)?);
    }
    let portable = Options { instructions: Instructions::Portable, ..fast };
    contenders.push(course.contender("lookup, portable", whole, portable)?);
    contenders.push(course.contender("lookup, lanes without prefetch", whole, Options { prefetch: false, ..fast })?);
    let by_document = Bounds { ids: Some(&course.segments), ..Bounds::default() };
    contenders.push(course.contender("lookup, documents apart", by_document, fast)?);
    contenders.push(course.contender("scalar automaton", whole, SCALAR)?);
    for batch in [1, 8, 64] {
        contenders.push(course.advance(batch)?);
    }

    let mut sizes = serde_json::Map::new();
    sizes.insert("index, table".into(), course.index.stats().table_bytes.into());
    for (threads, name) in [(1, "random lines, 1 core"), (2, "random lines, 2 cores")] {
        let lines = &lines;
        contenders.push(Contender::new(name, tokens.len() * threads, move || {
            std::hint::black_box(lines.read(tokens.len(), threads));
            Ok(())
        }));
    }

    if takes_part("backward") {
        let mut rows = course.reference.clone();
        let mut plain = BackwardWalk::new(&course.keys)?;
        sizes.insert("backward walk".into(), plain.bytes().into());
        plain.lookup::<false>(tokens, &mut rows);
        check_equal("backward walk", &course.reference, &rows)?;
        contenders.push(Contender::new("backward walk (KenLM)", tokens.len(), move || {
            plain.lookup::<false>(tokens, &mut rows);
            Ok(())
        }));
        let mut rows = course.reference.clone();
        contenders.push(Contender::new("backward walk, prefetching", tokens.len(), move || {
            backward.lookup::<true>(tokens, &mut rows);
            Ok(())
        }));
    }
    if takes_part("daachorse") {
        for (name, profile) in [("daachorse", None), ("daachorse, profiled layout", Some(earlier.as_str()))] {
            let peer = CharAutomaton::new(&course.keys, profile)?;
            sizes.insert(name.into(), peer.bytes().into());
            let mut matches = char_automaton::Matches::default();
            peer.scan(&text, &mut matches);
            check_equal(name, &course.reference, &matches.by_position(tokens))?;
            let text = &text;
            contenders.push(Contender::new(name, tokens.len(), move || {
                peer.scan(text, &mut matches);
                Ok(())
            }));
        }
    }
    if takes_part("map") {
        let part = &tokens[..tokens.len().min(1 << 19)];
        let peer = SliceMap::new(&course.keys);
        let mut rows = vec![-2; part.len()];
        peer.lookup(part, &mut rows);
        check_equal("HashMap of slices", &course.reference[..part.len()], &rows)?;
        contenders.push(Contender::new("HashMap of slices", part.len(), move || {
            peer.lookup(part, &mut rows);
            Ok(())
        }));
    }
    let timings = contest::run(&mut contenders, rounds)?;
    let hits = course.reference.iter().filter(|&&row| row >= 0).count();
    Ok(json!({
        "num_keys": course.keys.len(),
        "max_order": course.keys.max_order(),
        "tokens": tokens.len(),
        "documents": course.stream.starts.len() - 1,
        "coverage": hits as f64 / tokens.len() as f64,
        "loaded": if load == Load::Ram { "ram" } else { "map" },
        "in_flight": IN_FLIGHT,
        "bytes": sizes,
        "timings": contest::as_json(&timings),
    }))
}
