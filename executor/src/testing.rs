//! Trees drawn in text, for tests: put on disk, read back, and mounted as overlays.
//!
//! One line a thing, in any order:
//! ```text
//! d/               a directory
//! d/f = text       a file with this content
//! d/l -> target    a symbolic link
//! d/h => d/f       another name of a file
//! p |              a FIFO
//! n c1,3           a character device
//! s !              a socket
//! ```
//! Behind that and ` ;` may stand what is not as usual: a mode (`0600`; usual are 0755 for directories and 0644), an owner
//! (`5:6`; usual is 0:0), a time (`@1000`; usual is now) and attributes (`user.a=b`), in this order. Read back, times are
//! shown when they are below [`TIME_LIMIT`].

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::{ffi::OsStrExt, net::UnixListener},
    },
    path::{Path, PathBuf},
    process::Command,
};

use oci::tree::TIME_LIMIT;
use rustix::fs::{FileType, Mode, OFlags, makedev, mknodat, open};
use solver::Cancel;

use crate::{
    copies::{self, Twins},
    mount::{OverlayMarks, overlay_mount},
    rootfs::{
        file_type, join, lstat, names, open_beneath, set_mode, set_mtime, set_node_mode, set_owner,
        set_xattr, shown, split, xattrs, xattrs_at,
    },
};

/// Opens a directory.
pub fn open_root(path: &Path) -> OwnedFd {
    open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).expect("a directory")
}

/// Draws a tree into a directory. Directories that are only implied are made, too.
pub fn draw(root: &Path, lines: &[&str]) {
    let root_fd = open_root(root);
    for line in lines {
        let (what, rest) = split_line(line);
        let path = root.join(what.trim_end_matches('/'));
        fs::create_dir_all(path.parent().expect("below the root")).expect("parents");
        let (kind, rest) = rest.split_once(' ').unwrap_or((rest, ""));
        let (argument, rest) = match kind {
            "=" | "->" | "=>" => rest.split_once(" ; ").unwrap_or((rest, "")),
            _ => ("", rest),
        };
        let usual = make(root, &root_fd, what, kind, argument);
        let rest = if what.ends_with('/') { line[what.len()..].trim() } else { rest };
        stamp(&root_fd, what.trim_end_matches('/'), usual, rest);
    }
    // Times of directories once more: drawing into them changed those.
    for line in lines.iter().filter(|line| split_line(line).0.ends_with('/')) {
        let what = split_line(line).0;
        let time = line.split(' ').find_map(|word| word.strip_prefix('@'));
        let Some(time) = time else { continue };
        let path = what.trim_end_matches('/').as_bytes();
        let dir = open_beneath(&root_fd, split(path).0, OFlags::RDONLY).expect("a parent");
        set_mtime(dir, split(path).1, time.parse().expect("a time"), 0).expect("set");
    }
}

fn split_line(line: &str) -> (&str, &str) {
    line.split_once(' ').unwrap_or((line, ""))
}

/// Makes one thing and says what its mode usually is.
fn make(root: &Path, root_fd: &OwnedFd, what: &str, kind: &str, argument: &str) -> Option<u32> {
    let path = root.join(what.trim_end_matches('/'));
    let node = |file_type, device| {
        mknodat(root_fd, what, file_type, Mode::from_raw_mode(0o644), device).expect("a node")
    };
    match kind {
        _ if what.ends_with('/') => fs::create_dir_all(&path).expect("a directory"),
        "=" => fs::write(&path, argument).expect("a file"),
        "->" => {
            std::os::unix::fs::symlink(argument, &path).expect("a link");
            return None;
        }
        "=>" => {
            fs::hard_link(root.join(argument), &path).expect("another name");
            return None;
        }
        "|" => node(FileType::Fifo, 0),
        "!" => drop(UnixListener::bind(&path).expect("a socket")),
        device => {
            let (major, minor) = device[1..].split_once(',').expect("c1,3");
            node(
                FileType::CharacterDevice,
                makedev(major.parse().expect("major"), minor.parse().expect("minor")),
            );
        }
    }
    Some(if what.ends_with('/') { 0o755 } else { 0o644 })
}

fn stamp(root: &OwnedFd, path: &str, usual: Option<u32>, words: &str) {
    let dir = open_beneath(root, split(path.as_bytes()).0, OFlags::RDONLY).expect("a parent");
    let name = split(path.as_bytes()).1;
    let mut mode = usual;
    let words: Vec<&str> = words.split_whitespace().collect();
    for word in &words {
        if let Some((uid, gid)) = word.split_once(':') {
            set_owner(&dir, name, uid.parse().expect("a uid"), gid.parse().expect("a gid"))
                .expect("tests run as root");
        } else if word.starts_with('0') {
            mode = Some(u32::from_str_radix(word, 8).expect("a mode"));
        }
    }
    let is_node = lstat(&dir, name).expect("there").is_some_and(|stat| {
        !matches!(file_type(&stat), FileType::RegularFile | FileType::Directory | FileType::Symlink)
    });
    match mode {
        Some(mode) if is_node => set_node_mode(&dir, name, mode).expect("a mode"),
        Some(mode) => {
            let file = open_beneath(&dir, name, OFlags::RDONLY).expect("opened");
            set_mode(&file, mode).expect("a mode");
            for (name, value) in words.iter().filter_map(|word| word.split_once('=')) {
                set_xattr(&file, name.as_bytes(), value.as_bytes()).expect("an attribute");
            }
        }
        None => {}
    }
    if let Some(time) = words.iter().find_map(|word| word.strip_prefix('@')) {
        set_mtime(&dir, name, time.parse().expect("a time"), 0).expect("a time");
    }
}

/// Reads a tree back, sorted by path.
pub fn show(root: &impl AsFd) -> Vec<String> {
    let mut lines = Vec::new();
    let mut inodes = BTreeMap::new();
    let mut todo = vec![Vec::new()];
    let mut paths = Vec::new();
    while let Some(dir) = todo.pop() {
        let opened = open_beneath(root, &dir, OFlags::RDONLY | OFlags::DIRECTORY).expect("a directory");
        for name in names(&opened).expect("listed") {
            let stat = lstat(&opened, &name).expect("looked").expect("there");
            let path = join(&dir, &name);
            if file_type(&stat) == FileType::Directory {
                todo.push(path.clone());
            }
            paths.push((path, stat));
        }
    }
    paths.sort_by(|a, b| a.0.cmp(&b.0));
    for (path, stat) in paths {
        let file = |path: &[u8]| open_beneath(root, path, OFlags::RDONLY | OFlags::NONBLOCK).expect("opened");
        let (mut line, usual, attributes) = match file_type(&stat) {
            FileType::Directory => (format!("{}/", shown(&path)), 0o755, xattrs(file(&path)).expect("read")),
            FileType::Symlink => {
                let parent = file(split(&path).0);
                let target = rustix::fs::readlinkat(parent, OsStr::from_bytes(split(&path).1), Vec::new())
                    .expect("a link");
                (format!("{} -> {}", shown(&path), target.to_string_lossy()), 0o777, BTreeMap::new())
            }
            FileType::RegularFile => {
                if let Some(first) =
                    inodes.insert((stat.st_dev, stat.st_ino), path.clone()).filter(|_| stat.st_nlink > 1)
                {
                    inodes.insert((stat.st_dev, stat.st_ino), first.clone());
                    lines.push(format!("{} => {}", shown(&path), shown(&first)));
                    continue;
                }
                let opened = file(&path);
                let attributes = xattrs(&opened).expect("read");
                let text = fs::read(format!("/proc/self/fd/{}", opened.as_raw_fd())).expect("read");
                (format!("{} = {}", shown(&path), shown(&text)), 0o644, attributes)
            }
            FileType::Fifo => (format!("{} |", shown(&path)), 0o644, attributes_of(root, &path)),
            FileType::Socket => (format!("{} !", shown(&path)), 0o644, BTreeMap::new()),
            _ => {
                let (major, minor) = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
                (format!("{} c{major},{minor}", shown(&path)), 0o644, attributes_of(root, &path))
            }
        };
        let kept = (stat.st_mtime < TIME_LIMIT).then_some(stat.st_mtime);
        line += &suffix(stat.st_mode & 0o7777, usual, (stat.st_uid, stat.st_gid), kept, &attributes);
        lines.push(line);
    }
    lines
}

fn attributes_of(root: &impl AsFd, path: &[u8]) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let parent = open_beneath(root, split(path).0, OFlags::PATH).expect("a parent");
    xattrs_at(parent, split(path).1).expect("read")
}

/// What is not as usual about a thing, behind ` ;`.
pub fn suffix(
    mode: u32,
    usual: u32,
    owner: (u32, u32),
    kept: Option<i64>,
    attributes: &BTreeMap<Vec<u8>, Vec<u8>>,
) -> String {
    let mut words = Vec::new();
    if mode != usual {
        words.push(format!("{mode:04o}"));
    }
    if owner != (0, 0) {
        words.push(format!("{}:{}", owner.0, owner.1));
    }
    words.extend(kept.map(|time| format!("@{time}")));
    words.extend(attributes.iter().map(|(name, value)| format!("{}={}", shown(name), shown(value))));
    if words.is_empty() { String::new() } else { format!(" ; {}", words.join(" ")) }
}

/// Whether this is root with all ids, who can draw everything.
pub fn is_host_root() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    rustix::process::geteuid().is_root() && map.contains("4294967295")
}

/// Runs a test of this crate inside a user namespace with one id and a mount namespace, where there are any.
pub fn run_in_namespace_with_one_id(test: &str) {
    let exe = std::env::current_exe().expect("this test");
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "--"]).arg(exe);
    match command.args(["--exact", test, "--include-ignored", "--nocapture"]).output() {
        Err(error) => eprintln!("SKIPPED: no unshare(1): {error}"),
        Ok(output) if shown(&output.stderr).contains("unshare failed") => {
            eprintln!("SKIPPED: no user namespaces: {}", shown(&output.stderr));
        }
        Ok(output) => {
            let said = shown(&output.stdout) + &shown(&output.stderr);
            eprint!("{said}");
            assert!(output.status.success() && said.contains("1 passed"), "{test}");
        }
    }
}

/// An overlay on disk: what was drawn is below, what is written arrives in [`Overlaid::upper`].
pub struct Overlaid {
    temp: tempfile::TempDir,
    /// The merged file system, writable.
    pub root: OwnedFd,
    /// The merged file system as it was, read-only.
    pub lower: OwnedFd,
}

impl Overlaid {
    /// Mounts one where everything can be drawn, or says loudly that it cannot.
    pub fn new(lower: &[&str]) -> Option<Self> {
        if !is_host_root() {
            eprintln!("SKIPPED: drawing owners and devices needs root");
            return None;
        }
        Self::anywhere(lower)
    }

    /// Mounts one, in a user namespace, too, as long as all that is drawn can be had there.
    pub fn anywhere(lower: &[&str]) -> Option<Self> {
        let temp = tempfile::tempdir().expect("a temporary directory");
        let dir = |name: &str| -> PathBuf {
            fs::create_dir(temp.path().join(name)).expect("a directory");
            temp.path().join(name)
        };
        let (below, empty, upper, work) = (dir("lower"), dir("empty"), dir("upper"), dir("work"));
        set_mode(open_root(&below), 0o755).expect("a mode");
        let root = match overlay_mount(&[&below], Some((&upper, &work)), !is_host_root()) {
            Ok(root) => root,
            Err(error) => {
                eprintln!("SKIPPED: no overlay here: {error}");
                return None;
            }
        };
        drop(root);
        draw(&below, lower);
        let lower = overlay_mount(&[&below, &empty], None, !is_host_root()).expect("a read-only overlay");
        let writable = Some((upper.as_path(), work.as_path()));
        let root = overlay_mount(&[&below], writable, !is_host_root()).expect("an overlay, as before");
        Some(Self { temp, root, lower })
    }

    /// Ends the writable mount: [`Overlaid::root`] is what was drawn.
    pub fn unmount(&mut self) {
        self.root = self.lower.try_clone().expect("a descriptor");
    }

    /// Ends the writable mount: [`Overlaid::root`] is what the next step finds below it, read-only. What was written is a
    /// layer there, and is none that overlay can write into again once a scan has settled it: a file that was copied up
    /// and moved away says whose copy it is, and where that shows again overlay takes the two for one.
    pub fn stack(&mut self) {
        let below = self.temp.path().join("lower");
        self.root = overlay_mount(&[&self.upper(), &below], None, !is_host_root()).expect("what is on disk");
    }

    /// Where changes arrive.
    pub fn upper(&self) -> PathBuf {
        self.temp.path().join("upper")
    }

    /// How it marks opaque directories.
    pub fn marks(&self) -> OverlayMarks {
        if is_host_root() { OverlayMarks::Trusted } else { OverlayMarks::User }
    }

    /// Whether something is at a path of the merged file system.
    pub fn has(&self, path: &[u8]) -> bool {
        open_beneath(&self.root, path, OFlags::PATH).is_ok()
    }

    /// Runs a shell script in the root of the merged file system.
    pub fn run(&self, script: &str) {
        run_in(&self.root, script);
    }
}

/// A whole copy on disk of what was drawn, to be changed like an overlay.
pub struct Copied {
    temp: tempfile::TempDir,
    /// The copy.
    pub root: OwnedFd,
    /// What it is of.
    pub lower: OwnedFd,
    /// Which file of one is which of the other.
    pub twins: Twins,
}

impl Copied {
    /// Draws something and copies it.
    pub fn new(lower: &[&str]) -> Self {
        let temp = tempfile::tempdir().expect("a temporary directory");
        let made = |name: &str| {
            let path = temp.path().join(name);
            fs::create_dir(&path).expect("a directory");
            set_mode(open_root(&path), 0o755).expect("a mode");
            path
        };
        let (below, copy) = (made("lower"), made("copy"));
        draw(&below, lower);
        let (lower, root) = (open_root(&below), open_root(&copy));
        let twins = copies::fill(&root, Some(&lower), &Cancel::default()).expect("a copy");
        twins.part_from_what_follows();
        Self { temp, root, lower, twins }
    }

    /// Where the copy is.
    pub fn path(&self) -> PathBuf {
        self.temp.path().join("copy")
    }

    /// Runs a shell script in the copy.
    pub fn run(&self, script: &str) {
        run_in(&self.root, script);
    }
}

fn run_in(root: &OwnedFd, script: &str) {
    let root = format!("/proc/self/fd/{}", root.as_raw_fd());
    let run = Command::new("sh").args(["-euc", script]).current_dir(root).output().expect("a shell");
    assert!(run.status.success(), "{script}: {}", shown(&run.stderr));
}

#[test]
fn a_drawing_reads_back() {
    let Some(overlay) = Overlaid::new(&[]) else { return };
    let lines = [
        "a = text ; 0600 5:6 @1000 user.a=b",
        "b => a",
        "d/ ; 0700 @2000",
        "d/l -> /x ; 1:2 @-3",
        "n c1,3",
        "p | ; 0600",
        "s !",
    ];
    draw(Path::new(&format!("/proc/self/fd/{}", overlay.root.as_raw_fd())), &lines);
    assert_eq!(show(&overlay.root), lines);
}
