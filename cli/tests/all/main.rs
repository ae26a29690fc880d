//! The binary from outside, and the rules that the sources keep. One program, which is linked once.

mod architecture;
mod calls;
#[path = "../../../oci/tests/common/mod.rs"]
mod common;
mod documented;
mod errors;
mod faults;
mod flags;
mod registry_gone;
mod signals;
mod traps;
