//! An image as an archive that `docker load` takes (`type=docker,dest=`).
//!
//! As BuildKit writes it: the tar of an OCI layout with one file more, `manifest.json`, which names the same blobs in
//! the way of `docker save` (moby, image/spec, "Combined Image JSON + Filesystem Changeset Format"). Who knows
//! layouts reads the manifest, with its digest; who does not, reads config and layers. Layers stay as they are packed:
//! `docker load` has unpacked gzip since 1.10.

use oci::Reference;
use serde::Serialize;

use super::{Destination, ExportError, Tools, tarball};
use crate::assemble::{Assembled, AssembledImage};

/// One image of `manifest.json`.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    config: String,
    /// Names with tags, as people write them.
    repo_tags: Vec<String>,
    layers: Vec<String>,
}

/// Writes the archive.
pub fn export(
    assembled: &Assembled,
    destination: &Destination,
    names: &[Reference],
    tools: &Tools<'_>,
) -> Result<(), ExportError> {
    let manifest = manifest_json(assembled, names)?;
    destination.write(|out| tarball::write_image(assembled, names, Some(&manifest), out, tools))
}

/// The bytes of `manifest.json`.
///
/// # Errors
/// [`ExportError::SeveralPlatforms`]
pub fn manifest_json(assembled: &Assembled, names: &[Reference]) -> Result<Vec<u8>, ExportError> {
    let [image] = assembled.images.as_slice() else {
        return Err(ExportError::SeveralPlatforms(assembled.images.len()));
    };
    let entry = entry(image, names);
    Ok(serde_json::to_vec(&[entry]).expect("plain data with string keys"))
}

fn entry(image: &AssembledImage, names: &[Reference]) -> Entry {
    let path = |digest: oci::Sha256Digest| format!("blobs/sha256/{}", digest.hex());
    let mut repo_tags: Vec<_> = names.iter().map(|name| name.with_default_tag().familiar()).collect();
    repo_tags.sort();
    repo_tags.dedup();
    Entry {
        config: path(image.config.digest),
        repo_tags,
        layers: image.layers.iter().map(|layer| path(layer.descriptor.digest)).collect(),
    }
}
