//! Remote caches for people.

use std::fmt::{self, Write};

use exporter::{
    assemble::rfc3339,
    cache::care::{Content, Entry, Kept, Seal, Survey, Swept, distinct},
};
use oci::{Layer, TreeDigest};
use solver::{Made, Maker, key::pre_image};

use super::{prune::Pruned, show::Shown};
use crate::{
    call::table,
    failure::harmless,
    history::{ago, ago_within, duration},
    progress::bytes,
};

/// So much of a digest tells it from all others.
const DIGEST: usize = 12;
/// Longest instruction or value in a table, in characters.
const TEXT_MAX: usize = 70;
/// So many names of strangers are told.
const OTHERS_MAX: usize = 5;

/// The answer of `cache ls`.
pub fn list(survey: &Survey, now: u64) -> String {
    let entries = survey.entries.iter().collect::<Vec<_>>();
    let mut out = tables(&entries, now);
    let total = Tally { records: records(&entries).len(), ..Tally::of(&entries) };
    let _ = writeln!(out, "Total:\t{total}: {}", bytes(distinct(&survey.entries)));
    out + &others(&survey.others)
}

/// The answer of `cache show`.
pub fn shown(shown: &Shown<'_>, now: u64) -> String {
    match shown {
        Shown::Record(entry, kept) => record(entry, kept, now),
        Shown::Inside(entry, kept) => {
            format!("In the bundle {}:\n", entry.names.join(", ")) + &record(entry, kept, now)
        }
        Shown::Whole(entry) => document(entry) + "\n" + &tables(&[entry], now),
    }
}

/// The answer of `cache prune`.
pub fn pruned(pruned: &Pruned<'_>, now: u64) -> String {
    let (before, left) = pruned.bytes();
    let mut out = String::new();
    if !pruned.going.is_empty() {
        out += if pruned.dry_run { "What would be removed:\n\n" } else { "What was removed:\n\n" };
        out += &tables(&pruned.going, now);
    }
    let verb = if pruned.dry_run { "Would be removed" } else { "Removed" };
    let _ = writeln!(out, "{verb}:\t{}: {}", Tally::of(&pruned.going), bytes(before - left));
    let _ = writeln!(out, "Left:\t{}: {}", Tally::of(&pruned.left()), bytes(left));
    for image in &pruned.strangers {
        let _ = writeln!(
            out,
            "Nothing of the cache is part of {image}: it was built elsewhere, or with times of its own (SOURCE_DATE_EPOCH)"
        );
    }
    match pruned.swept {
        Some(Swept::ByRegistry) if !pruned.going.is_empty() => {
            out += "The blobs go when the registry collects its garbage: registry garbage-collect CONFIG\n";
        }
        Some(Swept::Freed { count: blobs, bytes: freed, young }) => {
            let _ = writeln!(out, "Freed:\t{}, {}", count(blobs, "blob"), bytes(freed));
            if young > 0 {
                let _ = writeln!(
                    out,
                    "Young:\t{}: a build may be about to name them; they go when they are an hour old",
                    bytes(young)
                );
            }
        }
        _ => {}
    }
    out
}

/// How much there is: `3 records, 1 bundle`.
#[derive(Default)]
struct Tally {
    records: usize,
    bundles: usize,
    unusable: usize,
}

impl Tally {
    /// Documents, whatever is in a bundle.
    fn of(entries: &[&Entry]) -> Self {
        let mut tally = Self::default();
        for entry in entries {
            match entry.content {
                Content::Record(_) => tally.records += 1,
                Content::Bundle(_) => tally.bundles += 1,
                Content::Unusable(_) => tally.unusable += 1,
            }
        }
        tally
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { records, bundles, unusable } = *self;
        write!(f, "{}, {}", count(records, "record"), count(bundles, "bundle"))?;
        if unusable > 0 { write!(f, ", {unusable} unusable") } else { Ok(()) }
    }
}

fn count(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

/// What there is besides.
fn others(names: &[String]) -> String {
    if names.is_empty() {
        return String::new();
    }
    let first = names.iter().take(OTHERS_MAX).map(|name| harmless(name)).collect::<Vec<_>>().join(", ");
    let more = if names.len() > OTHERS_MAX { ", ..." } else { "" };
    format!("Others:\t{}, which are no cache: {first}{more}\n", count(names.len(), "name"))
}

/// The records of these documents, those that are in bundles too told once.
pub fn records<'a>(entries: &[&'a Entry]) -> Vec<&'a Kept> {
    let mut records: Vec<&Kept> = entries.iter().flat_map(|entry| entry.records()).collect();
    let key = |kept: &Kept| {
        let record = &kept.remote.record;
        (kept.made_at(), record.snapshot.layers.len(), record.definition, record.content)
    };
    records.sort_by_key(|kept| key(kept));
    records.dedup_by_key(|kept| key(kept));
    records
}

fn tables(entries: &[&Entry], now: u64) -> String {
    let mut parts = Vec::new();
    let mut rows = vec![["DEFINITION", "CONTENT", "MADE", "BY", "SIGNED", "SIZE", "STEP"].map(str::to_owned)];
    rows.extend(records(entries).iter().map(|kept| row(kept, now)));
    parts.push(columns(&rows));
    let mut rows = vec![["BUNDLE", "NEWEST", "RECORDS", "SIZE"].map(str::to_owned)];
    let mut bad = vec![["UNUSABLE", "WHY"].map(str::to_owned)];
    for entry in entries {
        let names = harmless(&entry.names.join(", "));
        match &entry.content {
            Content::Bundle(records) => {
                let newest = if records.is_empty() { "-".to_owned() } else { ago(now, entry.made_at()) };
                rows.push([names, newest, records.len().to_string(), bytes(entry.size)]);
            }
            Content::Unusable(why) => bad.push([names, one_line(why)]),
            Content::Record(_) => {}
        }
    }
    parts.extend([columns(&rows), columns(&bad)]);
    parts.retain(|part| !part.is_empty());
    parts.iter().map(|part| format!("{part}\n")).collect()
}

/// A table with a heading; nothing where there is nothing below it.
fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    if rows.len() == 1 {
        return String::new();
    }
    let rows: Vec<[&str; N]> = rows.iter().map(|row| row.each_ref().map(String::as_str)).collect();
    table(&rows, 2)
}

fn row(kept: &Kept, now: u64) -> [String; 7] {
    let record = &kept.remote.record;
    [
        short(&record.definition),
        short(&record.content),
        ago(now, kept.made_at()),
        harmless(&record.made.by.host),
        seal(kept.seal).to_owned(),
        bytes(kept.own_bytes()),
        one_line(instruction(kept)),
    ]
}

/// The instruction as written, else what the step is called.
pub fn instruction(kept: &Kept) -> &str {
    let fields = &kept.remote.record.pre_image;
    [pre_image::INSTRUCTION, pre_image::LABEL]
        .iter()
        .find_map(|name| fields.get(*name))
        .map_or("-", String::as_str)
}

/// Whether somebody answers for a record.
pub fn seal(seal: Seal) -> &'static str {
    match seal {
        Seal::Missing => "no",
        Seal::Unverified => "yes",
        Seal::Trusted => "trusted",
    }
}

fn short(digest: &TreeDigest) -> String {
    digest.hex()[..DIGEST].to_owned()
}

fn one_line(text: &str) -> String {
    let text = harmless(text).replace('\n', " ");
    match text.chars().count() > TEXT_MAX {
        true => text.chars().take(TEXT_MAX - 3).collect::<String>() + "...",
        false => text,
    }
}

/// A line `Name: value`; what is not there has none.
fn line(out: &mut String, name: &str, value: &str) {
    let _ = writeln!(out, "{:<12}{}", format!("{name}:"), harmless(value).replace('\n', " "));
}

/// What holds for every document.
fn document(entry: &Entry) -> String {
    let mut out = String::new();
    line(&mut out, "Names", &entry.names.join(", "));
    line(&mut out, "Manifest", &format!("{}, {}", entry.digest, bytes(entry.size)));
    line(
        &mut out,
        "Keeps",
        &format!("{}, {}", count(entry.blobs.len(), "blob"), bytes(entry.blobs.values().sum())),
    );
    out
}

fn record(entry: &Entry, kept: &Kept, now: u64) -> String {
    let record = &kept.remote.record;
    let Made { by: Maker { builder, host, build, at }, took_ms } = &record.made;
    let mut out = String::new();
    line(&mut out, "Step", instruction(kept));
    line(&mut out, "Definition", &record.definition.to_string());
    line(&mut out, "Content", &record.content.to_string());
    line(&mut out, "Parent", &record.parent.to_string());
    let when = rfc3339(i64::try_from(*at).unwrap_or(i64::MAX));
    line(&mut out, "Made", &format!("{when}, {}, in {}", ago_within(now, *at), duration(*took_ms)));
    line(&mut out, "By", &format!("{builder} on {host}, build {build}"));
    line(&mut out, "Signed", seal(kept.seal));
    out += &document(entry);
    out + "\n" + &layers(kept) + "\n" + &fields(kept)
}

/// The chain, the base first: each layer with its blobs.
fn layers(kept: &Kept) -> String {
    let mut rows = vec![["LAYER", "TREE", "DIFF ID", "SIZE", "BLOB", "PACKED BY"].map(str::to_owned)];
    for layer in &kept.remote.record.snapshot.layers {
        match layer {
            Layer::Base(base) => rows.push([
                "base".to_owned(),
                "-".to_owned(),
                base.diff_id.to_string(),
                bytes(base.descriptor.size),
                base.descriptor.digest.to_string(),
                "-".to_owned(),
            ]),
            Layer::Built(tree) => match kept.remote.layers.get(tree) {
                None => rows.push(["empty", "-", "-", "-", "-", "-"].map(str::to_owned)),
                Some(described) => rows.extend(described.blobs.iter().map(|(encoder, blob)| {
                    let (tree, diff_id) = (short(tree), described.diff_id.to_string());
                    [
                        "step".to_owned(),
                        tree,
                        diff_id,
                        bytes(blob.size),
                        blob.digest.to_string(),
                        encoder.clone(),
                    ]
                })),
            },
        }
    }
    columns(&rows)
}

/// What the content key was made of.
fn fields(kept: &Kept) -> String {
    let mut rows = vec![["FIELD", "VALUE"].map(str::to_owned)];
    let fields = kept.remote.record.pre_image.iter();
    rows.extend(fields.map(|(name, value)| [name, value].map(|text| harmless(text).replace('\n', " "))));
    columns(&rows)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use exporter::cache::{Described, RemoteRecord};
    use oci::{Descriptor, DiffId, MediaType, Sha256Digest, Snapshot};
    use solver::Record;

    use super::*;

    fn kept(instruction: &str, at: u64) -> Kept {
        let (tree, blob) = (digest(instruction), Descriptor::of(MediaType::OciLayer, &[0; 4096]));
        let tree_blob = Descriptor::of(MediaType::OciLayer, &[1; 400]);
        let diff_id = DiffId::from(Sha256Digest::of(b"tar"));
        let described = Described { diff_id, blobs: [("uncompressed".to_owned(), blob)].into(), tree_blob };
        let by =
            Maker { builder: "layerwright 0.2.0".into(), host: "runner-1".into(), build: "b".into(), at };
        let record = Record {
            definition: digest("definition"),
            content: digest("content"),
            parent: Snapshot::default().digest(),
            snapshot: Snapshot { layers: vec![Layer::Built(tree)] },
            pre_image: [(pre_image::INSTRUCTION.to_owned(), instruction.to_owned())].into(),
            made: Made { by, took_ms: 1500 },
        };
        let remote =
            RemoteRecord { record, layers: [(tree, described)].into(), inventories: BTreeMap::new() };
        Kept { remote, seal: Seal::Unverified }
    }

    /// Any 32 bytes do.
    fn digest(text: &str) -> TreeDigest {
        format!("blake3:{}", Sha256Digest::of(text.as_bytes()).hex()).parse().expect("a digest")
    }

    fn entry(names: &[&str], content: Content) -> Entry {
        let names: Vec<String> = names.iter().map(|name| name.to_string()).collect();
        let digest = Sha256Digest::of(names.concat().as_bytes());
        Entry { names, digest, size: 1000, blobs: [(Sha256Digest::of(b"layer"), 5000)].into(), content }
    }

    #[test]
    fn a_line_a_record_and_what_is_shared_counted_once() {
        let one = kept("RUN make \x1b[2J\\\n  all", 1_000_000);
        let record = entry(&["lw1-c-1", "lw1-d-1"], Content::Record(Box::new(one.clone())));
        let bundle = entry(&["main"], Content::Bundle(vec![one]));
        let bad = entry(&["lw1-d-2"], Content::Unusable("cut".to_owned()));
        let others = (0..7).map(|number| format!("v{number}")).collect();
        let survey = Survey { entries: vec![record, bundle.clone(), bad], others, ..Survey::default() };
        let want = "\
DEFINITION    CONTENT       MADE           BY        SIGNED  SIZE    STEP
4c4ed1afbfda  ed7002b439e9  5 minutes ago  runner-1  yes     4.50kB  RUN make  [2J\\   all

BUNDLE  NEWEST         RECORDS  SIZE
main    5 minutes ago  1        1.00kB

UNUSABLE  WHY
lw1-d-2   cut

Total:\t1 record, 1 bundle, 1 unusable: 8.00kB
Others:\t7 names, which are no cache: v0, v1, v2, v3, v4, ...
";
        assert_eq!(list(&survey, 1_000_300), want);
        assert_eq!(list(&Survey::default(), 0), "Total:\t0 records, 0 bundles: 0B\n");
        let alone = Survey { entries: vec![bundle], ..Survey::default() };
        assert!(
            list(&alone, 1_000_300).ends_with("Total:\t1 record, 1 bundle: 6.00kB\n"),
            "as many as it lists"
        );
        assert_eq!(crate::cache::json::list("c", &alone)["distinct_records"], 1);
    }

    #[test]
    fn a_prune_says_what_the_registry_has_yet_to_do() {
        let one = kept("RUN make", 0);
        let entries = vec![entry(&["a"], Content::Record(Box::new(one)))];
        let survey = Survey { entries, ..Survey::default() };
        let told = |dry_run, swept| {
            let going = survey.entries.iter().collect();
            pruned(
                &Pruned { dry_run, survey: &survey, going, swept, strangers: vec!["app:1".to_owned()] },
                10,
            )
        };
        let planned = told(true, None);
        assert!(
            planned.contains(
                "Would be removed:\t1 record, 0 bundles: 6.00kB\nLeft:\t0 records, 0 bundles: 0B\n"
            )
        );
        assert!(planned.starts_with("What would be removed:\n\nDEFINITION "), "{planned}");
        assert!(planned.contains("Nothing of the cache is part of app:1") && !planned.contains("garbage"));
        assert!(told(false, None).starts_with("What was removed:\n\nDEFINITION "));
        assert!(told(false, Some(Swept::ByRegistry)).contains("registry garbage-collect CONFIG"));
        let freed = told(false, Some(Swept::Freed { count: 1, bytes: 5000, young: 70 }));
        assert!(freed.contains("Freed:\t1 blob, 5.00kB\nYoung:\t70B: a build may"), "{freed}");
    }
}
