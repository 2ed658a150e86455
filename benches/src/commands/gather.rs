//! `gather`: the gather alone, over and over: for callgrind, perf and a debugger.

use std::path::PathBuf;

use memgraft_core::values::ValueTable;
use serde_json::{Value, json};

use crate::Fallible;
use crate::arguments::Arguments;
use crate::memory::mix;

/// Of this many positions one is a miss.
const MISS_EVERY: u64 = 5;

/// Stages or gathers `--asked` random rows of the shard `--shard`, `--repeat` times.
///
/// # Errors
/// Those of the core.
pub fn run(arguments: &mut Arguments) -> Fallible<Value> {
    let shard: PathBuf = arguments.path("shard")?;
    let asked: u64 = arguments.take("asked", 1 << 14)?;
    let repeat: u64 = arguments.take("repeat", 1)?;
    let stage: bool = arguments.take("stage", false)?;
    let resident: bool = arguments.take("resident", false)?;
    let mut table = ValueTable::open(&[&shard])?;
    if resident {
        table.make_resident(table.num_rows(), 1)?;
    }
    let row = |at: u64| match mix(at) {
        seed if stage && seed.is_multiple_of(MISS_EVERY) => Ok(-1),
        seed => i32::try_from(seed % table.num_rows()),
    };
    let rows = (0..asked).map(row).collect::<Result<Vec<i32>, _>>()?;
    let mut out = vec![0; rows.len() * table.row_bytes()];
    for _ in 0..repeat {
        if stage {
            table.stage(&rows, &mut out, 1)?;
        } else {
            table.gather(&rows, &mut out, 1)?;
        }
    }
    Ok(json!({"rows": asked * repeat, "row_bytes": table.row_bytes()}))
}
