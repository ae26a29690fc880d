//! An image into a registry (distribution-spec, "Push").
//!
//! Order: layers and configs, several at a time and each only if the repository lacks it; then, if anything had to be
//! moved, every blob is confirmed, and what the registry does not have after all is sent once more; then manifests; the
//! manifest or index that the tag names comes last of all. So a tag never names what is not there, and a push that is
//! interrupted changes no tag.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use oci::{
    BlobOrigin, Reference,
    registry::{Pushed, RegistryError},
};
use solver::Event;

use super::{
    ExportError, Tools,
    blobs::{self, Blob, Place},
    go_on, staged,
};
use crate::assemble::Assembled;

/// Progress of a blob is told once for each of this many bytes.
const REPORT_STEP: u64 = 1024 * 1024;

/// Pushes an image under one of its names. Blobs that an earlier one of `names` has brought to the same registry are
/// mounted from there.
pub fn push(
    assembled: &Assembled,
    name: &Reference,
    names: &[Reference],
    tools: &Tools<'_>,
) -> Result<(), ExportError> {
    let name = &name.with_default_tag();
    let earlier = names.iter().take_while(|other| other.with_default_tag() != *name);
    let pushed_before = earlier.filter(|other| other.registry == name.registry).last();
    let push = Push { name, pushed_before, tools };
    staged(tools, format!("pushing {name}"), name.to_string(), || {
        // What the tag will name must outlive a power loss here, too: the store answers for it in the next build.
        tools.fetcher.store().sync()?;
        push.blobs(assembled)?;
        push.manifests(assembled)
    })?;
    Ok(())
}

struct Push<'a> {
    name: &'a Reference,
    pushed_before: Option<&'a Reference>,
    tools: &'a Tools<'a>,
}

impl Push<'_> {
    fn blobs(&self, assembled: &Assembled) -> Result<(), ExportError> {
        let contents = blobs::contents(assembled);
        let moved = AtomicBool::new(false);
        blobs::in_parallel(contents.values().cloned(), |blob| {
            let pushed = self.blob(blob)?;
            moved.fetch_or(pushed != Pushed::Existed, Ordering::SeqCst);
            Ok(())
        })?;
        if !moved.load(Ordering::SeqCst) {
            return Ok(());
        }
        blobs::in_parallel(contents.into_values(), |blob| self.confirm(blob))
    }

    fn blob(&self, blob: &Blob<'_>) -> Result<Pushed, ExportError> {
        go_on(self.tools.cancel)?;
        let progress = Progress::new(blob, self.tools);
        let (open, advance) = (|| blob.open(self.tools), |bytes| progress.add(bytes));
        let registry = self.tools.fetcher.registry();
        let pushed = registry.push_blob(self.name, blob.descriptor, self.mount_source(blob), &open, &advance);
        let pushed = pushed.map_err(|error| self.failed(error))?;
        progress.finish();
        Ok(pushed)
    }

    /// A repository of the same registry that has the blob.
    fn mount_source<'b>(&'b self, blob: &'b Blob<'_>) -> Option<&'b Reference> {
        match blob.place {
            Place::Origin(BlobOrigin::Registry(origin)) if origin.registry == self.name.registry => {
                Some(origin)
            }
            _ => self.pushed_before,
        }
    }

    fn confirm(&self, blob: &Blob<'_>) -> Result<(), ExportError> {
        let registry = self.tools.fetcher.registry();
        let digest = blob.descriptor.digest;
        let is_there = || registry.has_blob(self.name, &digest).map_err(|error| self.failed(error));
        if is_there()? {
            return Ok(());
        }
        self.blob(blob)?;
        if is_there()? {
            Ok(())
        } else {
            Err(ExportError::Vanished { reference: Box::new(self.name.clone()), digest })
        }
    }

    /// Manifests by digest, then what the tag names by its tag.
    fn manifests(&self, assembled: &Assembled) -> Result<(), ExportError> {
        go_on(self.tools.cancel)?;
        for manifest in blobs::manifests(assembled) {
            let descriptor = manifest.descriptor;
            let is_root = descriptor.digest == assembled.root.digest;
            let name = if is_root { self.name.clone() } else { self.name.with_digest(descriptor.digest) };
            let Place::Memory(bytes) = manifest.place else { continue };
            let registry = self.tools.fetcher.registry();
            let pushed = registry.push_manifest(&name, &descriptor.media_type, bytes);
            pushed.map_err(|error| self.failed(error))?;
        }
        Ok(())
    }

    fn failed(&self, error: RegistryError) -> ExportError {
        match error {
            RegistryError::Source { digest, source } => ExportError::Blob { digest, source },
            other => ExportError::Push { reference: Box::new(self.name.clone()), source: Box::new(other) },
        }
    }
}

/// Says how much of a blob has been sent.
struct Progress<'a> {
    tools: &'a Tools<'a>,
    task: String,
    total: u64,
    done: AtomicU64,
}

impl<'a> Progress<'a> {
    fn new(blob: &Blob<'_>, tools: &'a Tools<'a>) -> Self {
        let task = format!("push sha256:{}", &blob.descriptor.digest.hex()[..12]);
        Self { tools, task, total: blob.descriptor.size, done: AtomicU64::new(0) }
    }

    fn add(&self, bytes: u64) {
        let before = self.done.fetch_add(bytes, Ordering::Relaxed);
        let after = (before + bytes).min(self.total);
        if before / REPORT_STEP != after / REPORT_STEP && after < self.total {
            self.report(after);
        }
    }

    /// Ends the task, if any of its bytes were sent.
    fn finish(&self) {
        if self.done.load(Ordering::Relaxed) > 0 {
            self.report(self.total);
        }
    }

    fn report(&self, done: u64) {
        (self.tools.events)(Event::Transfer { task: self.task.clone(), done, total: self.total });
    }
}
