//! What the bench binary can do, one file a command.

pub mod build;
pub mod gather;
pub mod lookup;
pub mod open;
pub mod rows;
pub mod walk;
