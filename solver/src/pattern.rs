//! The pattern languages of the Dockerfile world, for crates that may not import `parser`: the executor walks contexts
//! and snapshots with exactly the rules by which the text was read, and guesses what was meant as the planner does.

pub use parser::{glob, ignore, suggest};
