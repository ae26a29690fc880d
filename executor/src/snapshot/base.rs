//! Makes the missing layers of a chain. Those of base images are unpacked at the same time, then settled one on the
//! other from the base up, and what only a remote cache has is brought meanwhile; between and above them come those that a
//! step made and that are not on disk ([`super::materialise`]).

use std::{
    collections::BTreeMap,
    fs,
    os::fd::OwnedFd,
    path::PathBuf,
    sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc::channel,
    },
};

use oci::{
    BaseLayer, Layer, TreeDigest,
    store::TempDir,
    threads::{both, up_to},
};
use rustix::fs::Stat;

use super::{
    FILES, Meta, SnapshotError, Snapshots, Stamp, StreamError, directory, files,
    materialise::Place,
    meta::{owned, write_brought},
    open_directory,
    pull::{PullError, pull},
};
use crate::{
    form::Form,
    imprint,
    unpack::{Loose, Target, unpack},
};

/// Layers that are unpacked at the same time; each keeps three threads and a connection busy.
const AT_ONCE: usize = 4;

/// How often a layer is asked for when what came was not it.
const ATTEMPTS: usize = 3;

/// A layer from the first missing one up; one that must be made has a time later than that of the one below.
enum Missing<'a> {
    Base(&'a BaseLayer, Stamp),
    Built(TreeDigest, Stamp),
    /// Made by a step, and only a remote cache has it.
    Elsewhere(TreeDigest, Stamp),
    /// Only what is below it is missing.
    There(Box<Meta>),
}

/// A layer that is unpacked and not in its place yet.
struct Pulled {
    loose: Loose,
    temp: TempDir,
    /// What entries of the layer have replaced each other; gone when this is.
    _trash: TempDir,
}

impl<'a> Missing<'a> {
    fn base(&self) -> Option<(&'a BaseLayer, Stamp)> {
        match self {
            Self::Base(layer, stamp) => Some((layer, *stamp)),
            Self::Built(..) | Self::Elsewhere(..) | Self::There(_) => None,
        }
    }

    fn elsewhere(&self) -> Option<TreeDigest> {
        match self {
            Self::Elsewhere(layer, _) => Some(*layer),
            Self::Base(..) | Self::Built(..) | Self::There(_) => None,
        }
    }
}

impl Snapshots {
    /// Completes a chain of which the lowest layers are there. The caller holds the lock of the first that is not.
    pub(super) fn make_layers(
        &self,
        chain: &[(TreeDigest, &Layer)],
        mut metas: Vec<Meta>,
    ) -> Result<Vec<Meta>, SnapshotError> {
        let missing = self.upwards(chain, &metas)?;
        let bases: Vec<_> = missing.iter().filter_map(Missing::base).collect();
        let elsewhere: Vec<_> = missing.iter().filter_map(Missing::elsewhere).collect();
        let (brought, pulled) = both(
            || self.bring_layers(&elsewhere),
            || at_once(&bases, |(layer, stamp)| self.pull_one(layer, *stamp)),
        );
        brought?;
        let mut pulled = pulled?.into_iter();
        for missing in missing {
            let digest = chain[metas.len()].0;
            let place = (metas.len().checked_sub(1).map(|below| chain[below].0), digest);
            let lowers = self.lowers(chain, &metas);
            metas.push(match missing {
                Missing::There(meta) => *meta,
                Missing::Built(layer, stamp) | Missing::Elsewhere(layer, stamp) => {
                    let (on, chain) = place;
                    self.rebuild(layer, &Place { on, chain, lowers, stamp }, metas.last())?
                }
                Missing::Base(layer, stamp) => {
                    let pulled = pulled.next().expect("every base layer was pulled, in order");
                    self.place(place, layer, stamp, pulled, &lowers, metas.last())?
                }
            });
        }
        Ok(metas)
    }

    /// What becomes of the layers from the first missing one up. One that stands above a gap stays where it is: its
    /// directory may be all that is left of a step's work.
    fn upwards<'a>(
        &self,
        chain: &[(TreeDigest, &'a Layer)],
        metas: &[Meta],
    ) -> Result<Vec<Missing<'a>>, SnapshotError> {
        let mut below = metas.last().map(|meta| meta.stamp);
        let mut missing = Vec::new();
        for (digest, layer) in &chain[metas.len()..] {
            if let Some(meta) = self.meta(digest)? {
                below = below.max(Some(meta.stamp));
                missing.push(Missing::There(Box::new(meta)));
                continue;
            }
            let stamp = Stamp::now_after(below).ok_or(SnapshotError::Clock)?;
            below = Some(stamp);
            missing.push(match layer {
                Layer::Base(layer) => Missing::Base(layer, stamp),
                Layer::Built(tree) if self.bytes_of(tree)?.is_some() => Missing::Built(*tree, stamp),
                Layer::Built(tree) if self.fetcher.elsewhere().get(tree).is_some() => {
                    Missing::Elsewhere(*tree, stamp)
                }
                Layer::Built(tree) => {
                    return Err(SnapshotError::Gone { layer: *tree, path: directory(self.store(), digest) });
                }
            });
        }
        Ok(missing)
    }

    fn pull_one(&self, layer: &BaseLayer, stamp: Stamp) -> Result<Pulled, SnapshotError> {
        self.have(layer, || self.pull_into_new(layer, stamp))
    }

    /// Pulls a layer. Outer error of `pull`: the store cannot be written; inner: the layer cannot be had.
    pub(super) fn have<T>(
        &self,
        layer: &BaseLayer,
        pull: impl Fn() -> Result<Result<T, PullError>, SnapshotError>,
    ) -> Result<T, SnapshotError> {
        let descriptor = &layer.descriptor;
        let is_stored = || self.store().has_blob(&descriptor.digest, descriptor.size);
        let was_stored = is_stored();
        let mut pulled = pull()?;
        for _ in 1..ATTEMPTS {
            let Err(PullError::Damaged(_)) = pulled else { break };
            // The fetcher removes a blob that it finds damaged; without it the origin is asked.
            if was_stored && !is_stored() {
                self.warn(format!("the stored blob {} was damaged and is fetched again", descriptor.digest));
            }
            pulled = pull()?;
        }
        pulled.map_err(|error| match error {
            PullError::Stream(StreamError::Cancelled) => SnapshotError::Cancelled,
            error => SnapshotError::Base { blob: descriptor.digest, source: Box::new(error) },
        })
    }

    /// Outer: the store cannot be written. Inner: the layer cannot be had.
    fn pull_into_new(
        &self,
        layer: &BaseLayer,
        stamp: Stamp,
    ) -> Result<Result<Pulled, PullError>, SnapshotError> {
        let (temp, trash) = (self.store().temp_dir("layer")?, self.store().temp_dir("trash")?);
        let root = temp.path().join(FILES);
        fs::create_dir(&root).map_err(SnapshotError::io("create", &root))?;
        let target = Target {
            root: open_directory(&root)?,
            trash: open_directory(trash.path())?,
            form: self.form,
            stamp,
        };
        let loose = pull(&self.bringer(), layer, |stream| unpack(stream, target), &self.events, &self.cancel);
        Ok(loose.map(|loose| Pulled { loose, temp, _trash: trash }))
    }

    fn place(
        &self,
        (on, chain): (Option<TreeDigest>, TreeDigest),
        layer: &BaseLayer,
        stamp: Stamp,
        pulled: Pulled,
        lowers: &[PathBuf],
        below: Option<&Meta>,
    ) -> Result<Meta, SnapshotError> {
        let blob = layer.descriptor.digest;
        let owners = below.map(Meta::owners).unwrap_or_default();
        let open = lowers.iter().map(|lower| open_directory(lower)).collect::<Result<Vec<OwnedFd>, _>>()?;
        let unpacked =
            pulled.loose.settle(&open, &owners).map_err(|source| SnapshotError::Settle { blob, source })?;
        for warning in unpacked.warnings {
            self.warn(format!("layer {blob}: {warning}"));
        }
        let meta = Meta {
            layer: Layer::Base(Box::new(layer.clone())).tree(),
            parent: on,
            bytes: self.bytes_with(below, unpacked.bytes),
            stamp,
            opaque_root: unpacked.opaque_root,
            owners: owned(unpacked.owners),
        };
        let temp = pulled.temp.path();
        let root = open_directory(&temp.join(FILES))?;
        self.fill(&root, lowers.first().filter(|_| !unpacked.opaque_root))?;
        write_brought(temp, &unpacked.brought)?;
        if let Some(contents) = &unpacked.contents {
            let known = |stat: &Stat| contents.get(&stat.st_ino).copied();
            let tree = imprint::imprint(&root, &known)
                .map_err(|source| SnapshotError::Imprint { blob, source: Box::new(source) })?;
            imprint::keep(temp, &tree)?;
        }
        meta.write(temp)?;
        self.store().rename_into(pulled.temp, &directory(self.store(), &chain))?;
        Ok(meta)
    }

    /// The directories of the layers that are there, topmost first, as far down as anything shows through; the topmost where
    /// it is a copy.
    pub(super) fn lowers(&self, chain: &[(TreeDigest, &Layer)], metas: &[Meta]) -> Vec<PathBuf> {
        let layers = chain.iter().zip(metas).rev();
        if self.form == Form::Copies {
            return layers.take(1).map(|((digest, _), _)| files(self.store(), digest)).collect();
        }
        let hidden = layers.clone().position(|(_, meta)| meta.opaque_root).map_or(usize::MAX, |at| at + 1);
        layers.take(hidden).map(|((digest, _), _)| files(self.store(), digest)).collect()
    }
}

/// Does some work for each layer, at most [`AT_ONCE`] at the same time; the answers come in order. The first failure keeps
/// those that have not begun from beginning.
pub(crate) fn at_once<L: Sync, T: Send>(
    layers: &[L],
    work: impl Fn(&L) -> Result<T, SnapshotError> + Sync,
) -> Result<Vec<T>, SnapshotError> {
    let next = AtomicUsize::new(0);
    let (sender, results) = channel();
    let take = || loop {
        let at = next.fetch_add(1, Ordering::Relaxed);
        let Some(layer) = layers.get(at) else { break };
        let done = work(layer);
        if done.is_err() {
            next.store(layers.len(), Ordering::Relaxed);
        }
        // The receiver lives until all threads have ended.
        let _ = sender.send((at, done));
    };
    up_to(layers.len().min(AT_ONCE), take);
    drop(sender);
    let results: BTreeMap<_, _> = results.iter().collect();
    results.into_values().collect()
}
