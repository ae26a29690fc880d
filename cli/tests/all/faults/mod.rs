//! Whole builds against a registry that misbehaves: the real binary, Debian's docker-registry, and between the two a
//! proxy that does what a schedule says.
//!
//! What must hold, whatever happens: the exit code is 0 only if every name resolves to the digest of the undisturbed
//! build and every blob below it is right; any other exit says who is to blame and why; a tag never names what is not
//! there; nothing waits for ever; the same build works afterwards.

mod plan;
mod pushes;
mod schedules;
mod site;

use crate::common;
