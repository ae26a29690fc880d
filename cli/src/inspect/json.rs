//! The JSON of `inspect`: docs/inspect.md describes it. What `docker buildx imagetools inspect` has a name for is called so.

use serde_json::{Map, Value, json};

use super::look::{Image, Inspected, Step};

/// The whole object.
pub fn shown(name: &str, found: &Inspected) -> Value {
    let mut object = json!({ "name": name, "manifest": manifest(found) });
    if !found.images.is_empty() {
        object["images"] = found.images.iter().map(image).collect();
    }
    object
}

/// The root document as it is, with its digest and size.
fn manifest(found: &Inspected) -> Value {
    let descriptor = &found.root.descriptor;
    let mut manifest: Map<String, Value> = serde_json::from_slice(&found.root.bytes).unwrap_or_default();
    manifest.insert("mediaType".to_owned(), json!(descriptor.media_type));
    manifest.insert("digest".to_owned(), json!(descriptor.digest));
    manifest.insert("size".to_owned(), json!(descriptor.size));
    manifest.into()
}

fn image(image: &Image) -> Value {
    let descriptor = &image.descriptor;
    let mut object = json!({
        "platform": image.platform.to_string(),
        "mediaType": descriptor.media_type,
        "digest": descriptor.digest,
        "size": descriptor.size,
        "totalSize": image.size(),
        "config": image.manifest.config,
        "image": image.whole_config,
        "layers": image.manifest.layers,
        "history": image.steps().iter().map(step).collect::<Value>(),
    });
    if !image.manifest.annotations.is_empty() {
        object["annotations"] = json!(image.manifest.annotations);
    }
    object
}

/// A line of the config's history, with the digest and size of the layer.
fn step(step: &Step<'_>) -> Value {
    let mut line = step.history.map_or(json!({}), |history| json!(history));
    if let Some(layer) = step.layer {
        line["layer"] = json!(layer.digest);
        line["size"] = json!(layer.size);
    }
    line
}
