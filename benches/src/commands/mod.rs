//! What the bench binary can do.
