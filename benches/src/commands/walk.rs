//! `walk`: the lookup alone, over and over: for callgrind, perf and a debugger.

use memgraft_core::batch::{Bounds, Instructions, Options, Unknown};
use memgraft_core::format::Load;
use memgraft_core::index::Index;
use serde_json::{Value, json};

use crate::Fallible;
use crate::arguments::Arguments;
use crate::stream::Stream;

/// Looks `--tokens` tokens of `--corpus` up in `--index`, `--repeat` times.
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
    let index = Index::open(index, load)?;
    let stream = Stream::tail(&corpus, num_tokens)?;
    let tokens = &stream.tokens[..num_tokens.min(stream.tokens.len())];
    let (mut rows, mut orders) = (vec![0; tokens.len()], vec![0; tokens.len()]);
    for _ in 0..repeat {
        index.lookup(tokens, &Bounds::default(), Unknown::Error, &mut rows, &mut orders, options)?;
    }
    let hits = orders.iter().filter(|&&order| order > 0).count();
    Ok(json!({"tokens": tokens.len() * repeat, "coverage": hits as f64 / tokens.len().max(1) as f64}))
}
