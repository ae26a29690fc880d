//! A build that fails because the store, or a remote cache, has lost something, or holds it damaged, is made once more: what is
//! damaged is taken out of the way, so that it is made again. What another running build uses stays where it is; then the
//! failure is told, with what to do about it.

use std::{
    error::Error,
    path::{Path, PathBuf},
};

use executor::SnapshotError;
use exporter::{AssembleError, ExportError, SealError};
use oci::{
    elsewhere::bring::{BringError, Loss},
    fetch::{DamagedBlob, Fetcher},
    store::{Store, StoreError, Taken},
};

use solver::Event;

use crate::{
    build::Events,
    failure::{self, Failure},
    redact::redact,
};

/// What to do where a build has not been able to help itself.
pub const HINT: &str = "layerwright fsck --repair removes what is damaged in the store; then build again";

/// What a failure says of the store: the paths that must go before a build can be made again, which may be none.
/// `None` where it says nothing of that.
pub fn damage(failure: &Failure) -> Option<Vec<PathBuf>> {
    // What is transparent stands for its cause and does not name it.
    let sealing = match failure {
        Failure::Seal(error) | Failure::Export(ExportError::Tree(error)) => Some(error),
        Failure::Assemble(AssembleError::Seal(error)) => Some(&**error),
        _ => None,
    };
    let found = sealing.and_then(unsealable);
    found.or_else(|| {
        std::iter::successors(failure::cause(failure), |error| failure::cause(*error)).find_map(lost)
    })
}

/// Whether an output could not read a layer that only a remote cache has, which is lost then; nothing has to go from the
/// store for that.
pub fn loss(failure: &Failure, fetcher: &Fetcher) -> Option<Vec<PathBuf>> {
    let Failure::Export(ExportError::Blob { digest, source }) = failure else { return None };
    let layers = fetcher.elsewhere();
    let origin = layers.lose_blob(digest)?;
    layers.failed(&origin, digest, source);
    Some(Vec::new())
}

/// What was damaged, in a line: a damaged blob says it all itself.
pub fn told(failure: &Failure) -> String {
    let mut causes = std::iter::successors(failure::cause(failure), |error| failure::cause(*error));
    let text = match causes.find(|error| error.is::<DamagedBlob>()) {
        Some(blob) => failure::harmless(&blob.to_string()),
        None => failure::chain(failure),
    };
    redact(&text).into_owned()
}

/// Whether the things could be taken out of the way. Where that fails the build ends as it has, with what it has delivered, so it
/// is a warning.
pub fn clear(store: &Store, damaged: &[PathBuf], events: &Events) -> bool {
    remove(store, damaged).unwrap_or_else(|error| {
        let why = failure::chain(&Failure::from(error));
        let text = format!("what is damaged cannot be taken out of the way: {why}");
        events(Event::Warning(redact(&text).into_owned()));
        false
    })
}

fn remove(store: &Store, damaged: &[PathBuf]) -> Result<bool, StoreError> {
    // Ours; the next attempt pins what it finds.
    store.release_pins()?;
    let mut removal = store.removal()?;
    let mut all_gone = true;
    for path in damaged {
        all_gone &= removal.take(path)? != Taken::InUse;
    }
    removal.finish()?;
    Ok(all_gone)
}

fn lost(error: &(dyn Error + 'static)) -> Option<Vec<PathBuf>> {
    if let Some(error) = error.downcast_ref::<SnapshotError>() {
        return match error {
            SnapshotError::Tree { path, .. } => Some(vec![path.clone()]),
            error => error.is_lost().then(Vec::new),
        };
    }
    // What was there when the layer was sealed: whoever read it first has found it damaged.
    if let Some(StoreError::NoBlob { .. }) = error.downcast_ref() {
        return Some(Vec::new());
    }
    if error.is::<Loss>() {
        return Some(Vec::new());
    }
    // Out of the way by now.
    let blob = error.downcast_ref::<DamagedBlob>().map(|_| Vec::new());
    blob.or_else(|| error.downcast_ref::<SealError>().and_then(unsealable))
}

fn unsealable(error: &SealError) -> Option<Vec<PathBuf>> {
    match error {
        SealError::Damaged { chain, .. } => Some(vec![Path::new("snapshots").join(chain.hex())]),
        SealError::DamagedTree { path, .. } => Some(vec![path.clone()]),
        SealError::Gone { .. } => Some(Vec::new()),
        SealError::Elsewhere(error) if matches!(**error, BringError::Lost { .. }) => Some(Vec::new()),
        SealError::Read { source, .. } if source.kind() == std::io::ErrorKind::NotFound => Some(Vec::new()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    use oci::{Sha256Digest, TreeDigest};
    use solver::{FailureKind, StepFailure, VertexId};

    use super::*;

    fn step(error: impl Error + Send + Sync + 'static) -> Failure {
        let failure = StepFailure::caused(FailureKind::Machine, "cannot run", error);
        Failure::Step { vertex: VertexId(0), label: "RUN x".into(), span: None, failure: Box::new(failure) }
    }

    #[test]
    fn damage_is_seen_wherever_it_stands_and_nothing_else_is() {
        let digest = TreeDigest::new([1; 32]);
        let snapshot = PathBuf::from(format!("snapshots/{}", digest.hex()));
        let damaged =
            || SealError::Damaged { chain: digest, tree: digest, path: vec![], what: String::new() };
        let blob = || io::Error::other(DamagedBlob::new(Sha256Digest::of(b""), io::Error::other("bits")));
        let no_blob = || StoreError::NoBlob { digest: Sha256Digest::of(b"") };
        let lost = || {
            let encoder = Loss::Encoder("..".to_owned());
            BringError::Lost { layer: digest, from: "cache".into(), source: encoder }
        };
        let gone = || SnapshotError::Gone { layer: digest, path: "x".into() };
        let export = |source| ExportError::Blob { digest: Sha256Digest::of(b""), source };
        for (failure, found) in [
            (Failure::Seal(damaged()), Some(vec![snapshot.clone()])),
            (AssembleError::Seal(Arc::new(damaged())).into(), Some(vec![snapshot])),
            (step(gone()), Some(vec![])),
            (export(blob()).into(), Some(vec![])),
            (export(io::Error::other(no_blob())).into(), Some(vec![])),
            (export(io::Error::other("disk")).into(), None),
            (step(SnapshotError::from(lost())), Some(vec![])),
            (Failure::Seal(SealError::Elsewhere(Box::new(lost()))), Some(vec![])),
            (export(io::Error::other(lost())).into(), Some(vec![])),
            (step(SnapshotError::from(BringError::Cancelled)), None),
            (step(SnapshotError::Clock), None),
            (Failure::Clock, None),
        ] {
            assert_eq!(damage(&failure), found, "{failure}");
        }
    }

    #[test]
    fn a_damaged_blob_is_named_once() {
        let digest = Sha256Digest::of(b"");
        let source = io::Error::other(DamagedBlob::new(digest, io::Error::other("its bytes are others")));
        let failure = Failure::from(ExportError::Blob { digest, source });
        let told = told(&failure);
        assert_eq!(told, format!("the store's copy of blob {digest} is damaged and was removed"));
    }

    #[test]
    fn what_is_damaged_goes_unless_somebody_else_uses_it() {
        let directory = tempfile::tempdir().expect("made");
        let (own, other) = (Store::open(directory.path()).expect("a store"), Store::open(directory.path()));
        let other = other.expect("a store");
        let damaged = [PathBuf::from("trees/x")];
        own.write_atomic(&damaged[0], b"damaged").expect("written");
        other.pin(&damaged).expect("pinned");
        assert!(!remove(&own, &damaged).expect("tried") && own.root().join("trees/x").exists());
        drop(other);
        own.pin(&damaged).expect("pinned");
        assert!(remove(&own, &damaged).expect("tried") && !own.root().join("trees/x").exists());
    }

    #[test]
    fn what_cannot_be_taken_away_is_a_warning_and_no_end_of_its_own() {
        let directory = tempfile::tempdir().expect("made");
        let store = Store::open(directory.path()).expect("a store");
        store.write_atomic(Path::new("trees/x"), b"a file").expect("written");
        let told = Arc::<Mutex<Vec<Event>>>::default();
        let sink = Arc::clone(&told);
        let events: Events = Arc::new(move |event| sink.lock().expect("no test panics in it").push(event));
        assert!(!clear(&store, &[PathBuf::from("trees/x/below")], &events));
        let told = told.lock().expect("no test panics in it").pop();
        assert!(matches!(&told, Some(Event::Warning(text)) if text.contains("trees/x/below")), "{told:?}");
    }
}
