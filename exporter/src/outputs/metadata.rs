//! What `--metadata-file` says of an image, with the keys and the shape that `docker buildx build` gives it.

use oci::{Descriptor, Reference};
use serde_json::{Value, json};

use crate::assemble::{Assembled, rfc3339};

/// The object of `--metadata-file`. `containerimage.config.digest` is there for single images only, as with buildx.
pub fn metadata(assembled: &Assembled, names: &[Reference]) -> Value {
    let Descriptor { media_type, digest, size, annotations, .. } = &assembled.root;
    let mut annotations = json!(annotations);
    annotations["org.opencontainers.image.created"] = json!(rfc3339(assembled.created));
    let mut metadata = json!({ "containerimage.digest": digest });
    if let ([image], None) = (assembled.images.as_slice(), &assembled.index) {
        annotations["config.digest"] = json!(image.config.digest);
        metadata["containerimage.config.digest"] = json!(image.config.digest);
    }
    metadata["containerimage.descriptor"] =
        json!({ "mediaType": media_type, "digest": digest, "size": size, "annotations": annotations });
    if !names.is_empty() {
        let names: Vec<_> = names.iter().map(Reference::to_string).collect();
        metadata["image.name"] = json!(names.join(","));
    }
    metadata
}
