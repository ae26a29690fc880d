//! The JSON of `diff`: docs/diff.md describes it.

use executor::compare::{Change, Field, excerpt::Excerpt, settings::Setting};
use oci::Descriptor;
use serde_json::{Value, json};

use super::{
    Comparison, Found, How, ImageDifference, StepDifference,
    layers::LayerChanges,
    text::{attribute, moment},
};

/// The whole object.
pub fn shown(comparison: &Comparison) -> Value {
    let root = |(name, root): &(String, Descriptor)| json!({ "name": name, "digest": root.digest, "mediaType": root.media_type });
    json!({
        "same": comparison.is_same(),
        "first": root(&comparison.names[0]),
        "second": root(&comparison.names[1]),
        "index": settings(&comparison.index),
        "images": comparison.images.iter().map(image).collect::<Value>(),
    })
}

fn image(image: &ImageDifference) -> Value {
    let platform = image.platform.to_string();
    match &image.found {
        Found::First => json!({ "platform": platform, "only": "first" }),
        Found::Second => json!({ "platform": platform, "only": "second" }),
        Found::Both { settings: found, steps } => json!({
            "platform": platform,
            "settings": settings(found),
            "steps": steps.iter().map(step).collect::<Value>(),
        }),
    }
}

fn settings(found: &[Setting]) -> Value {
    let setting = |one: &Setting| {
        let parsed = |text: &Option<String>| -> Value {
            text.as_deref()
                .map_or(Value::Null, |text| serde_json::from_str(text).unwrap_or_else(|_| json!(text)))
        };
        json!({ "name": one.name, "first": parsed(&one.first), "second": parsed(&one.second) })
    };
    found.iter().map(setting).collect()
}

fn step(step: &StepDifference) -> Value {
    let mut object = json!({ "step": step.number, "of": step.of, "instruction": step.instruction });
    match &step.how {
        How::First => object["only"] = json!("first"),
        How::Second => object["only"] = json!("second"),
        How::Layer { is_first } => object["layer"] = json!(if *is_first { "first" } else { "second" }),
        How::Packed(blobs) => object["packed"] = json!({ "first": blobs[0], "second": blobs[1] }),
        How::Made { settings: found, changes } => {
            object["settings"] = settings(found);
            object["files"] = changes.iter().flat_map(files).collect();
        }
    }
    object
}

fn files(found: &LayerChanges) -> Vec<Value> {
    found.changes.iter().map(|change| file(change, found.excerpts.get(&change.path))).collect()
}

fn file(change: &Change, excerpt: Option<&Excerpt>) -> Value {
    let fields: Value = change.fields.iter().map(|found| field(found, excerpt)).collect();
    json!({ "path": format!("/{}", String::from_utf8_lossy(&change.path)), "fields": fields })
}

fn field(field: &Field, excerpt: Option<&Excerpt>) -> Value {
    let pair =
        |name: &str, first: Value, second: Value| json!({ "field": name, "first": first, "second": second });
    let lossy = |bytes: &[u8]| json!(String::from_utf8_lossy(bytes));
    match field {
        Field::OnlyFirst(noun) => pair("kind", json!(noun), Value::Null),
        Field::OnlySecond(noun) => pair("kind", Value::Null, json!(noun)),
        Field::Kind(one, other) => pair("kind", json!(one), json!(other)),
        Field::Content(one, other) => {
            let mut object = json!({ "field": "content", "firstSize": one, "secondSize": other });
            if let Some(Excerpt { offset, line, first, second }) = excerpt {
                object["offset"] = json!(offset);
                object["line"] = json!(line);
                object["first"] = json!(first);
                object["second"] = json!(second);
            }
            object
        }
        Field::Target(one, other) => pair("target", lossy(one), lossy(other)),
        Field::Device(one, other) => pair("device", json!([one.0, one.1]), json!([other.0, other.1])),
        Field::Mode(one, other) => pair("mode", json!(format!("{one:04o}")), json!(format!("{other:04o}"))),
        Field::Owner(one, other) => pair("owner", json!([one.0, one.1]), json!([other.0, other.1])),
        Field::Time(one, other) => pair("mtime", json!(moment(*one)), json!(moment(*other))),
        Field::Attribute(name, one, other) => {
            let hex = |value: &Option<_>| json!(value.as_ref().map(|value| attribute(Some(value))));
            let mut object = pair("attribute", hex(one), hex(other));
            object["name"] = lossy(name);
            object
        }
        Field::Opaque(one, other) => pair("opaque", json!(one), json!(other)),
    }
}
