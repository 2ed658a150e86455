#!/usr/bin/env bash
# rust/fuzz/run.sh TARGET [libFuzzer options]: builds with the address sanitizer on a stable toolchain and fuzzes.
# With nightly and cargo-fuzz, `cargo +nightly fuzz run TARGET` does the same.
set -eu
cd "$(dirname "$0")"
target=$1
shift
host=$(rustc -vV | sed -n 's/^host: //p')
export RUSTC_BOOTSTRAP=1
export RUSTFLAGS="--cfg fuzzing -Zsanitizer=address -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares"
cargo build --release --quiet --target "$host" --bin "$target"
mkdir -p "corpus/$target"
# What earlier runs found, kept as one file a target.
[ ! -f "seeds/$target.tar.gz" ] || tar -xzkf "seeds/$target.tar.gz" -C "corpus/$target" 2>/dev/null || true
exec "target/$host/release/$target" "corpus/$target" "$@"
