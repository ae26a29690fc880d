//! The flattened files of an image: as a tar, and in a directory of the user's.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::Path,
    process::Command,
};

use exporter::{Destination, ExportError, FileSystem, FilesOutput, PlatformSplit, TimePolicy, export_files};
use oci::Snapshot;
use solver::Event;

use crate::support::{Described, Workshop, judge};

/// What the built layer says. The owner of `owned` exists nowhere on the machine; a tar has it all the same.
const BUILT: &str = "
    dir      d        0750 0:0     epoch
    file     d/a      0644 0:0     content brought
    hardlink d/b      0644 0:0     content d/a
    file     owned    4755 77:88   epoch   owned
    file     kept     0600 0:0     1000000000 kept
    symlink  s        0777 0:0     epoch   d/a
";

/// A file system as the executor would mount it: the files of the layer above one entry of a base image.
fn file_system(workshop: &Workshop) -> FileSystem {
    let described = Described::parse(BUILT);
    let snapshot = workshop.step(&Snapshot::default(), &described);
    let files = workshop.files_of(&snapshot);
    if files.join("s").is_symlink() {
        return mounted(workshop, snapshot);
    }
    fs::hard_link(files.join("d/a"), files.join("d/b")).expect("linked");
    symlink("d/a", files.join("s")).expect("linked");
    fs::write(files.join("base"), "of the base").expect("written");
    fs::set_permissions(files.join("base"), fs::Permissions::from_mode(0o640)).expect("set");
    fs::write(files.join("base-owned"), "of the base, by COPY").expect("written");
    let old = fs::File::create(files.join("base-old")).expect("made");
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(86_400);
    old.set_modified(time).expect("set");
    mounted(workshop, snapshot)
}

fn mounted(workshop: &Workshop, snapshot: Snapshot) -> FileSystem {
    let root = exporter::outputs::file::open_directory(&workshop.files_of(&snapshot)).expect("open");
    let owners = BTreeMap::from([(b"base-owned".to_vec(), (5, 6))]);
    let brought = BTreeSet::from([oci::ContentDigest::of(b"of the base, by COPY")]);
    FileSystem { platform: "linux/amd64".parse().expect("a platform"), snapshot, root, owners, brought }
}

/// The time of a file that a COPY brought.
fn brought(content: &str) -> i64 {
    oci::tree::content_time(&oci::ContentDigest::of(content.as_bytes()))
}

fn tar(workshop: &Workshop, systems: &[FileSystem], name: &str) -> Result<Vec<u8>, ExportError> {
    let path = workshop.path(name);
    let output =
        FilesOutput::Tar { destination: Destination::File(path.clone()), split: PlatformSplit::default() };
    export_files(systems, &output, TimePolicy::Default, &workshop.tools())?;
    Ok(fs::read(path).expect("readable"))
}

fn local(workshop: &Workshop, systems: &[FileSystem], directory: &Path) -> Result<(), ExportError> {
    let output = FilesOutput::Local { directory: directory.to_owned(), split: PlatformSplit::default() };
    export_files(systems, &output, TimePolicy::Default, &workshop.tools()).map(drop)
}

#[test]
fn a_tar_has_what_the_layers_say_and_normal_times_for_the_base() {
    let workshop = Workshop::new();
    let first = tar(&workshop, &[file_system(&workshop)], "files.tar").expect("exported");
    let again = Workshop::new();
    assert_eq!(first, tar(&again, &[file_system(&again)], "files.tar").expect("exported"));
    let list = Command::new("tar")
        .args(["-tv", "--numeric-owner", "--full-time", "-f"])
        .env("TZ", "UTC")
        .arg(workshop.path("files.tar"))
        .output();
    let Ok(list) = list else { return eprintln!("SKIPPED: GNU tar is not installed") };
    let time = |content| exporter::assemble::rfc3339(brought(content)).replace('T', " ").replace('Z', "");
    let (time, base_time) = (time("brought"), time("of the base, by COPY"));
    let owner = rustix::process::geteuid().as_raw();
    let group = rustix::process::getegid().as_raw();
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>().join(" ");
    let lines: Vec<_> = String::from_utf8_lossy(&list.stdout).lines().map(words).collect();
    assert_eq!(
        lines,
        [
            format!("-rw-r----- {owner}/{group} 11 2000-01-01 00:00:00 base"),
            format!("-rw-r--r-- {owner}/{group} 0 1970-01-02 00:00:00 base-old"),
            format!("-rw-r--r-- 5/6 20 {base_time} base-owned"),
            "drwxr-x--- 0/0 0 2000-01-01 00:00:00 d/".to_owned(),
            format!("-rw-r--r-- 0/0 7 {time} d/a"),
            format!("hrw-r--r-- 0/0 0 {time} d/b link to d/a"),
            "-rw------- 0/0 4 2001-09-09 01:46:40 kept".to_owned(),
            "-rwsr-xr-x 77/88 5 2000-01-01 00:00:00 owned".to_owned(),
            "lrwxrwxrwx 0/0 0 2000-01-01 00:00:00 s -> d/a".to_owned(),
        ]
    );
}

#[test]
fn a_tar_that_takes_no_more_is_named() {
    let workshop = Workshop::new();
    let output = FilesOutput::Tar {
        destination: Destination::File("/dev/full".into()),
        split: PlatformSplit::default(),
    };
    let exported = export_files(&[file_system(&workshop)], &output, TimePolicy::Default, &workshop.tools());
    let error = exported.expect_err("nothing fits");
    assert_eq!(error.to_string(), "cannot write /dev/full");
    let full = std::error::Error::source(&error).and_then(|source| source.downcast_ref::<std::io::Error>());
    assert!(full.is_some_and(|full| full.kind() == std::io::ErrorKind::StorageFull), "{error:?}");
}

#[test]
fn a_new_directory_in_which_nothing_could_be_written_is_removed() {
    let workshop = Workshop::new();
    fs::create_dir(workshop.path("old")).expect("made");
    workshop.cancel.request();
    for (name, is_left) in [("new", false), ("old", true)] {
        local(&workshop, &[file_system(&workshop)], &workshop.path(name)).expect_err("it was stopped");
        assert_eq!(workshop.path(name).exists(), is_left, "{name}");
    }
}

#[test]
fn several_platforms_lie_side_by_side() {
    let workshop = Workshop::new();
    let arm = FileSystem { platform: "linux/arm/v7".parse().expect("a platform"), ..file_system(&workshop) };
    let systems = [file_system(&workshop), arm];
    tar(&workshop, &systems, "files.tar").expect("exported");
    let listed = judge(Command::new("tar").arg("-tf").arg(workshop.path("files.tar")));
    if let Some(listed) = listed {
        let tops: Vec<_> =
            listed.lines().filter(|line| line.matches('/').count() == 1 && line.ends_with('/')).collect();
        assert_eq!(tops, ["linux_amd64/", "linux_arm_v7/"]);
    }
    let directory = workshop.path("out");
    local(&workshop, &systems, &directory).expect("exported");
    assert_eq!(fs::read_to_string(directory.join("linux_arm_v7/d/a")).expect("there"), "brought");
}

#[test]
fn a_directory_has_modes_times_and_links_and_says_what_it_lacks() {
    let workshop = Workshop::new();
    let directory = workshop.path("out");
    local(&workshop, &[file_system(&workshop)], &directory).expect("exported");
    let stat = |path: &str| fs::symlink_metadata(directory.join(path)).expect(path);
    assert_eq!((stat("d").mode() & 0o7777, stat("d").mtime()), (0o750, 946_684_800));
    assert_eq!((stat("kept").mode() & 0o7777, stat("kept").mtime()), (0o600, 1_000_000_000));
    assert_eq!((stat("d/a").ino(), stat("d/a").mtime()), (stat("d/b").ino(), brought("brought")));
    assert_eq!(
        (stat("s").mtime(), fs::read_link(directory.join("s")).expect("a link")),
        (946_684_800, "d/a".into())
    );
    assert_eq!(stat("owned").uid(), rustix::process::geteuid().as_raw());
    assert_eq!(stat("owned").mode() & 0o7777, 0o755, "setuid of another owner is not for this one");
    let events = workshop.events.lock().expect("no panic");
    let warnings: Vec<_> = events.iter().filter(|event| matches!(event, Event::Warning(_))).collect();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(format!("{:?}", warnings[0]).contains("instead of their owners"));
}

#[test]
fn what_is_in_the_way_is_replaced_and_never_followed() {
    let workshop = Workshop::new();
    let (directory, outside) = (workshop.path("out"), workshop.path("outside"));
    fs::create_dir_all(directory.join("mine")).expect("made");
    fs::create_dir_all(&outside).expect("made");
    fs::write(directory.join("mine/file"), "stays").expect("written");
    fs::write(directory.join("kept"), "old").expect("written");
    symlink(&outside, directory.join("d")).expect("linked");
    symlink(outside.join("target"), directory.join("owned")).expect("linked");
    for _ in 0..2 {
        local(&workshop, &[file_system(&workshop)], &directory).expect("exported");
    }
    assert_eq!(fs::read_dir(&outside).expect("readable").count(), 0);
    assert_eq!(fs::read_to_string(directory.join("d/a")).expect("there"), "brought");
    assert_eq!(fs::read_to_string(directory.join("owned")).expect("there"), "owned");
    assert_eq!(fs::read_to_string(directory.join("kept")).expect("there"), "kept");
    assert_eq!(fs::read_to_string(directory.join("mine/file")).expect("there"), "stays");
    fs::remove_file(directory.join("kept")).expect("ours");
    fs::create_dir(directory.join("kept")).expect("made");
    let failed =
        local(&workshop, &[file_system(&workshop)], &directory).expect_err("a directory is in the way");
    assert!(failed.to_string().ends_with("out/kept"), "{failed}");
}

#[test]
fn a_file_that_is_not_what_its_layer_says_is_not_exported() {
    let workshop = Workshop::new();
    let system = file_system(&workshop);
    let snapshot = system.snapshot.clone();
    fs::write(workshop.files_of(&snapshot).join("d/a"), "BROUGHT").expect("ours");
    let failed = tar(&workshop, &[system], "files.tar").expect_err("changed");
    assert!(failed.to_string().contains("\"d/a\" has changed"), "{failed}");
    assert!(!workshop.path("files.tar").exists());
    let failed =
        local(&workshop, &[mounted(&workshop, snapshot)], &workshop.path("out")).expect_err("changed");
    assert!(failed.to_string().contains("\"d/a\" has changed"), "{failed}");
    assert!(!workshop.path("out/d/a").exists());
}

/// Two platforms: what the second has is told by a description.
fn two_platforms(workshop: &Workshop, second: &str) -> [FileSystem; 2] {
    let described = Described::parse(second);
    let snapshot = workshop.step(&Snapshot::default(), &described);
    let arm = FileSystem {
        platform: "linux/arm64".parse().expect("a platform"),
        owners: BTreeMap::new(),
        ..mounted(workshop, snapshot)
    };
    [file_system(workshop), arm]
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).expect("readable");
    let mut names: Vec<_> =
        entries.map(|entry| entry.expect("readable").file_name().into_string().expect("text")).collect();
    names.sort();
    names
}

#[test]
fn platforms_are_split_as_asked() {
    let workshop = Workshop::new();
    let both = two_platforms(&workshop, "dir d 0700 0:0 epoch\nfile d/arm 0644 0:0 epoch arm");
    for (name, split, systems, want) in [
        ("several", PlatformSplit::Several, &both[..], &["linux_amd64", "linux_arm64"][..]),
        ("one", PlatformSplit::Several, &both[1..], &["d"]),
        ("always", PlatformSplit::Always, &both[1..], &["linux_arm64"]),
        (
            "never",
            PlatformSplit::Never,
            &both,
            &["base", "base-old", "base-owned", "d", "kept", "owned", "s"],
        ),
    ] {
        let (directory, file) = (workshop.path(name), workshop.path(&format!("{name}.tar")));
        let destination = Destination::File(file.clone());
        for output in [
            FilesOutput::Local { directory: directory.clone(), split },
            FilesOutput::Tar { destination, split },
        ] {
            export_files(systems, &output, TimePolicy::Default, &workshop.tools()).expect(name);
        }
        assert_eq!(names(&directory), want, "{name}");
        let unpacked = workshop.path(&format!("unpacked-{name}"));
        fs::create_dir(&unpacked).expect("made");
        judge(Command::new("tar").arg("-xf").arg(file).arg("-C").arg(&unpacked));
        assert_eq!(names(&unpacked), want, "{name}");
    }
    let together = workshop.path("never/d");
    assert_eq!(names(&together), ["a", "arm", "b"]);
    let mode = fs::metadata(&together).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o750, "a directory is the first platform's");
}

#[test]
fn no_file_is_of_two_platforms() {
    let workshop = Workshop::new();
    for second in [
        "file kept 0600 0:0 epoch other",
        "file d 0600 0:0 epoch d",
        "dir kept 0755 0:0 epoch\nfile kept/x 0644 0:0 epoch x",
    ] {
        let both = two_platforms(&workshop, second);
        let split = PlatformSplit::Never;
        let file = workshop.path("files.tar");
        fs::write(&file, "old").expect("written");
        let output = FilesOutput::Tar { destination: Destination::File(file.clone()), split };
        let refused = export_files(&both, &output, TimePolicy::Default, &workshop.tools()).expect_err(second);
        assert!(refused.to_string().contains("of linux/arm64 over that of linux/amd64"), "{refused}");
        assert_eq!(fs::read(&file).expect("readable"), b"old");
    }
}
