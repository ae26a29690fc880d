use std::{error::Error, fs, io::Write, os::fd::AsFd};

use solver::op::{Chmod, Copy, CopyItem, Selector, Timestamps};

use super::*;
use crate::{
    context::{ContextDirectory, ContextModes},
    copy::copy,
    listing::Owners,
    tarball::craft::{Archive, Fields},
    testing::{Overlaid, show},
};

fn add(destination: &str) -> Copy {
    let selector =
        Selector { include: vec!["archive".to_owned()], follow_links: true, ..Selector::default() };
    Copy {
        items: vec![CopyItem { input: 1, selector, unpack: true }],
        destination: destination.to_owned(),
        into_directory: false,
        chown: None,
        chmod: None,
        timestamps: Timestamps::Auto,
    }
}

/// Adds a file called `archive` to an image and shows all there is then, or says what went wrong.
fn run(bytes: &[u8], image: &[&str], step: &Copy) -> Option<Vec<String>> {
    let temp = tempfile::tempdir().expect("a temporary directory");
    fs::write(temp.path().join("archive"), bytes).expect("written");
    let overlay = Overlaid::new(image)?;
    let context =
        ContextDirectory::new(temp.path().into(), None, ContextModes::Normalise).expect("no patterns");
    let files = context.files(&step.items[0].selector, &Cancel::default()).expect("listed");
    let added = copy(step, &[&files.listing], overlay.root.as_fd(), &Owners::new(), &Cancel::default());
    Some(match added {
        Ok(_) => show(&overlay.root),
        Err(error) => {
            let causes = std::iter::successors(error.source(), |error| (*error).source());
            let causes: Vec<String> = causes.map(|cause| cause.to_string()).collect();
            vec![[vec![format!("! {error}")], causes].concat().join(": ")]
        }
    })
}

fn check(archive: Archive, image: &[&str], expected: &[&str]) {
    let bytes = archive.finish();
    let Some(seen) = run(&bytes, image, &add("/t")) else { return };
    assert_eq!(seen, expected, "into {image:?}");
}

fn owned<'a>(path: &'a str, typeflag: u8, mode: u32, owner: (u32, u32)) -> Fields<'a> {
    Fields { path: path.as_bytes(), typeflag, mode, owner, ..Fields::default() }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).and_then(|()| encoder.finish()).expect("in memory")
}

fn bzip2(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    encoder.write_all(bytes).and_then(|()| encoder.finish()).expect("in memory")
}

fn xz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = xz2::write::XzEncoder::new(Vec::new(), 1);
    encoder.write_all(bytes).and_then(|()| encoder.finish()).expect("in memory")
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).expect("in memory");
    encoder.include_checksum(true).expect("allowed");
    encoder.write_all(bytes).and_then(|()| encoder.finish()).expect("in memory")
}

#[test]
fn archives_are_told_by_their_content() {
    let tar = Archive::default().file("f", b"x").finish();
    let members = [gzip(&tar[..700]), gzip(&tar[700..])].concat();
    for bytes in [tar.clone(), gzip(&tar), bzip2(&tar), xz(&tar), zstd(&tar), members] {
        let Some(seen) = run(&bytes, &[], &add("/t")) else { return };
        assert_eq!(seen, ["t/", "t/f = x ; @1000000000"]);
    }
    let no_archives = [
        Vec::new(),
        b"text".to_vec(),
        gzip(b"text"),
        gzip(&tar)[..20].to_vec(),
        b"\x1f\x8bnot really".to_vec(),
        vec![0; 1024],
        [b"x", &tar[..]].concat(),
        tar[..300].to_vec(),
    ];
    for bytes in no_archives {
        let Some(seen) = run(&bytes, &[], &add("/t")) else { return };
        assert_eq!(seen.len(), 1, "{seen:?} is a copy of the file");
        assert!(seen[0].starts_with("t = "), "{seen:?}");
    }
}

#[test]
fn the_end_of_a_compressed_archive_is_read_as_well() {
    // What tar pads with is more than is read ahead of its end.
    let tar = [Archive::default().file("f", b"x").finish(), vec![0; 200 << 10]].concat();
    for (name, compress) in
        [("gzip", gzip as fn(&[u8]) -> Vec<u8>), ("bzip2", bzip2), ("xz", xz), ("zstd", zstd)]
    {
        let whole = compress(&tar);
        let at = whole.len();
        let flipped =
            |at: usize| whole.iter().enumerate().map(move |(n, byte)| byte ^ u8::from(n == at)).collect();
        let cut = |stream: &[u8], bytes: usize| stream[..stream.len() - bytes].to_vec();
        let two = [&whole[..], &compress(b"more")].concat();
        let mut damaged: Vec<Vec<u8>> = (1..=8).map(|bytes| cut(&whole, bytes)).collect();
        damaged.extend([2, 4].map(|before| flipped(at - before)));
        damaged.extend([1, 4, 9].map(|bytes| cut(&two, bytes)));
        damaged.push([&whole[..], b"rubbish"].concat());
        damaged.push([&whole[..], &[0; 1000], b"rubbish"].concat());
        for bytes in damaged {
            let Some(seen) = run(&bytes, &[], &add("/t")) else { return };
            let told = "! unpacking archive: it is cut or damaged behind its last file: ";
            assert!(
                seen[0].starts_with(told) && seen[0].len() > told.len(),
                "{name} {:?}: {seen:?}",
                bytes.len()
            );
        }
        let Some(seen) = run(&two, &[], &add("/t")) else { return };
        assert_eq!(seen, ["t/", "t/f = x ; @1000000000"], "{name}: what follows the end is none of it");
    }
    for zeros in [1, 512, 300_000] {
        let Some(seen) = run(&[gzip(&tar), vec![0; zeros]].concat(), &[], &add("/t")) else { return };
        assert_eq!(seen, ["t/", "t/f = x ; @1000000000"], "{zeros} zeros");
    }
}

#[test]
fn what_is_unpacked() {
    let file = |path| Archive::default().file(path, b"x");
    check(file("f"), &[], &["t/", "t/f = x ; @1000000000"]);
    check(file("./a/b/f"), &[], &["t/", "t/a/", "t/a/b/", "t/a/b/f = x ; @1000000000"]);
    check(file("/f"), &[], &["t/", "t/f = x ; @1000000000"]);
    check(file("a/../f"), &[], &["t/", "t/f = x ; @1000000000"]);
    check(file("f").file("f", b"y"), &[], &["t/", "t/f = y ; @1000000000"]);
    let archive = Archive::default()
        .entry(owned("d", b'5', 0o2750, (5, 6)), b"")
        .entry(owned("d/f", b'0', 0o4640, (7, 8)), b"x")
        .symlink("d/l", "f")
        .entry(owned("p", b'6', 0o600, (0, 0)), b"")
        .entry(Fields { device: (1, 3), ..owned("n", b'3', 0o666, (0, 0)) }, b"");
    let expected = [
        "t/",
        "t/d/ ; 2750 5:6 @1000000000",
        "t/d/f = x ; 4640 7:8 @1000000000",
        "t/d/l -> f ; @1000000000",
        "t/n c1,3 ; 0666 @1000000000",
        "t/p | ; 0600 @1000000000",
    ];
    check(archive, &[], &expected);
    // A hard link's entry sets mode and owner of the file it names.
    let linked = Archive::default().entry(owned("f", b'0', 0o600, (7, 8)), b"x").hard_link("h", "f");
    check(linked, &[], &["t/", "t/f = x ; @1000000000", "t/h => t/f"]);
}

#[test]
fn what_is_there_already() {
    let file = || Archive::default().file("f", b"x");
    let (d, l) =
        (|| Archive::default().directory("d"), || Archive::default().directory("l").file("l/f", b"x"));
    check(file(), &["t/f/g = y", "t/h = z"], &["t/", "t/f = x ; @1000000000", "t/h = z"]);
    check(file(), &["t/f -> /h", "h = z"], &["h = z", "t/", "t/f = x ; @1000000000"]);
    check(d(), &["t/d = y"], &["t/", "t/d/ ; @1000000000"]);
    check(d(), &["t/d/g = y", "t/d/ 0700 1:2"], &["t/", "t/d/ ; @1000000000", "t/d/g = y"]);
    check(l(), &["t/l -> m", "t/m/"], &["t/", "t/l -> m", "t/m/ ; @1000000000", "t/m/f = x ; @1000000000"]);
    check(
        l(),
        &["t/l -> /m", "m/"],
        &["m/", "t/", "t/l -> /m", "t/m/ ; @1000000000", "t/m/f = x ; @1000000000"],
    );
    check(
        Archive::default().directory(".").file("f", b"x"),
        &["t/ 0700 1:2"],
        &["t/ ; 0700 1:2", "t/f = x ; @1000000000"],
    );
    check(file(), &["t -> u/v"], &["t -> u/v", "u/", "u/v/", "u/v/f = x ; @1000000000"]);
    check(file(), &["t = y"], &["! /t is not a directory"]);
}

#[test]
fn the_destination_is_the_archives_world() {
    let link_then_file = |target| Archive::default().symlink("l", target).file("l/f", b"x");
    let f = "= x ; @1000000000";
    check(
        link_then_file("/etc"),
        &["etc/"],
        &["etc/", "t/", "t/etc/", &format!("t/etc/f {f}"), "t/l -> /etc ; @1000000000"],
    );
    check(
        link_then_file("../../etc"),
        &["etc/"],
        &["etc/", "t/", "t/etc/", &format!("t/etc/f {f}"), "t/l -> ../../etc ; @1000000000"],
    );
    let archive = |path| Archive::default().file(path, b"x");
    check(archive("../f"), &[], &["! unpacking archive: \"../f\" leads out of the destination"]);
    check(archive("a/../../f"), &[], &["! unpacking archive: \"a/../../f\" leads out of the destination"]);
    check(
        Archive::default().hard_link("h", "../etc/passwd"),
        &["etc/passwd = y"],
        &["! unpacking archive: \"../etc/passwd\" leads out of the destination"],
    );
    check(
        Archive::default().hard_link("h", "/etc/passwd"),
        &["etc/passwd = y"],
        &["! unpacking archive: hard link \"h\" has no target \"/etc/passwd\""],
    );
    check(
        Archive::default().symlink("l", "/etc").hard_link("h", "l/passwd"),
        &["etc/passwd = y"],
        &["! unpacking archive: hard link \"h\" has no target \"l/passwd\""],
    );
    check(
        Archive::default().symlink("l", "l").file("l/f", b"x"),
        &[],
        &["! too many levels of symbolic links in /t/l"],
    );
    let cut = Archive::default().file("f", b"x").file("g", b"y").bytes();
    let seen = run(&cut[..1500], &[], &add("/t"));
    assert!(seen.is_none_or(|seen| seen[0].starts_with("! unpacking archive: the archive ends early")));
}

#[test]
fn flags_of_the_step() {
    let tar = Archive::default().entry(owned("d/f", b'0', 0o600, (7, 8)), b"x").finish();
    let chown = Copy { chown: Some("5:6".to_owned()), chmod: Some(Chmod::Octal(0o777)), ..add("/t") };
    let Some(seen) = run(&tar, &[], &chown) else { return };
    assert_eq!(seen, ["t/ ; 5:6", "t/d/", "t/d/f = x ; 0600 5:6 @1000000000"]);
}

#[test]
fn attributes_of_images_are_unpacked() {
    let archive = Archive::default().pax(&[
        ("SCHILY.xattr.user.a", b"b"),
        ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
        ("SCHILY.xattr.user.overlay.opaque", b"y"),
    ]);
    check(archive.file("f", b"x"), &[], &["t/", "t/f = x ; @1000000000 user.a=b"]);
}

#[test]
fn an_archive_that_changed_since_it_was_keyed_is_an_error() {
    let temp = tempfile::tempdir().expect("a temporary directory");
    let Some(overlay) = Overlaid::new(&[]) else { return };
    let path = temp.path().join("archive");
    fs::write(&path, Archive::default().file("f", b"x").finish()).expect("written");
    let context =
        ContextDirectory::new(temp.path().into(), None, ContextModes::Normalise).expect("no patterns");
    let files = context.files(&add("/t").items[0].selector, &Cancel::default()).expect("listed");
    fs::write(&path, Archive::default().file("f", b"y").finish()).expect("written");
    let added = copy(&add("/t"), &[&files.listing], overlay.root.as_fd(), &Owners::new(), &Cancel::default());
    assert_eq!(added.expect_err("refused").to_string(), "changed while reading: archive");
}

#[test]
fn a_download_keeps_its_name_and_the_servers_time() {
    let temp = tempfile::tempdir().expect("a temporary directory");
    let tar = Archive::default().file("f", b"x").finish();
    for (name, bytes) in [("a[1]*.txt", &b"text"[..]), ("b.tar", &tar)] {
        fs::write(temp.path().join(name), bytes).expect("written");
    }
    let archive = format!("t/b.tar = {}", String::from_utf8_lossy(&tar));
    // name, Last-Modified, whether it is unpacked, what is there then
    let rows: [(&str, Option<i64>, bool, &[&str]); 5] = [
        ("a[1]*.txt", Some(1000), false, &["t/", "t/a[1]*.txt = text ; 0600 @1000"]),
        ("a[1]*.txt", None, false, &["t/", "t/a[1]*.txt = text ; 0600"]),
        ("a[1]*.txt", Some(i64::from(u32::MAX)), true, &["t/", "t/a[1]*.txt = text ; 0600"]),
        ("b.tar", Some(1000), true, &["t/", "t/f = x ; @1000000000"]),
        ("b.tar", None, false, &["t/", &format!("{archive} ; 0600")]),
    ];
    for (name, modified, unpack, expected) in rows {
        let Some(overlay) = Overlaid::new(&[]) else { return };
        let listing = Listing::download(temp.path(), name, modified).expect(name);
        let mut step = Copy { into_directory: true, ..add("/t") };
        step.items[0].selector.include = vec![name.to_owned()];
        step.items[0].unpack = unpack;
        copy(&step, &[&listing], overlay.root.as_fd(), &Owners::new(), &Cancel::default()).expect(name);
        assert_eq!(show(&overlay.root), expected, "{name} {modified:?}");
    }
    let digest = |modified| {
        let listing = Listing::download(temp.path(), "b.tar", modified).expect("listed");
        listing.digest(&Cancel::default()).expect("read")
    };
    assert_ne!(digest(Some(1000)), digest(Some(2000)), "it is kept");
    assert_eq!(digest(None), digest(Some(i64::from(u32::MAX))), "it is normalised");
}
