//! One of several processes makes a blob of a layer, and the others wait: the lock `locks/seal-TREE.NAME`.

use std::{fs::File, thread, time::Duration};

use oci::TreeDigest;
use rustix::{fs::FlockOperation, io::Errno};
use solver::Event;

use super::{SealError, SealOptions, Shared};

/// How often it is looked whether another process has let go of a layer.
const PAUSE: Duration = Duration::from_millis(20);

/// Waits until no other process makes the blob of this name.
pub(super) fn turn(shared: &Shared, tree: &TreeDigest, name: &str) -> Result<File, SealError> {
    let options = &shared.options;
    let name = format!("seal-{}.{name}", tree.hex());
    let file = options.store.lock_file(&name)?;
    let failed = |error: Errno| {
        let path = options.store.area("locks").join(&name);
        SealError::Lock { path, source: error.into() }
    };
    let mut said = None;
    loop {
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) if shared.is_unwanted() => return Err(SealError::Cancelled),
            Err(Errno::WOULDBLOCK) => {
                said.get_or_insert_with(|| Said::that_we_wait(options, tree));
                thread::sleep(PAUSE);
            }
            locked => return locked.map(|()| file).map_err(failed),
        }
    }
}

/// Tells that waiting is over.
struct Said<'a> {
    options: &'a SealOptions,
    stage: String,
}

impl<'a> Said<'a> {
    fn that_we_wait(options: &'a SealOptions, tree: &TreeDigest) -> Self {
        let layer = &tree.hex()[..12];
        let stage = format!("waiting for another build, which compresses layer {layer}");
        (options.events)(Event::Stage(stage.clone()));
        Said { options, stage }
    }
}

impl Drop for Said<'_> {
    fn drop(&mut self) {
        (self.options.events)(Event::StageDone(std::mem::take(&mut self.stage)));
    }
}
