//! `walk`: the lookup alone, over and over: for callgrind, perf and a debugger.

use std::sync::Arc;

use memgraft_core::batch::{Bounds, Instructions, Options, Tokens, Unknown};
use memgraft_core::format::Load;
use memgraft_core::index::Index;
use memgraft_core::stack::Stack;
use serde_json::{Value, json};

use crate::Fallible;
use crate::arguments::Arguments;
use crate::stream::Stream;

/// Looks `--tokens` tokens of `--corpus` up in `--index`, with `--overlay` on it if one is given, `--repeat` times.
///
/// # Errors
/// Those of the core.
pub fn run(arguments: &mut Arguments) -> Fallible<Value> {
    let (index, corpus) = (arguments.path("index")?, arguments.path("corpus")?);
    let num_tokens: usize = arguments.take("tokens", 1 << 20)?;
    let repeat: usize = arguments.take("repeat", 1)?;
    let options = Options {
        threads: arguments.take("threads", 1)?,
        lanes: arguments.take("lanes", 32)?,
        prefetch: arguments.take("prefetch", true)?,
        instructions: match arguments.take("instructions", String::from("best"))?.as_str() {
            "best" => Instructions::Best,
            "portable" => Instructions::Portable,
            other => return Err(format!("--instructions: expected best or portable, got {other}").into()),
        },
    };
    let load = if arguments.take("ram", false)? { Load::Ram } else { Load::Map };
    let mut layers = vec![Arc::new(Index::open(index, load)?)];
    for overlay in arguments.list("overlay", "") {
        layers.push(Arc::new(Index::open(overlay, load)?));
    }
    let stream = Stream::tail(&corpus, num_tokens)?;
    let tokens = &stream.tokens[..num_tokens.min(stream.tokens.len())];
    let (mut rows, mut orders) = (vec![0; tokens.len()], vec![0; tokens.len()]);
    let bounds = Bounds::default();
    if let [index] = &layers[..] {
        for _ in 0..repeat {
            index.lookup(tokens, &bounds, Unknown::Error, &mut rows, &mut orders, options)?;
        }
    } else {
        let checked = Tokens::check(tokens, layers[0].vocab_size(), &bounds, Unknown::Error)?;
        let stack = Stack::new(layers)?;
        for _ in 0..repeat {
            stack.lookup_tokens(&checked, &bounds, &mut rows, &mut orders, options)?;
        }
    }
    let hits = orders.iter().filter(|&&order| order > 0).count();
    Ok(json!({"tokens": tokens.len() * repeat, "coverage": hits as f64 / tokens.len().max(1) as f64}))
}
