//! What base layers hold, without unpacking them: catalogues of this process, of the store, or made of the blobs as these
//! stream by, several layers at a time.
//!
//! The blob of a registry stays in the store, as when it is unpacked: a copy on its way costs a tenth of reading it, and
//! spares the next build that runs something on this base, or writes the image into a layout, the whole download.

use std::sync::Arc;

use oci::{BaseLayer, Layer, Snapshot};

use super::{SnapshotError, Snapshots, base::at_once, pull::pull};
use crate::catalogue::{self, Catalogue};

impl Snapshots {
    /// The catalogues of the layers of a base image, topmost first; `None` if it must be looked at on disk: because that is
    /// where it lies already, because it has layers that steps made, or because only a disk can tell.
    ///
    /// # Errors
    /// A layer cannot be had, is not what its digests say, or has an entry that no layer may have.
    pub(crate) fn catalogues(
        &self,
        snapshot: &Snapshot,
    ) -> Result<Option<Vec<Arc<Catalogue>>>, SnapshotError> {
        let Some((top, _)) = snapshot.chain().last() else { return Ok(Some(Vec::new())) };
        if self.meta(&top)?.is_some() {
            return Ok(None);
        }
        let mut layers = Vec::new();
        for (_, layer) in snapshot.chain() {
            let Layer::Base(layer) = layer else { return Ok(None) };
            layers.push(layer.as_ref());
        }
        layers.reverse();
        let paths: Vec<_> = layers.iter().map(|layer| catalogue::path(&layer.diff_id)).collect();
        self.store().pin(&paths)?;
        let catalogues = at_once(&layers, |layer| self.catalogue(layer))?;
        let needs_disk = catalogues.iter().any(|catalogue| catalogue.needs_disk());
        Ok((!needs_disk).then_some(catalogues))
    }

    fn catalogue(&self, layer: &BaseLayer) -> Result<Arc<Catalogue>, SnapshotError> {
        if let Some(found) = self.known_catalogue(layer)? {
            return Ok(found);
        }
        let what = format!("reads {:.19}", layer.descriptor.digest.to_string());
        let _lock = self.lock_named(&format!("catalogue-{}", layer.diff_id.hex()), &what)?;
        // Whoever had the lock before us may have made it.
        if let Some(found) = self.known_catalogue(layer)? {
            return Ok(found);
        }
        let made = self.have(layer, || {
            Ok(pull(&self.bringer(), layer, |stream| Catalogue::read(stream), &self.events, &self.cancel))
        })?;
        made.keep(self.store(), &layer.diff_id)?;
        Ok(self.remember(layer, made))
    }

    /// What this process or the store knows. A file that is of no use is written over.
    fn known_catalogue(&self, layer: &BaseLayer) -> Result<Option<Arc<Catalogue>>, SnapshotError> {
        let known = self.catalogues.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(known) = known.get(&layer.diff_id) {
            return Ok(Some(Arc::clone(known)));
        }
        drop(known);
        let file = self.store().root().join(catalogue::path(&layer.diff_id));
        match Catalogue::kept(&file) {
            Ok(Some(kept)) => {
                self.store().touch(&catalogue::path(&layer.diff_id));
                Ok(Some(self.remember(layer, kept)))
            }
            Ok(None) => Ok(None),
            Err(error) if error.is_useless() => {
                self.warn(format!("{} will be made again: {error}", file.display()));
                Ok(None)
            }
            Err(source) => Err(SnapshotError::Catalogue { path: file, source }),
        }
    }

    fn remember(&self, layer: &BaseLayer, catalogue: Catalogue) -> Arc<Catalogue> {
        let mut known = self.catalogues.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        Arc::clone(known.entry(layer.diff_id).or_insert_with(|| Arc::new(catalogue)))
    }
}
