//! `memgraft-bench COMMAND --name value …`: JSON on stdout.

fn main() {}
