//! The registry client against a real registry and ones that misbehave. One program, since each test program has the whole
//! client linked into it; only what looks at the process itself is another (`memory`).

mod caches;
#[path = "../common/mod.rs"]
mod common;
mod faults;
mod mirrors;
mod registry;
mod tokens;
mod trust;
