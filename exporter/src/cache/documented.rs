//! docs/remote-cache.md shows what the code writes: a block behind `<!-- example: NAME -->` is that example. `UPDATE_EXPECT=1`
//! makes it so.

use std::{env, fs};

use oci::packed;

use super::{
    Announcement, Artifact, ArtifactKind, Builder, Inline, InlineStep, RemoteRecord, Said, SignKey,
    SignedRecord, State, artifact,
    bundle::{self, Bundle},
    names, record,
    samples::{copy, digest, origin},
    sign::tests::PRIVATE,
};

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/remote-cache.md");

/// Every example by its name.
fn examples() -> [(&'static str, String); 7] {
    let record = copy();
    let document = record.to_document().expect("a record");
    let signature = key().sign(ArtifactKind::Record, &document);
    let signed = SignedRecord { document: document.clone(), signature: Some(signature.clone()) };
    let artifact = Artifact {
        kind: ArtifactKind::Record,
        document: document.clone(),
        signature: Some(signature),
        blobs: record.blobs(),
    };
    let manifest = String::from_utf8(artifact::manifest(&artifact)).expect("text");
    let names = [names::definition(&record.record.definition), names::content(&record.record.content)];
    let running = names::running(&record.record.content);
    let bundle = names::bundle("FROM scratch\n", None, &["linux/amd64".parse().expect("a platform")]);
    [
        ("record", spread(str::from_utf8(&document).expect("text").trim_end())),
        ("manifest", spread(&shortened(&manifest))),
        ("names", [names.join("\n"), running, bundle].join("\n")),
        ("bundle", bundled(signed)),
        ("announcement", spread(&announced(&names::running(&record.record.content)))),
        ("inline", spread(&inline(&record).to_string())),
        ("key", PRIVATE.trim_end().to_owned()),
    ]
}

fn key() -> SignKey {
    let directory = tempfile::tempdir().expect("made");
    let path = directory.path().join("key");
    fs::write(&path, PRIVATE).expect("written");
    SignKey::read(&path).expect("a key")
}

/// A manifest without most of the document that is embedded in it.
fn shortened(manifest: &str) -> String {
    let (before, embedded) = manifest.split_once("\"data\":\"").expect("it is embedded");
    let (data, after) = embedded.split_once('"').expect("it ends");
    format!("{before}\"data\":\"{}...\"{after}", &data[..32])
}

/// A bundle of one record: its first bytes, and those of its content.
fn bundled(signed: SignedRecord) -> String {
    let length = signed.document.len();
    let bytes = Bundle { records: [signed].into(), ..Bundle::default() }.encode();
    let content = packed::unpack(&bytes[44..], bundle::UNPACKED_MAX).expect("packed");
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ");
    let lines = [
        format!("{}   \"lwbundle\"", hex(&bytes[..8])),
        format!("{}   version {}", hex(&bytes[8..12]), bundle::VERSION),
        format!("{} ...   BLAKE3 of the content", hex(&bytes[12..16])),
        format!("{} ...   the content, packed:", hex(&bytes[44..48])),
        format!("  {}   a record", hex(&content[..1])),
        format!("  {}   of {length} bytes", hex(&content[1..5])),
        format!("  {}   signed with 64 bytes", hex(&content[5..6])),
        format!("  {} ...   the signature", hex(&content[6..10])),
        format!("  {} ...   {{\"di...: the document", hex(&content[70..74])),
    ];
    lines.join("\n")
}

/// The manifest of an announcement under this name.
fn announced(name: &str) -> String {
    let builder = Builder(0x5f3c_1a7e_90b2_4d86_a1c4_7be0_3392_d5f8);
    let said = Said { builder, count: 1, state: State::Running };
    let announcement = Announcement::new(said, name, Some(&key()));
    String::from_utf8(artifact::announcement(&announcement)).expect("text")
}

fn inline(record: &RemoteRecord) -> serde_json::Value {
    let step = InlineStep { definition: record.record.definition, layer: digest("copied") };
    let (tree, described) = record.layers.first_key_value().expect("one layer");
    let inline = Inline {
        encoder: described.blobs.keys().next().expect("one blob").clone(),
        base: 1,
        steps: vec![step],
        trees: [(*tree, described.tree_blob.clone())].into(),
    };
    serde_json::json!({ (super::inline::CONFIG_KEY): inline.to_value() })
}

/// JSON as people read it: spaces and line ends between what is there, and nothing else.
fn spread(json: &str) -> String {
    let (mut text, mut depth, mut quoted, mut escaped) = (String::new(), 0_usize, false, false);
    let line = |depth: usize| format!("\n{}", "  ".repeat(depth));
    for c in json.chars() {
        let opened = !quoted && text.ends_with(['{', '[']);
        match c {
            _ if quoted => {}
            '}' | ']' => depth -= 1,
            _ => {}
        }
        match c {
            '}' | ']' if !quoted && !opened => text += &line(depth),
            _ if opened && !matches!(c, '}' | ']') => text += &line(depth),
            _ => {}
        }
        text.push(c);
        match c {
            '"' if !escaped => quoted = !quoted,
            '{' | '[' if !quoted => depth += 1,
            ',' if !quoted => text += &line(depth),
            ':' if !quoted => text.push(' '),
            _ => {}
        }
        escaped = quoted && c == '\\' && !escaped;
    }
    text
}

/// The page with every example as it should be.
fn rewritten(page: &str) -> String {
    let mut page = page.to_owned();
    for (name, example) in examples() {
        let mark = format!("<!-- example: {name} -->\n```");
        let (before, rest) = page.split_once(&mark).unwrap_or_else(|| panic!("no example {name}"));
        let (language, rest) = rest.split_once('\n').expect("a line");
        let (_, after) = rest.split_once("\n```").expect("the end of a block");
        page = format!("{before}{mark}{language}\n{example}\n```{after}");
    }
    page
}

#[test]
fn the_page_shows_what_is_written() {
    let page = fs::read_to_string(PAGE).expect("docs/remote-cache.md");
    let wanted = rewritten(&page);
    if env::var_os("UPDATE_EXPECT").is_some() {
        return fs::write(PAGE, wanted).expect("written");
    }
    assert!(page == wanted, "docs/remote-cache.md is not what the code writes; UPDATE_EXPECT=1 rewrites it");
}

#[test]
fn the_example_of_the_page_is_a_record() {
    let page = fs::read_to_string(PAGE).expect("docs/remote-cache.md");
    let (_, rest) = page.split_once("<!-- example: record -->\n```json\n").expect("the example");
    let (shown, _) = rest.split_once("\n```").expect("its end");
    let mut document = String::new();
    let (mut quoted, mut escaped) = (false, false);
    for c in shown.chars() {
        quoted ^= c == '"' && !escaped;
        escaped = c == '\\' && !escaped;
        if quoted || !c.is_whitespace() {
            document.push(c);
        }
    }
    document.push('\n');
    let read = RemoteRecord::from_document(document.as_bytes(), None, &origin()).expect("a record");
    assert_eq!(read, copy());
}

#[test]
fn the_page_names_every_type_and_limit() {
    let page = fs::read_to_string(PAGE).expect("docs/remote-cache.md");
    let types = [packed::TREE_MEDIA_TYPE.to_owned(), packed::INVENTORY_MEDIA_TYPE.to_owned()];
    let kinds = [ArtifactKind::Record, ArtifactKind::Bundle].map(|kind| kind.media_type().to_string());
    let mib = |bytes: u64| format!("{} MiB", bytes >> 20);
    let limits = [
        record::DOCUMENT_MAX,
        bundle::PACKED_MAX,
        bundle::UNPACKED_MAX,
        packed::TREE_MAX,
        packed::INVENTORY_MAX,
    ];
    let counts = [bundle::ENTRIES_MAX, super::inline::STEPS_MAX].map(|count| count.to_string());
    let all = types.into_iter().chain(kinds).chain(limits.map(mib)).chain(counts);
    let missing: Vec<String> = all.filter(|text| !page.contains(text.as_str())).collect();
    assert!(missing.is_empty(), "not in docs/remote-cache.md: {missing:?}");
}
