//! What is sealed, assembled, cached, pushed and written, on real stores and against real registries. One program, since
//! each test program has the whole builder linked into it; only what looks at the process itself is another (`memory`).

mod ahead;
#[path = "../../../oci/tests/common/mod.rs"]
mod common;
mod distant;
mod elsewhere;
mod encoders;
mod files;
mod filling;
mod images;
mod layer_golden;
mod push;
mod repack;
mod reuse;
mod sealing;
#[path = "../support/mod.rs"]
mod support;
