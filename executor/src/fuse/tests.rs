use std::fs;

use rustix::fs::mkdirat;

use super::*;
use crate::{
    mount::{OverlayMarks, OverlaySync},
    rootfs::{set_xattr, xattr},
    testing::is_host_root,
};

#[test]
fn paths_are_named_from_what_they_have_in_common() {
    let overlay = |lowers: &[&str]| {
        let lowers: Vec<&Path> = lowers.iter().map(Path::new).collect();
        let writable = Some((Path::new("/s,/tmp/a/fs"), Path::new("/s,/tmp/a/work")));
        let marks = OverlayMarks::Names;
        options(&Overlay { lowers: &lowers, writable, marks, sync: OverlaySync::Ignored })
    };
    let (base, options) = overlay(&["/s,/snapshots/2/fs", "/s,/snapshots/1/fs"]).expect("it can be said");
    assert_eq!(base, Path::new("/s,"));
    let words = "lowerdir=./snapshots/2/fs:./snapshots/1/fs,upperdir=./tmp/a/fs,workdir=./tmp/a/work";
    assert!(options.ends_with(words), "{options}");
    assert_eq!(overlay(&["/s,/a:b"]), Err(Errno::INVAL));
    let many = vec!["/s,/snapshots/0000000000000000000000000000000000000000/fs"; 3000];
    assert_eq!(overlay(&many), Err(Errno::TOOBIG));
}

/// A place to merge in, where that can be done here.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Option<Self> {
        if !is_host_root() || program().is_none() || fs::File::open(DEVICE).is_err() {
            eprintln!("SKIPPED: fuse-overlayfs is not installed, or /dev/fuse is not ours to open");
            return None;
        }
        let place = Self(tempfile::tempdir().expect("a directory"));
        ["lower", "upper", "work"].iter().for_each(|name| fs::create_dir(place.at(name)).expect("made"));
        Some(place)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn merge(&self) -> Merged {
        let (lower, upper, work) = (self.at("lower"), self.at("upper"), self.at("work"));
        let writable = Some((upper.as_path(), work.as_path()));
        let (marks, sync) = (OverlayMarks::Names, OverlaySync::Ignored);
        mount(&Overlay { lowers: &[&lower], writable, marks, sync }).expect("it merges")
    }

    fn close(&self, merged: Merged) -> Result<(), CloseError> {
        close(merged, &self.at("upper"), &[self.at("lower")])
    }
}

/// What a shell does in what is merged.
fn run(merged: &Merged, script: &str) {
    let here = format!("/proc/self/fd/{}", merged.as_fd().as_raw_fd());
    let run = Command::new("sh").args(["-euc", script]).current_dir(here).output().expect("a shell");
    assert!(run.status.success(), "{script}: {}", String::from_utf8_lossy(&run.stderr));
}

#[test]
fn what_is_left_is_what_the_store_has() {
    let Some(place) = Place::new() else { return };
    let script = "mkdir -p d/e a && echo 1 > d/e/f && echo 2 > d/g && touch gone a/x && touch -d 2001-01-01 d/e/f d/e d";
    assert!(
        Command::new("sh")
            .args(["-euc", script])
            .current_dir(place.at("lower"))
            .status()
            .expect("a shell")
            .success()
    );
    let merged = place.merge();
    run(&merged, "rm gone; echo more >> d/e/f; rm -r a; mkdir a; touch a/y; chmod 600 d/g");
    place.close(merged).expect("it ends well");
    let upper = place.at("upper");
    let is_there = |name: &str| upper.join(name).exists();
    assert!(
        is_there(".wh.gone") && !is_there("gone") && is_there("a/.wh..wh..opq") && !is_there("a/.wh..opq")
    );
    let time = |path: PathBuf| fs::metadata(path).expect("it is there").modified().expect("a time");
    for name in ["d", "d/e"] {
        assert_eq!(
            time(upper.join(name)),
            time(place.at("lower").join(name)),
            "{name}: nothing was put there"
        );
    }
    let file = fs::File::open(upper.join("d/g")).expect("it is there");
    assert_eq!(xattr(&file, b"user.fuseoverlayfs.origin"), Ok(None));
}

#[test]
fn a_name_of_the_steps_own_is_no_mark() {
    let Some(place) = Place::new() else { return };
    fs::write(place.at("lower/a"), "").expect("written");
    let merged = place.merge();
    run(&merged, "touch b; chmod 700 b; mv b .wh.a");
    place.close(merged).expect("it ends well");
    assert_eq!(fs::read(place.at("upper/.wh.a")).expect("it is there"), b"!");
}

#[test]
fn an_attribute_of_a_step_makes_nothing_opaque() {
    let Some(place) = Place::new() else { return };
    fs::create_dir(place.at("lower/d")).expect("made");
    let merged = place.merge();
    let directory = crate::rootfs::open_dir(&merged, b"d").expect("it is there");
    set_xattr(&directory, b"user.overlay.opaque", b"y").expect("anybody may");
    drop(directory);
    place.close(merged).expect("it ends well");
    let directory = fs::File::open(place.at("upper/d")).expect("it is there");
    assert_eq!(xattr(&directory, b"user.overlay.opaque"), Ok(None));
    assert_eq!(OverlayMarks::Names.is_opaque(&directory), Ok(false));
}

#[test]
fn it_ends_with_its_last_user_and_is_told_of_when_it_ends_before() {
    let Some(place) = Place::new() else { return };
    let merged = place.merge();
    let process = merged.merger().and_then(Merger::process).expect("it runs");
    rustix::process::kill_process(process, rustix::process::Signal::KILL).expect("ours");
    let Err(error) = place.close(merged) else { panic!("it was killed") };
    assert!(error.to_string().contains("was ended by signal 9"), "{error}");
}

#[test]
fn layers_that_are_not_there_are_told_in_its_words() {
    let Some(place) = Place::new() else { return };
    let missing = place.at("none");
    let (marks, sync) = (OverlayMarks::Names, OverlaySync::Ignored);
    let error = mount(&Overlay { lowers: &[&missing, &place.at("lower")], writable: None, marks, sync })
        .expect_err("not there");
    assert!(error.said.contains("fuse-overlayfs"), "{error}");
    let read_only =
        mount(&Overlay { lowers: &[&place.at("upper"), &place.at("lower")], writable: None, marks, sync });
    let read_only = read_only.expect("it merges");
    assert_eq!(mkdirat(&read_only, "x", Mode::RWXU), Err(Errno::ROFS));
}

#[test]
fn what_ends_with_its_file_system_has_done_nothing_wrong() {
    let end = |script: &str| {
        let words = File::from(memfd_create("words", MemfdFlags::CLOEXEC).expect("a file"));
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]).stderr(words.try_clone().expect("its descriptor"));
        let merger = Merger::new(&command.spawn().expect("it runs"), words);
        merger.end().map_err(|ended| ended.to_string())
    };
    assert_eq!(end("exit 0"), Ok(()));
    // As libfuse says it, where the kernel ends the connection while a request is taken from it.
    assert_eq!(end("echo 'fuse: reading device: Software caused connection abort' >&2; exit 1"), Ok(()));
    for script in ["echo 'fuse: reading device: Input/output error' >&2; exit 1", "exit 1", "kill -9 $$"] {
        end(script).expect_err(script);
    }
}
