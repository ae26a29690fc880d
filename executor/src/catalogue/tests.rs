//! What catalogues tell is what the unpacked layers show: random archives, looked at both ways.

use std::{fs, path::Path, sync::Arc};

use oci::{
    BaseLayer, BlobOrigin, Descriptor, Layer, MediaType, Sha256Digest, Snapshot,
    fetch::Fetcher,
    registry::{Registry, RegistryOptions},
    store::Store,
    tree::{TIME_LIMIT, content_time},
};
use proptest::prelude::*;
use solver::Cancel;

use super::*;
use crate::{
    beneath::{Bases, Beneath, FileId},
    listing::NodeKind,
    mount::OverlayMarks,
    snapshot::Snapshots,
    tarball::craft::{Archive, Fields, record},
    users::file_owner,
};

/// A store, and an OCI layout that layers come from.
struct Ground {
    root: tempfile::TempDir,
    layout: tempfile::TempDir,
}

impl Ground {
    /// `None`, loudly, where the test cannot give files away or mount.
    fn new() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: {} needs root", std::thread::current().name().unwrap_or("a test"));
            return None;
        }
        let ground = Self {
            root: tempfile::tempdir().expect("a temporary directory"),
            layout: tempfile::tempdir().expect("a temporary directory"),
        };
        fs::create_dir_all(ground.layout.path().join("blobs/sha256")).expect("made");
        Some(ground)
    }

    fn snapshots(&self) -> Snapshots {
        let store = Arc::new(Store::open(self.root.path()).expect("a store"));
        let registry = Registry::new(RegistryOptions::default()).expect("a client");
        Snapshots::new(
            Fetcher::new(store, registry),
            OverlayMarks::Trusted.into(),
            Arc::new(|_| {}),
            Arc::new(Cancel::default()),
        )
    }

    fn image(&self, archives: impl IntoIterator<Item = Vec<u8>>) -> Snapshot {
        Snapshot { layers: archives.into_iter().map(|archive| self.layer(&archive)).collect() }
    }

    fn layer(&self, archive: &[u8]) -> Layer {
        let descriptor = Descriptor::of(MediaType::OciLayer, archive);
        let blob = self.layout.path().join("blobs/sha256").join(descriptor.digest.hex());
        fs::write(blob, archive).expect("written");
        let (diff_id, origin) =
            (Sha256Digest::of(archive).into(), BlobOrigin::OciLayout(self.layout.path().to_owned()));
        Layer::Base(Box::new(BaseLayer { diff_id, descriptor, origin }))
    }

    fn is_unpacked(&self) -> bool {
        fs::read_dir(self.root.path().join("snapshots")).expect("listed").next().is_some()
    }

    fn kept(&self) -> Vec<std::path::PathBuf> {
        let files = fs::read_dir(self.root.path().join(AREA)).expect("listed");
        files.map(|file| file.expect("read").path()).collect()
    }
}

/// Adds one entry: a path and what stands there, as text.
fn add(archive: Archive, path: &str, what: &str) -> Archive {
    let (kind, argument) = what.split_once(' ').unwrap_or((what, ""));
    let content_second = |content: &str| content_time(&ContentDigest::of(content.as_bytes())) as u64;
    let fields = Fields { path: path.as_bytes(), link: argument.as_bytes(), ..Fields::default() };
    match kind {
        "dir" => archive.entry(Fields { typeflag: b'5', mode: 0o755, link: b"", ..fields }, b""),
        "mine" => {
            let fields = Fields { typeflag: b'5', mode: 0o2750, owner: (7, 8), link: b"", ..fields };
            let records = record("SCHILY.xattr.user.of", argument.as_bytes());
            let header = Fields { path: b"x", typeflag: b'x', ..Fields::default() };
            archive.entry(header, &records).entry(fields, b"")
        }
        "file" => archive.entry(Fields { link: b"", ..fields }, argument.as_bytes()),
        "brought" => {
            let fields = Fields { link: b"", time: content_second(argument), owner: (5, 6), ..fields };
            archive.entry(Fields { mode: 0o4711, ..fields }, argument.as_bytes())
        }
        "normal" => {
            let time = oci::tree::NORMAL_TIME as u64;
            archive.entry(Fields { link: b"", time, ..fields }, argument.as_bytes())
        }
        "->" => archive.entry(Fields { typeflag: b'2', mode: 0o777, ..fields }, b""),
        "=>" => archive.entry(Fields { typeflag: b'1', ..fields }, b""),
        "fifo" => archive.entry(Fields { typeflag: b'6', link: b"", ..fields }, b""),
        "device" => archive.entry(Fields { typeflag: b'3', device: (1, 3), link: b"", ..fields }, b""),
        _ => unreachable!("no {kind}"),
    }
}

fn archive(entries: &[(&str, &str)]) -> Vec<u8> {
    let archive = entries.iter().fold(Archive::default(), |archive, (path, what)| add(archive, path, what));
    archive.finish()
}

const PLACES: [&str; 26] = [
    "a",
    "b",
    "d",
    "d/",
    "./d/a",
    "d/b",
    "d/e",
    "d/e/a",
    "d/e/f",
    "/l",
    "l/a",
    "l/e/f",
    "m",
    "m/a",
    ".",
    "d/.wh.a",
    ".wh.a",
    ".wh.d",
    ".wh.l",
    "l/.wh.e",
    "d/.wh.e",
    ".wh..wh..opq",
    "d/.wh..wh..opq",
    "d/e/.wh..wh..opq",
    ".wh..wh.plnk",
    "d/e/.wh.f",
];
const THINGS: [&str; 20] = [
    "dir",
    "dir",
    "dir",
    "mine x",
    "mine y",
    "file x",
    "file x",
    "file y",
    "brought z",
    "normal n",
    "-> d",
    "-> /d/e",
    "-> ../../d",
    "-> a",
    "-> m",
    "=> a",
    "=> d/a",
    "=> l/a",
    "fifo",
    "device",
];
const LOOKED_AT: [&str; 22] = [
    "", "a", "a/a", "b", "d", "d/a", "d/b", "d/d", "d/e", "d/e/a", "d/e/b", "d/e/f", "d/e/f/g", "l", "l/a",
    "l/b", "l/e", "l/e/f", "m", "m/a", "m/e", "none",
];

fn layer() -> impl Strategy<Value = Vec<(&'static str, &'static str)>> {
    let entry = (prop::sample::select(&PLACES[..]), prop::sample::select(&THINGS[..]));
    prop::collection::vec(entry, 0..10)
}

/// Everything that is found at some paths, in text; names of one file are told by the first of them.
fn told(beneath: &Beneath) -> Vec<String> {
    let mut files: Vec<(FileId, &str)> = Vec::new();
    LOOKED_AT
        .iter()
        .map(|path| {
            let seen = beneath.look(path.as_bytes()).expect("looked at");
            let Some(seen) = seen else { return format!("{path}: nothing") };
            let kind = match &seen.kind {
                Some(NodeKind::File { size, .. }) => {
                    let content =
                        beneath.content(path.as_bytes(), &seen, &Cancel::default()).expect("content");
                    format!("{size} bytes {content}")
                }
                kind => format!("{kind:?}"),
            };
            let xattrs = match &seen.kind {
                Some(NodeKind::Directory | NodeKind::File { .. }) => {
                    beneath.xattrs(path.as_bytes(), &seen).expect("attributes")
                }
                _ => BTreeMap::new(),
            };
            let is_directory = matches!(seen.kind, Some(NodeKind::Directory));
            let first =
                files.iter().find(|(file, _)| *file == seen.file && !is_directory).map(|(_, first)| *first);
            files.push((seen.file.clone(), path));
            let (mode, owner, seconds) = (seen.mode, seen.owner, seen.seconds.min(TIME_LIMIT));
            format!(
                "{path}: {kind} {mode:o} {owner:?} @{seconds} {xattrs:?} like {:?}",
                first.unwrap_or(path)
            )
        })
        .collect()
}

/// The two ways to look at an image, that without unpacking first.
fn both_ways(ground: &Ground, image: &Snapshot) -> [Result<Vec<String>, String>; 2] {
    let snapshots = ground.snapshots();
    [Bases::Catalogued, Bases::Unpacked].map(|bases| {
        let beneath = snapshots.beneath(image, bases).expect("nothing is looked at yet");
        match beneath.look(b"a") {
            Ok(_) => Ok(told(&beneath)),
            Err(error) => Err(causes(&error)),
        }
    })
}

fn causes(error: &(dyn std::error::Error + 'static)) -> String {
    let all = std::iter::successors(Some(error), |error| error.source());
    all.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Why both ways refuse a layer: what stands in the way is not always called alike.
fn is_refused(told: &str) -> bool {
    told.contains("is refused: ") || told.contains("cannot ")
}

fn cases() -> u32 {
    if std::env::var_os("LAYERWRIGHT_NIGHTLY").is_some() { 4000 } else { 100 }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases()) })]

    #[test]
    fn what_is_told_is_what_is_shown(layers in prop::collection::vec(layer(), 1..4)) {
        let Some(ground) = Ground::new() else { return Ok(()) };
        let image = ground.image(layers.iter().map(|layer| archive(layer)));
        match both_ways(&ground, &image) {
            [Ok(told), Ok(shown)] => prop_assert_eq!(told, shown),
            [Err(told), Err(shown)] => prop_assert!(is_refused(&told) && is_refused(&shown), "{told}\n{shown}"),
            [told, shown] => prop_assert!(false, "{told:?}\nbut {shown:?}"),
        }
    }

    #[test]
    fn what_is_kept_comes_back(layer in layer()) {
        if let Ok(catalogue) = Catalogue::read(&archive(&layer)[..]) {
            let temp = tempfile::tempdir().expect("a temporary directory");
            let store = Store::open(temp.path()).expect("a store");
            let layer = Sha256Digest::of(b"layer").into();
            catalogue.keep(&store, &layer).expect("kept");
            let file = temp.path().join(path(&layer));
            prop_assert_eq!(Catalogue::kept(&file).expect("readable"), Some(catalogue));
        }
    }
}

#[test]
fn rare_layers_are_told_as_they_are_shown() {
    let Some(ground) = Ground::new() else { return };
    let lower: &[(&str, &str)] = &[("d", "mine x"), ("d/a", "file x"), ("l", "-> d"), (".", "mine r")];
    let uppers: &[&[(&str, &str)]] = &[
        // A directory is implied above one that is listed, above a link, and in what is new.
        &[("d/b", "file y")],
        &[("l/b", "file y")],
        &[("n/m/f", "file y")],
        // A whiteout before and after what it stands for.
        &[(".wh.d", "file "), ("d/b", "file y")],
        &[("d/b", "file y"), (".wh.d", "file ")],
        &[("d", "file y"), (".wh.d", "file ")],
        // Nothing of the lower layers is left.
        &[(".wh..wh..opq", "file "), ("d/b", "file y")],
        &[("d/.wh..wh..opq", "file "), ("d/b", "file y")],
        // A directory takes the place of a file, and a file that of a directory with things in it.
        &[("d/e", "file y"), ("d/e", "dir"), ("d/e/a", "=> d/e/b")],
        &[("d/e/f", "file y"), ("d/e", "file y")],
        // A name of a file that is replaced.
        &[("a", "file x"), ("b", "=> a"), ("a", "file y")],
        &[("a", "-> b"), ("b", "-> a"), ("a/f", "file y")],
    ];
    for upper in uppers {
        let image = ground.image([archive(lower), archive(upper)]);
        match both_ways(&ground, &image) {
            [Ok(told), Ok(shown)] => assert_eq!(told, shown, "{upper:?}"),
            [Err(told), Err(shown)] => assert!(is_refused(&told) && is_refused(&shown), "{told}\n{shown}"),
            [told, shown] => panic!("{upper:?}: {told:?}\nbut {shown:?}"),
        }
    }
}

#[test]
fn a_look_unpacks_nothing_and_the_next_one_reads_no_blob() {
    let Some(ground) = Ground::new() else { return };
    let image =
        ground.image([archive(&[("etc/passwd", "file app:x:40:41::/:/bin/sh")]), archive(&[("d", "dir")])]);
    let owner = |snapshots: &Snapshots| {
        let beneath = snapshots.beneath(&image, Bases::Catalogued).expect("nothing is looked at yet");
        assert!(beneath.look(b"d").expect("looked at").is_some());
        file_owner(&beneath, "app").expect("in passwd")
    };
    assert_eq!(owner(&ground.snapshots()), (40, 41));
    assert!(!ground.is_unpacked());
    assert_eq!(ground.kept().len(), 2);
    let blobs = ground.layout.path().join("blobs");
    fs::rename(&blobs, ground.layout.path().join("away")).expect("moved");
    assert_eq!(owner(&ground.snapshots()), (40, 41));
    fs::rename(ground.layout.path().join("away"), &blobs).expect("moved back");
    // What is damaged is made anew.
    for file in ground.kept() {
        let mut bytes = fs::read(&file).expect("read");
        bytes[40] ^= 1;
        fs::write(&file, bytes).expect("written");
    }
    assert_eq!(owner(&ground.snapshots()), (40, 41));
    assert!(ground.kept().iter().all(|file| Catalogue::kept(file).expect("good again").is_some()));
    assert!(!ground.is_unpacked());
}

#[test]
fn what_only_a_disk_can_tell_is_looked_at_there() {
    let Some(ground) = Ground::new() else { return };
    let records = record("SCHILY.xattr.system.posix_acl_default", &access_list());
    let header = Fields { path: b"x", typeflag: b'x', ..Fields::default() };
    let with_list = Archive::default().entry(header, &records).directory("d").file("d/f", b"x").finish();
    let image = ground.image([with_list]);
    let [told, shown] = both_ways(&ground, &image);
    assert_eq!(told.expect("unpacked"), shown.expect("unpacked"));
    assert!(ground.is_unpacked());

    // An account file that is elsewhere: its bytes were not kept.
    let Some(ground) = Ground::new() else { return };
    let entries = [("etc/passwd", "-> ../usr/passwd"), ("usr/passwd", "file app:x:40:41::/:/bin/sh")];
    let image = ground.image([archive(&entries)]);
    let beneath = ground.snapshots().beneath(&image, Bases::Catalogued).expect("nothing is looked at yet");
    let error = file_owner(&beneath, "app").expect_err("not known");
    assert!(causes(&error).contains("needs files on disk"), "{}", causes(&error));
}

#[test]
fn an_account_file_that_is_too_long_is_neither_kept_nor_read() {
    let Some(ground) = Ground::new() else { return };
    let long = Archive::default().file("etc/passwd", &vec![b'\n'; (10 << 20) + 1]).finish();
    let image = ground.image([long]);
    let beneath = ground.snapshots().beneath(&image, Bases::Catalogued).expect("nothing is looked at yet");
    let error = file_owner(&beneath, "app").expect_err("too long").to_string();
    assert!(error.contains("not a regular file of at most 10 MiB"), "{error}");
    assert!(ground.kept().iter().all(|file| fs::metadata(file).expect("there").len() < 4096));
}

/// `user::rwx,user:1:rwx,group::r-x,mask::rwx,other::r-x` as the kernel has it.
fn access_list() -> Vec<u8> {
    let entries: [(u16, u16, u32); 5] =
        [(1, 7, u32::MAX), (2, 7, 1), (4, 5, u32::MAX), (0x10, 7, u32::MAX), (0x20, 5, u32::MAX)];
    let entry = |(tag, rights, id): &(u16, u16, u32)| {
        [&tag.to_le_bytes()[..], &rights.to_le_bytes(), &id.to_le_bytes()].concat()
    };
    [2u32.to_le_bytes().to_vec(), entries.iter().flat_map(entry).collect()].concat()
}

#[test]
fn what_no_layer_may_hold_is_refused_without_unpacking_too() {
    let long = "n".repeat(99);
    let rows: &[(&[(&str, &str)], &str)] = &[
        (&[("../x", "file x")], "its path holds \"..\""),
        (&[(".wh.d/f", "file x")], "it lies below a whiteout"),
        (&[("d/.wh...", "file x")], "it is a whiteout of no name"),
        (&[(".", "file x")], "the root can only be a directory"),
        (&[("a", "=> b")], "something that the layer does not hold"),
        (&[("d", "dir"), ("a", "=> d")], "it is a hard link to a directory"),
        (&[("a", "=> ../b")], "it is a hard link to a path with \"..\""),
        (&[("a", "file x"), ("a/b", "file x")], "goes through something that is no directory"),
        (&[("a", "-> a"), ("a/b", "file x")], "goes through too many links"),
    ];
    for (entries, reason) in rows {
        let error = Catalogue::read(&archive(entries)[..]).expect_err("refused").to_string();
        assert!(error.contains(reason), "{entries:?}: {error}");
    }
    let records = record("path", long.repeat(3).as_bytes());
    let header = Fields { path: b"x", typeflag: b'x', ..Fields::default() };
    let named = Archive::default().entry(header, &records).file("x", b"").finish();
    let error = Catalogue::read(&named[..]).expect_err("refused").to_string();
    assert!(error.contains("a name of more than 255 bytes"), "{error}");
}

#[test]
fn no_flipped_bit_is_believed() {
    let temp = tempfile::tempdir().expect("a temporary directory");
    let store = Store::open(temp.path()).expect("a store");
    let layer = Sha256Digest::of(b"layer").into();
    let made = Catalogue::read(&archive(&[("d", "mine x"), ("d/e/f", "file y")])[..]).expect("a layer");
    made.keep(&store, &layer).expect("kept");
    let file = temp.path().join(path(&layer));
    let bytes = fs::read(&file).expect("read");
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1;
        fs::write(&file, damaged).expect("written");
        assert!(Catalogue::kept(&file).is_err_and(|error| error.is_useless()), "byte {at}");
    }
    assert!(Catalogue::kept(Path::new("none")).expect("no error").is_none());
}
