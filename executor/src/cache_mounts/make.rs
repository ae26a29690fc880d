//! How the directory of a cache mount begins, and when it was last used.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::Path,
    time::SystemTime,
};

use rustix::{
    fs::{Gid, Mode, OFlags, Uid, fchown},
    io::Errno,
};
use solver::Cancel;

use super::{CacheMountError, Wanted, pool::Chosen};
use crate::{
    Snapshots,
    copy::{self, CopyError},
    listing::Owners,
    rootfs::set_mode,
    snapshot::Stamp,
    unpack::copy_metadata,
};

/// Its time is when the mount was last used; it is missing while it is in use.
const USED: &str = "used";

/// Makes what the command sees of a new cache mount.
pub(super) fn make(
    snapshots: &Snapshots,
    want: &Wanted<'_>,
    path: &Path,
    cancel: &Cancel,
) -> Result<(), CacheMountError> {
    fs::create_dir(path).map_err(CacheMountError::io("create", path))?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = rustix::fs::open(path, flags, Mode::empty());
    let directory = directory.map_err(|errno| CacheMountError::io("open", path)(errno.into()))?;
    if want.seed.is_some() {
        return fill(snapshots, want, &directory, cancel);
    }
    let (uid, gid) = (Uid::from_raw(want.mount.uid), Gid::from_raw(want.mount.gid));
    let owned = fchown(&directory, Some(uid), Some(gid)).and_then(|()| set_mode(&directory, want.mount.mode));
    owned.map_err(|errno| CacheMountError::io("change", path)(errno.into()))
}

/// Copies a directory of a file system, and all that it is.
fn fill(
    snapshots: &Snapshots,
    want: &Wanted<'_>,
    to: &OwnedFd,
    cancel: &Cancel,
) -> Result<(), CacheMountError> {
    let Some((snapshot, source_path)) = want.seed else { return Ok(()) };
    let told = || (want.mount.target.clone(), source_path.to_owned());
    let view = snapshots.view(snapshot)?;
    let from = view.open(source_path.as_bytes(), OFlags::RDONLY | OFlags::DIRECTORY).map_err(|errno| {
        let (target, source_path) = told();
        let what = match errno {
            Errno::NOENT => "it is not there",
            Errno::NOTDIR => "it is no directory",
            _ => "it cannot be opened",
        };
        CacheMountError::NoSeed { target, source_path, what }
    })?;
    let failed = |source| {
        let (target, source_path) = told();
        match source {
            CopyError::Cancelled => CacheMountError::Cancelled,
            source => CacheMountError::Seed { target, source_path, source: Box::new(source) },
        }
    };
    // A user with one id sees every file as his; the directory is not part of any layer.
    copy::copy_contents(from.as_fd(), &Owners::new(), to.as_fd(), cancel).map_err(failed)?;
    copy_metadata(&from, to).map_err(|errno| {
        let io = crate::rootfs::failed("changing", source_path.as_bytes())(errno);
        CacheMountError::Path(io)
    })
}

/// When the mount in this directory was last used; `None` while it is in use, and where nobody noted it.
pub(crate) fn last_use(directory: &Path) -> Option<SystemTime> {
    fs::metadata(directory.join(USED)).ok()?.modified().ok()
}

/// When a mount was last used, as far as is known; from now on it is in use.
pub(super) fn take_used(chosen: &Chosen) -> Result<Stamp, CacheMountError> {
    let path = chosen.directory.join(USED);
    let metadata = match fs::metadata(&path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Stamp::of_files_now()),
        Err(error) => return Err(CacheMountError::io("read", &path)(error)),
    };
    fs::remove_file(&path).map_err(CacheMountError::io("remove", &path))?;
    Ok(Stamp { seconds: metadata.mtime(), nanoseconds: metadata.mtime_nsec() as u32 })
}

/// Notes that a mount was used until now, unless somebody else still uses it.
pub(super) fn note_used(chosen: &Chosen) -> Result<(), CacheMountError> {
    let Some(_nobody_comes) = chosen.is_last() else { return Ok(()) };
    let path = chosen.directory.join(USED);
    File::create(&path).map(drop).map_err(CacheMountError::io("create", &path))
}
