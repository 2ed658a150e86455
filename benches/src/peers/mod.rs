//! What a user could pick instead, each as fast as we know how to make it.

pub mod backward;
pub mod char_automaton;
pub mod slice_map;

pub use backward::BackwardWalk;
pub use char_automaton::CharAutomaton;
pub use slice_map::SliceMap;
