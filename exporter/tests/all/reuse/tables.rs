//! Chunk tables: what is copied by them, and what becomes of a build that finds another one than it would have written.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use exporter::{Encoder, SealedLayer};
use oci::{ContentDigest, Tree};

use super::{Described, Place, described, from_scratch, many, noise, replace};

#[test]
fn unchanged_chunks_are_copied() {
    // Headers that compressing would not give show which chunks were copied: another operating system than ours, and
    // the bit that no reader of zstd looks at.
    let gzip: &[u8] = &[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 77];
    let zstd: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd, 0xb4];
    for (encoder, mark) in [(Encoder::GZIP, gzip), (Encoder::ZSTD, zstd)] {
        let place = Place::new();
        let mut files = BTreeMap::from([("large".to_owned(), noise(7_000_000, 7))]);
        let old = described(&files, &BTreeMap::new());
        let (sealed, _) = place.seal(&old, encoder);
        let marked = |_, member: &mut [u8]| member[..mark.len()].copy_from_slice(mark);
        let count = change_chunks(&place.blob(&sealed), &place.table(&old, encoder), marked);
        // Those before it are copied in another way than those after it.
        files.get_mut("large").expect("there")[3_500_000] ^= 1;
        let (edited, _) = place.seal(&described(&files, &BTreeMap::new()), encoder);
        let bytes = fs::read(place.blob(&edited)).expect("a blob");
        let copied = bytes.windows(mark.len()).filter(|window| *window == mark).count();
        // The edit is in one, and may move the ends of those after it.
        assert!(count >= 5 && copied + 3 >= count, "{encoder:?}: {copied} of {count} chunks were copied");
    }
}

#[test]
fn the_chunks_that_two_blobs_begin_with_are_neither_decompressed_nor_hashed() {
    for encoder in [Encoder::GZIP, Encoder::ZSTD] {
        let place = Place::new();
        let mut files = BTreeMap::from([("large".to_owned(), noise(7_000_000, 7))]);
        files.insert("last".to_owned(), b"old".to_vec());
        let old = described(&files, &BTreeMap::new());
        let (sealed, _) = place.seal(&old, encoder);
        // No reader could make anything of them, and no hasher what they were.
        let junk = |after, member: &mut [u8]| {
            if after > 0 {
                member.fill(b'?');
            }
        };
        let count = change_chunks(&place.blob(&sealed), &place.table(&old, encoder), junk);
        assert!(count >= 5, "{count} chunks");
        files.insert("last".to_owned(), b"new".to_vec());
        let edited = described(&files, &BTreeMap::new());
        let (found, opened) = place.seal(&edited, encoder);
        assert_eq!((&found, &*opened), (&from_scratch(&edited, encoder), &["last".to_owned()][..]));
        assert!(fs::read(place.blob(&found)).expect("a blob").starts_with(b"????"));
    }
}

#[test]
fn states_in_each_others_place_are_not_believed() {
    let mut files = BTreeMap::from([("large".to_owned(), noise(7_000_000, 7))]);
    files.insert("last".to_owned(), b"old".to_vec());
    let old = described(&files, &BTreeMap::new());
    files.insert("last".to_owned(), b"new".to_vec());
    let edited = described(&files, &BTreeMap::new());
    let want = from_scratch(&edited, Encoder::GZIP);
    for hasher in ["tar", "blob"] {
        let place = Place::new();
        place.seal(&old, Encoder::GZIP);
        let table = place.table(&old, Encoder::GZIP);
        let mut rows = rows(&table);
        // The last row holds the digests of the record and is as it was.
        let [_, second, third, _, ..] = &mut rows[..] else { panic!("{} chunks", rows.len()) };
        std::mem::swap(&mut second[hasher], &mut third[hasher]);
        write_rows(&table, &rows, 2);
        let (found, opened) = place.seal(&edited, Encoder::GZIP);
        assert_eq!((found, opened.len()), (want.clone(), 2), "{hasher}: done without the old blob");
    }
}

/// Changes each chunk of a blob, told how many come after it, but not its length, and corrects what the table says of it;
/// tells how many there are.
fn change_chunks(blob: &PathBuf, table: &PathBuf, change: impl Fn(usize, &mut [u8])) -> usize {
    let mut bytes = fs::read(blob).expect("a blob");
    let mut rows = rows(table);
    let (mut offset, mut after) = (0, rows.len());
    for row in &mut rows {
        let size = row["chunk"]["size"].as_u64().expect("a number") as usize;
        let member = &mut bytes[offset..offset + size];
        after -= 1;
        change(after, member);
        row["chunk"]["member"] = serde_json::to_value(ContentDigest::of(member)).expect("text");
        offset += size;
    }
    replace(blob, &bytes);
    write_rows(table, &rows, 2);
    rows.len()
}

/// The rows of a chunk table.
fn rows(table: &Path) -> Vec<serde_json::Value> {
    oci::store::checked::read(table, 2).expect("a good table").expect("a table")
}

fn write_rows(table: &PathBuf, rows: &[serde_json::Value], version: u32) {
    replace(table, &oci::store::checked::encode(version, &rows).expect("plain data"));
}

impl Place {
    fn table(&self, layer: &Described, encoder: Encoder) -> PathBuf {
        let directory = self.workshop.store.area("sealed").join(layer.tree.digest().hex());
        directory.join(format!("{}.normal.chunks", encoder.id()))
    }
}

/// Puts one hasher of the first row into the last one.
fn mix(place: &Place, layer: &Described, hasher: &str) {
    let table = place.table(layer, Encoder::GZIP);
    let mut rows = rows(&table);
    let (first, last) = rows.split_first_mut().expect("rows");
    last.last_mut().expect("several chunks")[hasher] = first[hasher].clone();
    write_rows(&table, &rows, 2);
}

type Damaging = fn(&Place, &Described, &SealedLayer);

#[test]
fn help_that_is_gone_or_makes_no_sense_is_done_without() {
    let old = described(&many(), &BTreeMap::new());
    let mut files = many();
    files.insert("d/047".to_owned(), b"edited".to_vec());
    let edited = described(&files, &BTreeMap::new());
    let want = from_scratch(&edited, Encoder::GZIP);
    let damages: [(&str, Damaging); 13] = [
        ("no blob", |place, _, sealed| fs::remove_file(place.blob(sealed)).expect("ours")),
        ("a short blob", |place, _, sealed| replace(&place.blob(sealed), b"short")),
        ("no table", |place, old, _| fs::remove_file(place.table(old, Encoder::GZIP)).expect("ours")),
        ("a bad table", |place, old, _| replace(&place.table(old, Encoder::GZIP), b"{}")),
        ("a table of another version", |place, old, _| {
            let table = place.table(old, Encoder::GZIP);
            write_rows(&table, &rows(&table), 1);
        }),
        ("a table that ends in another tar", |place, old, _| mix(place, old, "tar")),
        ("a table that ends in another blob", |place, old, _| mix(place, old, "blob")),
        ("a table with the end of the tar at its beginning", |place, old, _| {
            let table = place.table(old, Encoder::GZIP);
            let mut rows = rows(&table);
            rows[0]["tar"] = rows.last().expect("rows")["tar"].clone();
            write_rows(&table, &rows, 2);
        }),
        ("a table with a SHA-256 of more bytes than can be counted", |place, old, _| {
            let table = place.table(old, Encoder::GZIP);
            let mut rows = rows(&table);
            // Eight words and the count of blocks have all bits, the last block has none.
            rows.last_mut().expect("rows")["tar"] =
                format!("{}wAA{}", "/".repeat(53), "A".repeat(83) + "=").into();
            write_rows(&table, &rows, 2);
        }),
        ("a table with what is no SHA-256", |place, old, _| {
            let table = place.table(old, Encoder::GZIP);
            let mut rows = rows(&table);
            rows[0]["tar"] = "AAAA".into();
            write_rows(&table, &rows, 2);
        }),
        ("no tree", |place, old, _| {
            fs::remove_file(place.workshop.store.area("trees").join(old.tree.digest().hex())).expect("ours");
        }),
        ("bad hints", |place, _, _| {
            for hint in fs::read_dir(place.workshop.store.area("seeds")).expect("an area") {
                replace(&hint.expect("a hint").path(), b"hm");
            }
        }),
        ("hints at what is not there", |place, _, _| {
            for hint in fs::read_dir(place.workshop.store.area("seeds")).expect("an area") {
                let path = hint.expect("a hint").path();
                let text = fs::read_to_string(&path).expect("text");
                assert!(text.contains("tree"));
                let other = serde_json::json!({ "tree": Tree::empty_digest() });
                replace(&path, &oci::store::checked::encode(1, &other).expect("plain data"));
            }
        }),
    ];
    for (name, damage) in damages {
        let place = Place::new();
        let (sealed, _) = place.seal(&old, Encoder::GZIP);
        damage(&place, &old, &sealed);
        let (found, opened) = place.seal(&edited, Encoder::GZIP);
        assert_eq!(found, want, "{name}");
        assert_eq!(opened.len(), 61, "{name}");
    }
}
