use std::{
    fs::{self, Permissions},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use rustix::fs::{Mode, OFlags};

use super::*;
use crate::mount::OverlayMarks;
use crate::tarball::craft::{Archive, Fields};

const STAMP: Stamp = Stamp { seconds: 1_800_000_000, nanoseconds: 5 };

/// A directory for a layer beside something that must not change.
struct Ground {
    directory: tempfile::TempDir,
}

impl Ground {
    /// `None`, loudly, for anybody but root, of the machine or of a user namespace: only they may give files away.
    fn new() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: {} needs root, or a user namespace", test_name());
            return None;
        }
        let ground = Self { directory: tempfile::tempdir().expect("a temporary directory") };
        for name in ["layer", "trash", "canary", "canary/kept"] {
            fs::create_dir(ground.path(name)).expect("made");
        }
        fs::write(ground.path("canary/file"), "untouched").expect("written");
        fs::set_permissions(ground.path("canary/file"), Permissions::from_mode(0o640)).expect("set");
        Some(ground)
    }

    /// One that can hold any owner: `None`, loudly, for anybody but root of the machine.
    fn with_all_ids() -> Option<Self> {
        if !is_machine_root() {
            eprintln!("SKIPPED: {} needs root", test_name());
            return None;
        }
        Self::new()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn open(&self, name: &str) -> OwnedFd {
        rustix::fs::open(self.path(name), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())
            .expect("it is there")
    }

    fn unpack(&self, archive: &[u8]) -> Result<Unpacked, UnpackError> {
        self.unpack_on(archive, &[], &Owners::new())
    }

    fn unpack_on(
        &self,
        archive: &[u8],
        lowers: &[&Ground],
        owners: &Owners,
    ) -> Result<Unpacked, UnpackError> {
        let (root, trash) = (self.open("layer"), self.open("trash"));
        let lowers: Vec<_> = lowers.iter().map(|lower| lower.open("layer")).collect();
        unpack(archive, Target { root, trash, form: marks().into(), stamp: STAMP })?.settle(&lowers, owners)
    }

    fn listing(&self) -> Vec<String> {
        let mut lines = Vec::new();
        list(&self.path("layer"), "", &mut lines);
        lines
    }

    fn metadata(&self, path: &str) -> fs::Metadata {
        fs::symlink_metadata(self.path("layer").join(path)).expect("it is there")
    }

    fn canary(&self) -> Vec<String> {
        let mut lines = Vec::new();
        list(&self.path("canary"), "", &mut lines);
        let names = fs::read_dir(self.directory.path())
            .expect("listed")
            .map(|entry| entry.expect("read").file_name());
        lines.extend(names.map(|name| name.to_string_lossy().into_owned()));
        let file = fs::symlink_metadata(self.path("canary/file")).expect("it is there");
        lines.push(format!("{:o} {} {}", file.mode(), file.nlink(), file.mtime()));
        lines.sort();
        lines
    }
}

fn test_name() -> String {
    std::thread::current().name().unwrap_or("a test").to_owned()
}

/// Whether this is root, and not of a user namespace.
fn is_machine_root() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").expect("it is there");
    rustix::process::geteuid().is_root() && map.split_whitespace().eq(["0", "0", "4294967295"])
}

fn marks() -> OverlayMarks {
    if is_machine_root() { OverlayMarks::Trusted } else { OverlayMarks::User }
}

/// One line for everything below a directory: `path kind content-or-target`.
fn list(directory: &Path, prefix: &str, lines: &mut Vec<String>) {
    let mut names: Vec<_> =
        fs::read_dir(directory).expect("listed").map(|entry| entry.expect("read").path()).collect();
    names.sort();
    for path in names {
        let name = format!("{prefix}{}", path.file_name().expect("it has one").to_string_lossy());
        let metadata = fs::symlink_metadata(&path).expect("it is there");
        let kind = metadata.file_type();
        if kind.is_dir() {
            let open = fs::File::open(&path).expect("opened");
            let opaque = marks().is_opaque(&open).expect("read");
            lines.push(format!("{name}/{}", if opaque { " opaque" } else { "" }));
            list(&path, &format!("{name}/"), lines);
        } else if kind.is_symlink() {
            lines.push(format!("{name} -> {}", fs::read_link(&path).expect("read").display()));
        } else if kind.is_file() {
            let content = fs::read(&path).expect("read");
            lines.push(format!("{name} = {}", String::from_utf8_lossy(&content)));
        } else {
            lines.push(format!("{name} : {:o} {}", metadata.mode() >> 12, metadata.rdev()));
        }
    }
}

fn file() -> Archive {
    Archive::default()
}

fn of_type(typeflag: u8, path: &str, device: (u32, u32)) -> Archive {
    file().entry(Fields { path: path.as_bytes(), typeflag, device, ..Fields::default() }, b"")
}

/// `None` is a refusal.
fn check(name: &str, archive: Archive, want: Option<&[&str]>) {
    let Some(ground) = Ground::new() else { return };
    let before = ground.canary();
    let result = ground.unpack(&archive.finish());
    assert_eq!(ground.canary(), before, "{name}: something outside has changed");
    match (result, want) {
        (Ok(_), Some(want)) => assert_eq!(ground.listing(), want, "{name}"),
        (Err(error), Some(_)) => panic!("{name}: {error}: {:?}", std::error::Error::source(&error)),
        (Ok(_), None) => panic!("{name} was let through: {:?}", ground.listing()),
        (Err(_), None) => {}
    }
}

#[test]
fn links_lead_nowhere_outside() {
    let out = "../canary";
    let cases: [(&str, Archive, Option<&[&str]>); 14] = [
        (
            "a file through a link up",
            file().symlink("l", out).file("l/file", b"x"),
            Some(&["canary/", "canary/file = x", "l -> ../canary"]),
        ),
        (
            "an absolute link",
            file().symlink("l", "/etc").file("l/passwd", b"x"),
            Some(&["etc/", "etc/passwd = x", "l -> /etc"]),
        ),
        (
            "a link to a link",
            file().symlink("a", "b").symlink("b", "../..").file("a/f", b"x"),
            Some(&["a -> b", "b -> ../..", "f = x"]),
        ),
        ("a loop", file().symlink("a", "b").symlink("b", "a").file("a/f", b"x"), None),
        ("a link over itself", file().symlink("l", out).file("l", b"x"), Some(&["l = x"])),
        (
            "a directory over a link",
            file().symlink("l", out).directory("l").file("l/f", b"x"),
            Some(&["l/ opaque", "l/f = x"]),
        ),
        ("a hard link through a link", file().symlink("l", out).hard_link("h", "l/file"), None),
        (
            "a hard link to a link",
            file().symlink("l", out).hard_link("h", "l"),
            Some(&["h -> ../canary", "l -> ../canary"]),
        ),
        (
            "a whiteout through a link",
            file().symlink("l", out).file("l/.wh.file", b""),
            Some(&["canary/", "l -> ../canary"]),
        ),
        (
            "an opaque mark through a link",
            file().symlink("l", out).file("l/.wh..wh..opq", b""),
            Some(&["canary/ opaque", "l -> ../canary"]),
        ),
        (
            "a link to this process",
            file().symlink("l", "/proc/self/root").file("l/f", b"x"),
            Some(&["l -> /proc/self/root", "proc/", "proc/self/", "proc/self/root/", "proc/self/root/f = x"]),
        ),
        (
            "a FIFO through a link",
            file().symlink("l", out).raw(&of_type(b'6', "l/p", (0, 0)).bytes()),
            Some(&["canary/", "canary/p : 1 0", "l -> ../canary"]),
        ),
        ("a link through a file", file().file("f", b"").file("f/g", b""), None),
        (
            "41 links",
            (0..41)
                .fold(file(), |archive, at| archive.symlink(&format!("l{at}"), &format!("l{}", at + 1)))
                .file("l0/f", b""),
            None,
        ),
    ];
    for (name, archive, want) in cases {
        check(name, archive, want);
    }
}

#[test]
fn paths_are_cleaned_or_refused() {
    let long = "n".repeat(256);
    let cases: [(&str, Archive, Option<&[&str]>); 12] = [
        ("absolute", file().file("/f", b"x"), Some(&["f = x"])),
        ("with dots and slashes", file().file("./a//./f", b"x"), Some(&["a/", "a/f = x"])),
        ("up", file().file("../canary/file", b"x"), None),
        ("up in the middle", file().file("a/../../canary/file", b"x"), None),
        ("the parent itself", file().directory(".."), None),
        ("the root as a file", file().file("./.", b"x"), None),
        ("the root", file().directory("./"), Some(&[])),
        ("a name of 256 bytes", file().pax(&[("path", long.as_bytes())]).file("f", b""), None),
        (
            "a name of 255 bytes",
            file().pax(&[("path", &long.as_bytes()[1..])]).file("f", b""),
            Some(&[&format!("{} = ", &long[1..])]),
        ),
        (
            "a newline and no text",
            file().pax(&[("path", b"a\nb\xff")]).file("f", b""),
            Some(&["a\nb\u{fffd} = "]),
        ),
        ("a hard link up", file().file("f", b"").hard_link("h", "../canary/file"), None),
        ("an absolute hard link", file().file("f", b"x").hard_link("h", "/f"), Some(&["f = x", "h = x"])),
    ];
    for (name, archive, want) in cases {
        check(name, archive, want);
    }
}

#[test]
fn the_last_of_two_entries_wins() {
    let tree = || file().directory("d").file("d/f", b"1");
    let cases: [(&str, Archive, Option<&[&str]>); 9] = [
        ("two files", file().file("f", b"old").file("f", b"new"), Some(&["f = new"])),
        ("two directories", tree().directory("d").file("d/g", b"2"), Some(&["d/", "d/f = 1", "d/g = 2"])),
        ("a file over a directory", tree().file("d", b"2"), Some(&["d = 2"])),
        ("a directory over a file", file().file("d", b"").directory("d"), Some(&["d/ opaque"])),
        (
            "a link over a directory",
            tree().symlink("d", "e").file("d/g", b"2"),
            Some(&["d -> e", "e/", "e/g = 2"]),
        ),
        (
            "a file over one of two names",
            file().file("a", b"1").hard_link("b", "a").file("b", b"2"),
            Some(&["a = 1", "b = 2"]),
        ),
        ("a hard link to a later entry", file().hard_link("h", "f").file("f", b""), None),
        ("a hard link to itself", file().file("f", b"").hard_link("f", "f"), None),
        ("a hard link to a directory", tree().hard_link("h", "d"), None),
    ];
    for (name, archive, want) in cases {
        check(name, archive, want);
    }
}

#[test]
fn whiteouts_hide_the_lower_layers_and_nothing_else() {
    let cases: [(&str, Archive, Option<&[&str]>); 12] = [
        ("removed", file().file(".wh.f", b""), Some(&["f : 2 0"])),
        ("removed and made again", file().file(".wh.f", b"").file("f", b"x"), Some(&["f = x"])),
        ("made and removed below", file().file("f", b"x").file(".wh.f", b""), Some(&["f = x"])),
        (
            "a directory made again",
            file().file(".wh.d", b"").directory("d").file("d/f", b"x"),
            Some(&["d/ opaque", "d/f = x"]),
        ),
        (
            "a directory, then its whiteout",
            file().directory("d").file("d/f", b"x").file(".wh.d", b""),
            Some(&["d/ opaque", "d/f = x"]),
        ),
        (
            "a file in a removed directory",
            file().file(".wh.d", b"").file("d/e/f", b"x"),
            Some(&["d/ opaque", "d/e/", "d/e/f = x"]),
        ),
        (
            "an opaque directory",
            file().directory("d").file("d/f", b"x").file("d/.wh..wh..opq", b""),
            Some(&["d/ opaque", "d/f = x"]),
        ),
        (
            "AUFS bookkeeping",
            file().directory(".wh..wh.plnk").file(".wh..wh.plnk/1", b"").file("f", b"x"),
            Some(&["f = x"]),
        ),
        ("of no name", file().file(".wh.", b""), None),
        ("of the parent", file().file("d/.wh...", b""), None),
        ("with children", file().file(".wh.d/f", b""), None),
        ("a hard link to one", file().file(".wh.f", b"").hard_link("h", "f"), None),
    ];
    for (name, archive, want) in cases {
        check(name, archive, want);
    }
    check("device 0:0", of_type(b'3', "f", (0, 0)), None);
}

#[test]
fn a_whiteout_that_no_layer_below_needs_is_dropped() {
    let (Some(lower), Some(upper)) = (Ground::new(), Ground::new()) else { return };
    lower.unpack(&file().directory("both").file("both/f", b"").finish()).expect("unpacked");
    let whiteouts =
        file().file("both/.wh.f", b"").file("both/.wh.g", b"").directory("own").file("own/.wh.f", b"");
    upper.unpack_on(&whiteouts.finish(), &[&lower], &Owners::new()).expect("unpacked");
    assert_eq!(upper.listing(), ["both/", "both/f : 2 0", "both/g : 2 0", "own/"]);
}

#[test]
fn metadata_is_kept_and_comes_in_the_right_order() {
    let Some(ground) = Ground::with_all_ids() else { return };
    let capability: &[u8] = b"\x01\0\0\x02\n\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let setuid =
        Fields { path: b"su", mode: 0o4755, owner: (7, 8), time: 1_234_567_890, ..Fields::default() };
    let directory =
        Fields { path: b"d", typeflag: b'5', mode: 0o2500, owner: (9, 9), time: 77, ..Fields::default() };
    let archive = file()
        .entry(directory, b"")
        .pax(&[("mtime", b"1.25")])
        .file("d/f", b"x")
        .pax(&[("SCHILY.xattr.security.capability", capability), ("SCHILY.xattr.user.note", b"a\nb")])
        .entry(setuid, b"x")
        .raw(&of_type(b'3', "null", (1, 3)).raw(&of_type(b'4', "disk", (8, 0)).bytes()).bytes());
    let unpacked = ground.unpack(&archive.finish()).expect("unpacked");
    assert_eq!(unpacked.warnings, [""; 0]);
    let su = ground.metadata("su");
    assert_eq!((su.mode() & 0o7777, su.uid(), su.gid(), su.mtime()), (0o4755, 7, 8, 1_234_567_890));
    let directory = ground.metadata("d");
    assert_eq!((directory.mode() & 0o7777, directory.uid(), directory.mtime()), (0o2500, 9, 77));
    let inner = ground.metadata("d/f");
    assert_eq!((inner.gid(), inner.mtime(), inner.mtime_nsec()), (0, 1, 250_000_000));
    let mut value = [0; 64];
    let su = fs::File::open(ground.path("layer/su")).expect("opened");
    let length = rustix::fs::fgetxattr(&su, "security.capability", &mut value).expect("set");
    assert_eq!(&value[..length], capability);
    let length = rustix::fs::fgetxattr(&su, "user.note", &mut value).expect("set");
    assert_eq!(&value[..length], b"a\nb");
    assert_eq!(ground.metadata("null").rdev(), makedev(1, 3));
    assert_eq!(ground.metadata("disk").mode() >> 12, 0o6);
}

#[test]
fn overlay_attributes_of_a_layer_have_no_effect() {
    let Some(ground) = Ground::new() else { return };
    let records: [(&str, &[u8]); 2] =
        [("SCHILY.xattr.trusted.overlay.opaque", b"y"), ("SCHILY.xattr.user.overlay.redirect", b"/etc")];
    let unpacked = ground.unpack(&file().pax(&records).directory("d").finish()).expect("unpacked");
    assert_eq!(ground.listing(), ["d/"]);
    assert_eq!(unpacked.warnings.len(), 1);
    assert!(unpacked.warnings[0].starts_with("2 extended attributes"), "{:?}", unpacked.warnings);
}

#[test]
fn normalised_times_become_the_time_of_unpacking() {
    let Some(ground) = Ground::new() else { return };
    let content = ContentDigest::of(b"brought");
    let derived = oci::tree::content_time(&content) as u64;
    let timed = |path, time| Fields { path, time, ..Fields::default() };
    let archive = file()
        .entry(timed(b"brought", derived), b"brought")
        .entry(timed(b"other", derived), b"other")
        .entry(timed(b"normal", 946_684_800), b"")
        .entry(Fields { typeflag: b'5', ..timed(b"d", 946_684_800) }, b"")
        .entry(timed(b"d/old", 1), b"");
    let unpacked = ground.unpack(&archive.finish()).expect("unpacked");
    assert_eq!(unpacked.brought, BTreeSet::from([content]));
    let time = |path: &str| (ground.metadata(path).mtime(), ground.metadata(path).mtime_nsec());
    let stamp = (STAMP.seconds, i64::from(STAMP.nanoseconds));
    assert_eq!([time("brought"), time("normal"), time("d")], [stamp; 3]);
    assert_eq!([time("other"), time("d/old")], [(derived as i64, 0), (1, 0)]);
}

#[test]
fn implied_directories_are_those_of_the_layers_below() {
    let [Some(bottom), Some(middle), Some(top)] = [(); 3].map(|()| Ground::with_all_ids()) else { return };
    let directory = |path, mode| Fields { path, typeflag: b'5', mode, owner: (5, 6), ..Fields::default() };
    let archive = file()
        .entry(directory(b"./", 0o711), b"")
        .pax(&[("SCHILY.xattr.user.note", b"kept")])
        .entry(directory(b"a", 0o750), b"")
        .entry(directory(b"a/b", 0o700), b"")
        .entry(directory(b"gone", 0o700), b"")
        .entry(directory(b"opaque", 0o700), b"")
        .entry(directory(b"opaque/d", 0o700), b"");
    bottom.unpack(&archive.finish()).expect("unpacked");
    let archive = file().file(".wh.gone", b"").file("opaque/.wh..wh..opq", b"").file("new/f", b"");
    middle.unpack_on(&archive.finish(), &[&bottom], &Owners::new()).expect("unpacked");
    let archive = file().file("a/b/f", b"").file("gone/f", b"").file("opaque/d/f", b"");
    top.unpack_on(&archive.finish(), &[&middle, &bottom], &Owners::new()).expect("unpacked");
    let seen = |path: &str| (top.metadata(path).mode() & 0o7777, top.metadata(path).uid());
    let paths = ["", "a", "a/b", "gone", "opaque", "opaque/d"];
    let want = [(0o711, 5), (0o750, 5), (0o700, 5), (0o755, 0), (0o700, 5), (0o755, 0)];
    assert_eq!(paths.map(seen), want);
    assert_eq!(top.metadata("a").mtime(), 1_000_000_000);
    let mut value = [0; 8];
    let length = rustix::fs::fgetxattr(top.open("layer/a"), "user.note", &mut value).expect("inherited");
    assert_eq!(&value[..length], b"kept");
}

#[test]
fn an_opaque_root_hides_every_layer_below() {
    let (Some(lower), Some(upper)) = (Ground::new(), Ground::new()) else { return };
    lower
        .unpack(
            &file()
                .entry(Fields { path: b"./", typeflag: b'5', mode: 0o700, ..Fields::default() }, b"")
                .finish(),
        )
        .expect("unpacked");
    let unpacked = upper.unpack_on(&file().file(".wh..wh..opq", b"").finish(), &[&lower], &Owners::new());
    assert!(unpacked.expect("unpacked").opaque_root);
    assert_eq!(upper.metadata("").mode() & 0o7777, 0o755);
}

#[test]
fn owners_of_the_layers_below_count_until_something_takes_their_place() {
    let (Some(lower), Some(upper)) = (Ground::new(), Ground::new()) else { return };
    let archive = ["kept", "implied", "listed", "gone", "hidden"]
        .iter()
        .fold(file(), |archive, name| archive.directory(name));
    lower.unpack(&archive.directory("hidden/d").finish()).expect("unpacked");
    let paths = ["kept", "implied", "listed", "gone", "hidden/d"];
    let owners: Owners = paths.iter().map(|path| (path.as_bytes().to_vec(), (1, 1))).collect();
    let archive = file()
        .file("implied/f", b"")
        .directory("listed")
        .file(".wh.gone", b"")
        .file("hidden/.wh..wh..opq", b"");
    let unpacked = upper.unpack_on(&archive.finish(), &[&lower], &owners).expect("unpacked");
    assert_eq!(unpacked.owners.into_keys().collect::<Vec<_>>(), [&b"implied"[..], b"kept"]);
}

#[test]
fn holes_stay_holes() {
    let Some(ground) = Ground::new() else { return };
    let mut content = vec![0; 8 << 20];
    content[5 << 20] = 1;
    ground.unpack(&file().file("f", &content).finish()).expect("unpacked");
    assert_eq!(fs::read(ground.path("layer/f")).expect("read"), content);
    assert!(ground.metadata("f").blocks() * 512 < 1 << 20);
}

#[test]
fn a_clean_archive_is_unpacked_as_by_gnu_tar() {
    let (Some(ground), Some(reference)) = (Ground::with_all_ids(), Ground::with_all_ids()) else { return };
    let long = format!("{}/{}", "d".repeat(200), "f".repeat(200));
    let archive = file()
        .directory("etc")
        .entry(Fields { path: b"etc/shadow", mode: 0o640, owner: (0, 42), ..Fields::default() }, b"root")
        .symlink("bin", "usr/bin")
        .directory("usr/bin")
        .entry(Fields { path: b"usr/bin/su", mode: 0o4755, ..Fields::default() }, b"su")
        .hard_link("usr/bin/su2", "usr/bin/su")
        .pax(&[("path", long.as_bytes()), ("mtime", b"1700000000.5")])
        .file("short", b"long")
        .raw(&of_type(b'6', "pipe", (0, 0)).bytes())
        .raw(&of_type(b'3', "null", (1, 3)).bytes())
        .finish();
    ground.unpack(&archive).expect("unpacked");
    fs::write(reference.path("archive"), &archive).expect("written");
    let mut tar = std::process::Command::new("tar");
    tar.arg("-xpf").arg(reference.path("archive")).arg("-C").arg(reference.path("layer"));
    assert!(tar.status().expect("GNU tar runs").success());
    let listing = ground.listing();
    assert_eq!(listing, reference.listing());
    for line in listing {
        let path = line.split([' ', '\n']).next().expect("it has a path");
        let of = |ground: &Ground| {
            let seen = ground.metadata(path);
            (seen.mode(), seen.uid(), seen.gid(), seen.mtime(), seen.mtime_nsec(), seen.nlink(), seen.rdev())
        };
        let implied = path.trim_end_matches('/').bytes().all(|byte| byte == b'd') || path == "usr/";
        assert!(implied || of(&ground) == of(&reference), "{path}: {:?} {:?}", of(&ground), of(&reference));
    }
}

/// A small generator of numbers that are the same on every run (xorshift64).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }
}

#[test]
fn whatever_an_archive_says_nothing_outside_changes() {
    let parts: [&[u8]; 12] = [
        b"..",
        b"/",
        b"l",
        b"d",
        b"f",
        b".wh.",
        b".wh..wh..opq",
        b"canary",
        b"file",
        b".",
        b"\xff",
        b"proc/self/root",
    ];
    let mut numbers = Numbers(0x5eed);
    let Some(ground) = Ground::new() else { return };
    let before = ground.canary();
    for round in 0..1500 {
        let mut path = || {
            (0..=numbers.below(4)).map(|_| parts[numbers.below(parts.len())]).collect::<Vec<_>>().join(&b'/')
        };
        let names: Vec<_> = (0..8).map(|_| (path(), path())).collect();
        let archive = names.iter().fold(file(), |archive, (path, link)| {
            let typeflag = b"01256013"[numbers.below(8)];
            let link = if matches!(typeflag, b'1' | b'2') { &link[..] } else { b"" };
            let size = if typeflag == b'0' { numbers.below(3) } else { 0 };
            let device = (numbers.below(2) as u32, numbers.below(2) as u32);
            archive.entry(Fields { path, link, typeflag, device, ..Fields::default() }, &b"xyz"[..size])
        });
        let _ = ground.unpack(&archive.finish());
        assert_eq!(ground.canary(), before, "round {round}");
        for name in ["layer", "trash"] {
            fs::remove_dir_all(ground.path(name)).expect("removed");
            fs::create_dir(ground.path(name)).expect("made");
        }
    }
}

#[test]
fn no_flipped_byte_makes_the_unpacker_panic() {
    let archive = file()
        .directory("d")
        .pax(&[("mtime", b"1.5"), ("SCHILY.xattr.user.x", b"a\nb"), ("path", b"d/long")])
        .file("short", b"content")
        .symlink("l", "d")
        .hard_link("h", "d/long")
        .file("d/.wh.gone", b"")
        .file("last", &[7; 700]);
    let (clean, mut numbers) = (archive.finish(), Numbers(7));
    let Some(ground) = Ground::new() else { return };
    let before = ground.canary();
    for _ in 0..1000 {
        let mut bytes = clean.clone();
        let at = numbers.below(bytes.len());
        bytes[at] = bytes[at].wrapping_add(1 + numbers.below(255) as u8);
        // With a right checksum the damage gets past the first line of defence.
        let block = at / 512 * 512;
        if bytes[block + 257..block + 262] == *b"ustar" {
            let header: [u8; 512] = bytes[block..block + 512].try_into().expect("a block");
            bytes[block..block + 512].copy_from_slice(&crate::tarball::craft::seal(header));
        }
        let _ = ground.unpack(&bytes);
        assert_eq!(ground.canary(), before, "byte {at}");
        for name in ["layer", "trash"] {
            fs::remove_dir_all(ground.path(name)).expect("removed");
            fs::create_dir(ground.path(name)).expect("made");
        }
    }
}

#[test]
fn what_is_replaced_leaves_nothing_behind() {
    let Some(ground) = Ground::new() else { return };
    let again =
        |archive: Archive| archive.directory("d").file("d/f", b"").file("d/.wh.g", b"").file("d", b"");
    let archive = (0..300).fold(file(), |archive, _| again(archive));
    ground.unpack(&archive.finish()).expect("unpacked");
    assert_eq!(ground.listing(), ["d = "]);
}

#[test]
fn a_user_namespace_unpacks_what_it_can_and_says_what_it_cannot() {
    const INSIDE: &str = "LAYERWRIGHT_TEST_IS_INSIDE";
    let inside = std::env::var_os(INSIDE).is_some();
    if inside && !is_machine_root() {
        return lacks_ids_and_devices();
    }
    let unshare = || std::process::Command::new("unshare");
    if !unshare().args(["-Ur", "true"]).status().is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: {}: no user namespace here", test_name());
        return;
    }
    // All tests of this module once more, with one id.
    let program = std::env::current_exe().expect("known");
    let tests =
        unshare().arg("-Ur").arg(program).arg("unpack::tests").env(INSIDE, "1").output().expect("started");
    assert!(tests.status.success(), "{}", String::from_utf8_lossy(&tests.stdout));
}

fn lacks_ids_and_devices() {
    let Some(ground) = Ground::new() else { return };
    let owned = Fields { path: b"owned", owner: (0, 42), ..Fields::default() };
    let archive =
        file().entry(owned, b"x").hard_link("also", "owned").raw(&of_type(b'3', "null", (1, 3)).bytes());
    let unpacked = ground.unpack(&archive.hard_link("zero", "null").finish()).expect("unpacked");
    let owners = ["also", "owned"].map(|path| (path.as_bytes().to_vec(), (0, 42)));
    assert_eq!(unpacked.owners, Owners::from(owners));
    assert_eq!(ground.listing(), ["also = x", "owned = x"]);
    assert!(unpacked.warnings[0].starts_with("2 device nodes were left out"), "{:?}", unpacked.warnings);
}
