//! A copy without a copy: the layer that [`copy`](super::copy) would write, from listings and a look at what is below.

use std::sync::Arc;

use oci::Tree;
use solver::{
    Cancel,
    op::{Copy, MakeDir, Timestamps},
};

use super::{CopyError, copy_onto, draft::Draft, make_dir_onto};
use crate::{beneath::Beneath, contents::Origins, listing::Listing, users::UserError};

/// A layer whose files are elsewhere.
#[derive(Debug)]
pub struct Planned {
    /// The layer.
    pub tree: Tree,
    /// Where its files are.
    pub origins: Origins,
}

/// What [`copy`](super::copy) would write; `None` where it must, because only a disk can tell (see
/// [`draft`](super::draft)), or because times are those of a clock. `sources` are complete ([`Listing::complete`]).
///
/// # Errors
/// Those of [`copy`](super::copy) that do not come from writing.
pub fn plan(
    copy: &Copy,
    sources: &[Arc<Listing>],
    below: &Beneath,
    cancel: &Cancel,
) -> Result<Option<Planned>, CopyError> {
    let listings: Vec<&Listing> = sources.iter().map(AsRef::as_ref).collect();
    drawn(copy.timestamps, || copy_onto(Draft::new(below, sources), copy, &listings, cancel), cancel)
}

/// What [`make_dir`](super::make_dir) would write; `None` where it must.
///
/// # Errors
/// Those of [`make_dir`](super::make_dir) that do not come from writing.
pub fn plan_dir(
    make: &MakeDir,
    below: &Beneath,
    warn: &dyn Fn(UserError),
    cancel: &Cancel,
) -> Result<Option<Planned>, CopyError> {
    drawn(make.timestamps, || make_dir_onto(Draft::new(below, &[]), make, warn), cancel)
}

fn drawn<'a>(
    timestamps: Timestamps,
    draw: impl FnOnce() -> Result<Draft<'a>, CopyError>,
    cancel: &Cancel,
) -> Result<Option<Planned>, CopyError> {
    if timestamps == Timestamps::Preserve {
        return Ok(None);
    }
    match draw().and_then(|draft| draft.finish(cancel)) {
        Ok(planned) => Ok(Some(planned)),
        Err(error) if needs_disk(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

fn needs_disk(error: &CopyError) -> bool {
    match error {
        CopyError::OnDiskOnly(_) => true,
        CopyError::User(UserError::Below(error)) => needs_disk(error),
        _ => false,
    }
}
