//! `memgraft-bench COMMAND --name value …`: one JSON object on stdout.

use std::io::Write;
use std::process::ExitCode;

use memgraft_benches::arguments::Arguments;
use memgraft_benches::{Fallible, commands};
use serde_json::Value;

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let command = words.next().unwrap_or_default();
    match run(&command, words).and_then(|report| Ok(writeln!(std::io::stdout(), "{report:#}")?)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nowhere else to say it if stderr is closed.
            writeln!(std::io::stderr(), "memgraft-bench {command}: {error}").ok();
            ExitCode::FAILURE
        }
    }
}

fn run(command: &str, words: impl Iterator<Item = String>) -> Fallible<Value> {
    let mut arguments = Arguments::parse(words)?;
    let report = match command {
        "build" => commands::build::run(&mut arguments),
        "gather" => commands::gather::run(&mut arguments),
        "open" => commands::open::run(&mut arguments),
        "lookup" => commands::lookup::run(&mut arguments),
        "rows" => commands::rows::run(&mut arguments),
        "walk" => commands::walk::run(&mut arguments),
        _ => Err("expected a command: build, gather, open, lookup, rows or walk".into()),
    }?;
    arguments.finish()?;
    Ok(report)
}
