//! What a power failure may have torn: files that were written shortly before can be there with their names and sizes and
//! without their bytes.
//!
//! Blobs, trees and small files prove themselves where they are read. The files of snapshots and checkouts do not, so
//! those that were put in place since the first run that the failure has ended are thrown away; they cost their steps
//! another run. What a last use has touched since goes with them.

use std::{
    fs, io,
    path::Path,
    time::{Duration, UNIX_EPOCH},
};

use super::{StoreError, TempDir};

/// Areas of directories that are used without being verified.
const UNVERIFIED: [&str; 2] = ["snapshots", "git/checkouts"];
/// File systems round times, by up to two seconds.
const MARGIN: Duration = Duration::from_secs(3);

/// Moves what was put in place since then (Unix seconds) into `trash`, and says how much it was.
///
/// # Errors
/// [`StoreError::Io`].
pub(super) fn throw_away(root: &Path, since: u64, trash: &TempDir) -> Result<usize, StoreError> {
    let since = UNIX_EPOCH + Duration::from_secs(since).saturating_sub(MARGIN);
    let mut thrown = 0;
    for area in UNVERIFIED.map(|area| root.join(area)) {
        for entry in fs::read_dir(&area).map_err(StoreError::io("read", &area))? {
            let entry = entry.map_err(StoreError::io("read", &area))?;
            let changed = entry.metadata().and_then(|metadata| metadata.modified());
            if changed.is_ok_and(|changed| changed < since) {
                continue;
            }
            match fs::rename(entry.path(), trash.path().join(thrown.to_string())) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(StoreError::io("remove", entry.path())(error));
                }
                _ => thrown += 1,
            }
        }
    }
    Ok(thrown)
}
