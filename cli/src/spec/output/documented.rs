//! `docs/outputs.md` lists every key of every output; here each of its lines is taken at its word.

use std::collections::BTreeSet;

use super::OutputSpec;

const PAGE: &str = include_str!("../../../../docs/outputs.md");

/// What buildx's manual and BuildKit's exporters list for each type.
const KNOWN: &[(&str, &[&str])] = &[
    ("registry", &["push", "push-by-digest", "registry.insecure", "name-canonical", "store", "unpack"]),
    ("image", &["push", "push-by-digest", "registry.insecure", "name-canonical", "store", "unpack"]),
    ("oci", &["dest", "tar"]),
    ("docker", &["dest", "tar", "context"]),
    ("tar", &["dest", "platform-split", "attestation-prefix", "source-date-epoch"]),
    ("local", &["dest", "platform-split", "attestation-prefix", "source-date-epoch"]),
];
/// What it lists for all that hold an image.
const OF_IMAGES: &[&str] = &[
    "name",
    "compression",
    "compression-level",
    "force-compression",
    "oci-mediatypes",
    "annotation",
    "annotation-manifest",
    "annotation-manifest-descriptor",
    "annotation-index",
    "annotation-index-descriptor",
    "rewrite-timestamp",
    "source-date-epoch",
    "prefer-nondist-layers",
    "attestation-inline",
    "buildinfo",
    "buildinfo-attrs",
];

/// One example of the table of keys: `key=value`, for a type, and whether it is refused.
struct Row<'a> {
    example: &'a str,
    kind: &'a str,
    is_refused: bool,
}

fn rows() -> Vec<Row<'static>> {
    let table = PAGE.split("| key |").nth(1).expect("the table of keys").lines().skip(2);
    let lines = table.take_while(|line| line.starts_with('|'));
    let rows = lines.flat_map(|line| {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [examples, kinds, text] = cells[..] else { panic!("a line has key, types and text: {line}") };
        let examples = examples.split('`').filter(|example| !example.trim().is_empty());
        let is_refused = text.starts_with("refused");
        examples.flat_map(move |example| {
            kinds.split_whitespace().map(move |kind| Row { example, kind, is_refused })
        })
    });
    rows.collect()
}

/// The example as a whole value: what it cannot be without is added.
fn whole(Row { example, kind, .. }: &Row<'_>) -> String {
    let lacks_place = *kind == "local" || *example == "tar=false";
    let place = if lacks_place && !example.starts_with("dest=") { ",dest=x" } else { "" };
    format!("type={kind},{example}{place}")
}

#[test]
fn every_documented_key_is_what_the_page_says() {
    let rows = rows();
    assert!(rows.len() > 80, "the table of docs/outputs.md was not found");
    for row in rows {
        let text = whole(&row);
        let parsed = text.parse::<OutputSpec>();
        assert_eq!(parsed.is_err(), row.is_refused, "{text}: {parsed:?}");
    }
}

#[test]
fn every_key_of_buildx_is_documented() {
    let key = |example: &'static str| example.split(['=', '[']).next().unwrap_or_default();
    let key = |example| match key(example).split_once('.') {
        Some((option, _)) if option.starts_with("annotation") => option,
        _ => key(example),
    };
    let documented: BTreeSet<_> = rows().iter().map(|row| (row.kind, key(row.example))).collect();
    let holds_image = |kind| ["registry", "image", "oci", "docker"].contains(kind);
    let known = KNOWN.iter().flat_map(|(kind, keys)| {
        let of_images = if holds_image(kind) { OF_IMAGES } else { &[] };
        keys.iter().chain(of_images).map(move |key| (*kind, *key))
    });
    let missing: Vec<_> = known.filter(|known| !documented.contains(known)).collect();
    assert!(missing.is_empty(), "not in docs/outputs.md: {missing:?}");
}
