//! Remote caches for programs; docs/cache-care.md describes it.

use std::collections::BTreeMap;

use exporter::{
    assemble::rfc3339,
    cache::care::{Content, Entry, Kept, Survey, Swept, distinct},
};
use oci::{Descriptor, Layer};
use serde_json::{Value, json};
use solver::Made;

use super::{prune::Pruned, show::Shown, text};

/// The answer of `cache ls`.
pub fn list(cache: &str, survey: &Survey) -> Value {
    let mut object = documents(survey.entries.iter());
    object["cache"] = json!(cache);
    object["distinct_records"] = json!(text::records(&survey.entries.iter().collect::<Vec<_>>()).len());
    object["others"] = json!(survey.others);
    object["bytes"] = json!(distinct(&survey.entries));
    object
}

/// The answer of `cache prune`.
pub fn pruned(pruned: &Pruned<'_>) -> Value {
    let (before, left) = pruned.bytes();
    let mut object = json!({
        "dry_run": pruned.dry_run,
        "removed": documents(pruned.going.iter().copied()),
        "bytes": before - left,
        "left": left,
        "kept_images_not_found": pruned.strangers,
    });
    if let Some(Swept::Freed { count, bytes, young }) = pruned.swept {
        object["freed"] = json!({ "blobs": count, "bytes": bytes, "young_bytes": young });
    }
    object
}

/// The answer of `cache show`.
pub fn shown(shown: &Shown<'_>) -> Value {
    let (entry, kept) = match shown {
        Shown::Record(entry, kept) | Shown::Inside(entry, kept) => (entry, Some(kept)),
        Shown::Whole(entry) => (entry, None),
    };
    let Some(kept) = kept else { return documents([*entry]) };
    let mut object = record(kept);
    named(&mut object, entry);
    object["parent"] = json!(kept.remote.record.parent);
    object["layers"] = kept.remote.record.snapshot.layers.iter().map(|own| layer(kept, own)).collect();
    object["pre_image"] = json!(kept.remote.record.pre_image);
    object["inventories"] = inventories(kept);
    object
}

fn documents<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> Value {
    let (mut records, mut bundles, mut unusable) = (Vec::new(), Vec::new(), Vec::new());
    for entry in entries {
        let (list, mut object) = match &entry.content {
            Content::Record(kept) => (&mut records, record(kept)),
            Content::Bundle(inside) => (
                &mut bundles,
                json!({ "records": inside.iter().map(record).collect::<Vec<_>>(), "newest": time(entry.made_at()) }),
            ),
            Content::Unusable(why) => (&mut unusable, json!({ "why": why })),
        };
        named(&mut object, entry);
        list.push(object);
    }
    json!({ "records": records, "bundles": bundles, "unusable": unusable })
}

fn named(object: &mut Value, entry: &Entry) {
    object["names"] = json!(entry.names);
    object["manifest"] = json!({ "digest": entry.digest, "size": entry.size });
    object["kept_bytes"] = json!(entry.blobs.values().sum::<u64>());
}

fn record(kept: &Kept) -> Value {
    let record = &kept.remote.record;
    let Made { by, took_ms } = &record.made;
    json!({
        "definition": record.definition,
        "content": record.content,
        "instruction": text::instruction(kept),
        "size": kept.own_bytes(),
        "signed": text::seal(kept.seal),
        "made": { "at": time(by.at), "builder": by.builder, "host": by.host, "build": by.build, "took_ms": took_ms },
    })
}

fn layer(kept: &Kept, layer: &Layer) -> Value {
    match layer {
        Layer::Base(base) => json!({ "base": { "diff_id": base.diff_id, "blob": blob(&base.descriptor) } }),
        Layer::Built(tree) => match kept.remote.layers.get(tree) {
            None => json!({ "tree": tree, "empty": true }),
            Some(described) => {
                let blobs: BTreeMap<_, _> =
                    described.blobs.iter().map(|(encoder, packed)| (encoder, blob(packed))).collect();
                let tree_blob = blob(&described.tree_blob);
                json!({ "tree": tree, "diff_id": described.diff_id, "blobs": blobs, "tree_blob": tree_blob })
            }
        },
    }
}

fn inventories(kept: &Kept) -> Value {
    let lists = kept.remote.inventories.iter();
    lists.map(|(files, list)| (files.to_string(), blob(list))).collect::<serde_json::Map<_, _>>().into()
}

fn blob(descriptor: &Descriptor) -> Value {
    json!({ "digest": descriptor.digest, "size": descriptor.size, "media_type": descriptor.media_type })
}

fn time(at: u64) -> String {
    rfc3339(i64::try_from(at).unwrap_or(i64::MAX))
}
