use std::{fs::File, os::unix::fs::FileExt};

use super::*;

struct Scratch {
    directory: tempfile::TempDir,
}

impl Scratch {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        fs::create_dir(directory.path().join("from")).expect("made");
        Self { directory }
    }

    fn from(&self, path: &str) -> PathBuf {
        let path = self.directory.path().join("from").join(path);
        fs::create_dir_all(path.parent().expect("a parent")).expect("made");
        path
    }

    fn write(&self, path: &str) {
        fs::write(self.from(path), path).expect("written");
    }

    fn mirror(&self, ignored: &str, cancel: &Cancel) -> Result<(), MirrorError> {
        let file = IgnoreFile { name: "Dockerfile.dockerignore".to_owned(), text: ignored.to_owned() };
        let (from, to) = (self.directory.path().join("from"), self.directory.path().join("to"));
        mirror(&from, &to, Some(&file), cancel)
    }

    /// All that is in the copy.
    fn made(&self, ignored: &str) -> Vec<String> {
        self.mirror(ignored, &Cancel::default()).expect("copied");
        let to = self.directory.path().join("to");
        let walk =
            WalkDir::new(&to).min_depth(1).sort_by_file_name().into_iter().map(|entry| entry.expect("read"));
        walk.map(|entry| entry.path().strip_prefix(&to).expect("in it").display().to_string()).collect()
    }
}

#[test]
fn what_is_ignored_is_left_behind_and_what_an_exception_reaches_is_not() {
    let scratch = Scratch::new();
    ["Dockerfile", "a", "node/x/y", "out/x", "out/keep"].iter().for_each(|path| scratch.write(path));
    assert_eq!(scratch.made("*ocker*\nnode\nout\n!out/keep\n"), ["Dockerfile", "a", "out", "out/keep"]);
}

#[test]
fn what_links_that_are_read_always_lead_to_is_there() {
    let scratch = Scratch::new();
    ["docker/prod", "docker/other", "ignore/main"].iter().for_each(|path| scratch.write(path));
    symlink("docker/link", scratch.from("Dockerfile")).expect("linked");
    symlink("../docker/./prod", scratch.from("docker/link")).expect("linked");
    symlink("ignore/main", scratch.from(".dockerignore")).expect("linked");
    let there =
        [".dockerignore", "Dockerfile", "docker", "docker/link", "docker/prod", "ignore", "ignore/main"];
    assert_eq!(scratch.made("docker\nignore\n"), there);
}

#[test]
fn holes_and_modes_stay() {
    let scratch = Scratch::new();
    let file = File::create(scratch.from("sparse")).expect("made");
    file.write_all_at(b"end", 1 << 30).expect("written");
    fs::set_permissions(scratch.from("sparse"), Permissions::from_mode(0o4711)).expect("set");
    assert_eq!(scratch.made(""), ["sparse"]);
    let [one, other] = ["from/sparse", "to/sparse"]
        .map(|path| scratch.directory.path().join(path).metadata().expect("there"));
    assert_eq!((other.len(), other.mode()), (one.len(), one.mode()));
    assert!(other.blocks() * 512 <= 1 << 20, "{} blocks", other.blocks());
    let end = fs::read(scratch.directory.path().join("to/sparse")).expect("read");
    assert_eq!(end.get(1 << 30..), Some(&b"end"[..]));
}

#[test]
fn root_gives_files_to_whom_they_belong() {
    if !geteuid().is_root() {
        return;
    }
    let scratch = Scratch::new();
    scratch.write("sub/setuid");
    for path in ["sub/setuid", "sub"] {
        lchown(scratch.from(path), Some(1234), Some(5678)).expect("given away");
    }
    fs::set_permissions(scratch.from("sub/setuid"), Permissions::from_mode(0o4755)).expect("set");
    scratch.made("");
    for (path, mode) in [("to/sub/setuid", 0o4755), ("to/sub", 0o755)] {
        let made = scratch.directory.path().join(path).metadata().expect("there");
        assert_eq!((made.uid(), made.gid(), made.mode() & 0o7777), (1234, 5678, mode), "{path}");
    }
}

#[test]
fn who_is_to_stop_stops() {
    let scratch = Scratch::new();
    scratch.write("a");
    let cancel = Cancel::default();
    cancel.request();
    let error = scratch.mirror("", &cancel).expect_err("stopped");
    assert_eq!(error.source.kind(), io::ErrorKind::Interrupted);
}
