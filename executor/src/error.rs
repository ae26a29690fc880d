//! From the errors of the parts to [`StepFailure`]: whose fault it is decides the exit code of the build.
//!
//! The parts say what happened; who is to blame mostly shows at the end of the causes: a registry, or a disk that is
//! full or read-only, whatever the part was doing when it met them. Who may open no further file cannot ask a registry either.

use std::{error::Error, io, path::Path};

use oci::{fetch::FetchError, image::ImageError, registry::RegistryError, store::free_bytes};
use rustix::io::Errno;
use solver::{FailureKind, StepFailure};

use crate::{
    agents::AgentError,
    cache_mounts::CacheMountError,
    cdi::CdiError,
    context::ContextError,
    copy::CopyError,
    diff::DiffError,
    fuse,
    git::GitError,
    listing::ListError,
    sandbox::{FEW_FILES, PlanError, READ_ONLY_STORE, SandboxError, more_ids},
    snapshot::SnapshotError,
    users::UserError,
};

impl From<SnapshotError> for StepFailure {
    fn from(error: SnapshotError) -> Self {
        match error {
            SnapshotError::Cancelled => cancelled(),
            SnapshotError::Files(error) => (*error).into(),
            SnapshotError::Base { .. } => blame(FailureKind::Build, error),
            SnapshotError::TooManyLayers { .. } => {
                blame(FailureKind::Machine, error).hint("take a base image with fewer layers, or join steps into one")
            }
            SnapshotError::Gone { .. } => {
                blame(FailureKind::Machine, error).hint("build again: the step will run again, too")
            }
            SnapshotError::Device { .. } => blame(FailureKind::Machine, error)
                .hint("build where user namespaces are allowed, without --sandbox=chroot, or take it out of the image"),
            SnapshotError::Unseen { .. } => blame(FailureKind::Machine, error).hint(fuse::OTHERWISE),
            // Also what a remote cache has lost: not worth another attempt of the step, since it stays lost.
            _ => blame(FailureKind::Machine, error),
        }
    }
}

impl From<AgentError> for StepFailure {
    fn from(error: AgentError) -> Self {
        let hint = error.hint();
        let failure = blame(FailureKind::Build, error);
        match hint {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }
}

impl From<CdiError> for StepFailure {
    fn from(error: CdiError) -> Self {
        let hint = error.hint();
        let failure = blame(FailureKind::Build, error);
        match hint {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }
}

impl From<CacheMountError> for StepFailure {
    fn from(error: CacheMountError) -> Self {
        match error {
            CacheMountError::Cancelled => cancelled(),
            CacheMountError::Snapshot(error) => error.into(),
            CacheMountError::Source(error) => error.into(),
            CacheMountError::OneIdOnly { .. } => blame(FailureKind::Machine, error).hint(more_ids()),
            error => blame(FailureKind::Build, error),
        }
    }
}

impl From<ContextError> for StepFailure {
    fn from(error: ContextError) -> Self {
        let error = match error {
            ContextError::List(ListError::Git(error)) => return (*error).into(),
            error => error,
        };
        let hint = match &error {
            ContextError::Cancelled => return cancelled(),
            ContextError::NotFound { hint, .. } => hint.clone(),
            ContextError::Unreadable { ignore_file, .. } => Some(format!(
                "let the user who builds read it, or keep it out of the build with a line in {ignore_file}"
            )),
            _ => None,
        };
        let failure = blame(FailureKind::Build, error);
        match hint {
            // It tells what to do about the context.
            Some(hint) if failure.kind == FailureKind::Build => failure.hint(hint),
            _ => failure,
        }
    }
}

impl From<GitError> for StepFailure {
    fn from(error: GitError) -> Self {
        if let GitError::Elsewhere(failure) = error {
            return *failure;
        }
        let (hint, kind) = (error.hint(), error.blame());
        let failure = blame(kind, error);
        match hint {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }
}

impl From<CopyError> for StepFailure {
    fn from(error: CopyError) -> Self {
        match error {
            CopyError::Cancelled => cancelled(),
            CopyError::Source(ListError::Git(error)) => (*error).into(),
            CopyError::User(error) => error.into(),
            CopyError::Below(error) => (*error).into(),
            CopyError::Layer(error) => error.into(),
            error => blame(FailureKind::Build, error),
        }
    }
}

impl From<UserError> for StepFailure {
    fn from(error: UserError) -> Self {
        if let UserError::Below(error) = error {
            return (*error).into();
        }
        let hint = error.hint();
        let failure = blame(FailureKind::Build, error);
        match hint {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }
}

impl From<SandboxError> for StepFailure {
    fn from(error: SandboxError) -> Self {
        let hint = error.hint().map(str::to_owned);
        match (error, hint) {
            (SandboxError::Cancelled, _) => cancelled(),
            (error @ SandboxError::NoPlace { .. }, _) => blame(FailureKind::Build, error),
            (error, Some(hint)) => blame(FailureKind::Machine, error).hint(hint),
            (error, None) => blame(FailureKind::Machine, error),
        }
    }
}

impl From<PlanError> for StepFailure {
    fn from(error: PlanError) -> Self {
        match error {
            PlanError::OneIdOnly { .. } | PlanError::MountOwner { .. } => {
                blame(FailureKind::Machine, error).hint(more_ids())
            }
            error => blame(FailureKind::Usage, error),
        }
    }
}

impl From<DiffError> for StepFailure {
    fn from(error: DiffError) -> Self {
        match error {
            DiffError::Cancelled => cancelled(),
            error => blame(FailureKind::Build, error),
        }
    }
}

impl From<ListError> for StepFailure {
    fn from(error: ListError) -> Self {
        match error {
            ListError::Cancelled => cancelled(),
            ListError::Git(error) => (*error).into(),
            error => blame(FailureKind::Build, error),
        }
    }
}

/// A failure of this kind, unless the causes name somebody else.
pub(crate) fn blame(kind: FailureKind, error: impl Error + Send + Sync + 'static) -> StepFailure {
    if causes(&error).any(is_out_of_files) {
        return StepFailure::caused(FailureKind::Machine, error.to_string(), error).hint(FEW_FILES);
    }
    let kind = causes(&error).find_map(culprit).unwrap_or(kind);
    StepFailure::caused(kind, error.to_string(), error)
}

/// The build is to stop.
pub(crate) fn cancelled() -> StepFailure {
    StepFailure::new(FailureKind::Cancelled, "cancelled")
}

/// An error and what caused it; an I/O error that wraps another one is caused by that.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error| {
        let error = *error;
        let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        wrapped.map(|wrapped| wrapped as &(dyn Error + 'static)).or_else(|| error.source())
    })
}

/// The failure of something that writes nowhere but into the store, with advice where its disk is full or read-only.
pub(crate) fn in_store(failure: StepFailure, store: &Path) -> StepFailure {
    match &failure.hint {
        None if is_out_of_space(&failure) => {
            let free = free(store).map_or_else(String::new, |free| format!(" ({free} bytes are free now)"));
            failure.hint(full_disk_hint(store, &free))
        }
        None if ends_with(&failure, &[io::ErrorKind::ReadOnlyFilesystem]) => failure.hint(READ_ONLY_STORE),
        _ => failure,
    }
}

/// What this user may write to the disk of the store now that what failed has given back what it had.
fn free(store: &Path) -> Option<u64> {
    Some(free_bytes(&rustix::fs::statvfs(store).ok()?))
}

/// What to do about a store whose disk takes nothing more.
pub(crate) fn full_disk_hint(store: &Path, lack: &str) -> String {
    format!(
        "the disk of the store {} is full{lack}: make room there, with layerwright gc if nothing else can go, or put the store elsewhere with --root",
        store.display()
    )
}

/// Whether a disk that is full, or a quota, stands at the end of the causes.
pub(crate) fn is_out_of_space(error: &(dyn Error + 'static)) -> bool {
    ends_with(error, &[io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded])
}

fn ends_with(error: &(dyn Error + 'static), kinds: &[io::ErrorKind]) -> bool {
    causes(error)
        .filter_map(|error| error.downcast_ref())
        .any(|error: &io::Error| kinds.contains(&error.kind()))
}

/// Whether it is a process's limit of open files.
fn is_out_of_files(error: &(dyn Error + 'static)) -> bool {
    let number = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
    let told = match error.downcast_ref() {
        // What it wraps is not among the causes.
        Some(SnapshotError::Mount(mount)) => Some(mount.errno),
        _ => number.map(Errno::from_raw_os_error).or_else(|| error.downcast_ref().copied()),
    };
    told == Some(Errno::MFILE)
}

/// An error that is transparent does not appear among the causes beside the one it wraps, so the wrappers are known here.
fn culprit(error: &(dyn Error + 'static)) -> Option<FailureKind> {
    if let Some(ImageError::Registry(_)) = error.downcast_ref() {
        return Some(FailureKind::Registry);
    }
    match error.downcast_ref() {
        Some(FetchError::Registry(_)) => return Some(FailureKind::Registry),
        Some(FetchError::Store(_)) => return Some(FailureKind::Machine),
        Some(FetchError::Layout(_) | FetchError::Copy { .. }) | None => {}
    }
    if error.is::<RegistryError>() {
        return Some(FailureKind::Registry);
    }
    let kind = error.downcast_ref::<io::Error>()?.kind();
    let is_disk = matches!(
        kind,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::ReadOnlyFilesystem
    );
    is_disk.then_some(FailureKind::Machine)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{snapshot::PullError, unpack::UnpackError};

    fn base(source: PullError) -> SnapshotError {
        SnapshotError::Base { blob: oci::Sha256Digest::of(b""), source: Box::new(source) }
    }

    #[test]
    fn the_end_of_the_causes_is_to_blame() {
        let registry = || RegistryError::NotFound { name: "debian".to_owned(), reason: None };
        let refused = UnpackError::Refused { path: b"x".to_vec(), reason: "it is bad" };
        let below = |error| CopyError::User(UserError::Below(Box::new(error))).into();
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        let written = UnpackError::Io { action: "write", path: b"x".to_vec(), source: full() };
        let path = std::path::PathBuf::new();
        let out_of_files = || io::Error::from(Errno::MFILE);
        let unreadable = ContextError::Unreadable {
            path: "x".to_owned(),
            ignore_file: ".dockerignore".to_owned(),
            source: out_of_files(),
        };
        let download = RegistryError::Sink { url: "http://h/f".to_owned(), source: out_of_files() };
        let cases: Vec<(StepFailure, FailureKind)> = vec![
            (
                base(PullError::Open(io::Error::other(FetchError::from(registry())))).into(),
                FailureKind::Registry,
            ),
            (base(PullError::Open(io::Error::other(registry()))).into(), FailureKind::Registry),
            (base(PullError::Unpack(refused)).into(), FailureKind::Build),
            (base(PullError::Unpack(written)).into(), FailureKind::Machine),
            (unreadable.into(), FailureKind::Machine),
            (blame(FailureKind::Registry, download), FailureKind::Machine),
            (SnapshotError::Clock.into(), FailureKind::Machine),
            (SnapshotError::Cancelled.into(), FailureKind::Cancelled),
            (SnapshotError::Io { action: "open", path, source: full() }.into(), FailureKind::Machine),
            (blame(FailureKind::Build, ImageError::from(registry())), FailureKind::Registry),
            (below(CopyError::Below(Box::new(SnapshotError::Cancelled))), FailureKind::Cancelled),
            (
                below(CopyError::Below(Box::new(base(PullError::Open(io::Error::other(registry())))))),
                FailureKind::Registry,
            ),
            (CopyError::NotADirectory("x".to_owned()).into(), FailureKind::Build),
            (PlanError::NoCommand.into(), FailureKind::Usage),
            (
                SandboxError::NoPlace { step: "make /m".to_owned(), message: "x".to_owned() }.into(),
                FailureKind::Build,
            ),
            (SandboxError::InitDied("killed".to_owned()).into(), FailureKind::Machine),
        ];
        let full: Vec<_> = cases.iter().map(|(failure, _)| is_out_of_space(failure)).collect();
        let at: Vec<_> = (0..full.len()).filter(|at| full[*at]).collect();
        assert_eq!(at, [3, 8]);
        for (failure, kind) in cases {
            assert_eq!(failure.kind, kind, "{failure}");
        }
    }

    #[test]
    fn a_full_disk_is_told_with_the_store_unless_there_is_better_advice() {
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        let download = RegistryError::Sink { url: "http://h/f".to_owned(), source: full() };
        let advised = StepFailure::caused(FailureKind::Machine, "x", full()).hint("another");
        for (failure, hint) in [
            (
                blame(FailureKind::Registry, download),
                Some("the disk of the store /s is full: make room there"),
            ),
            (advised, Some("another")),
            (
                blame(FailureKind::Build, io::Error::from(io::ErrorKind::ReadOnlyFilesystem)),
                Some("the file system of the store is read-only"),
            ),
            (blame(FailureKind::Registry, RegistryError::Cancelled), None),
        ] {
            let told = in_store(failure, Path::new("/s")).hint;
            assert_eq!(told.is_some(), hint.is_some(), "{told:?}");
            assert!(told.unwrap_or_default().starts_with(hint.unwrap_or_default()));
        }
    }
}
