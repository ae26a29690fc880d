use std::{
    io::{BufRead, BufReader, Write},
    os::unix::fs::{PermissionsExt, symlink},
    process::{Command, Stdio},
};

use super::*;

fn open(root: &Path) -> Store {
    Store::open(root).unwrap_or_else(|error| panic!("{error}: {:?}", std::error::Error::source(&error)))
}

fn runs(store: &Path) -> usize {
    fs::read_dir(store.join("tmp")).expect("there is a tmp").count()
}

/// Not a test of its own: the other process of the tests below, which start it with this variable set.
#[test]
fn child_process() {
    let Ok(root) = std::env::var("STORE_TEST_ROOT") else { return };
    let store = open(Path::new(&root));
    let temp = store.temp_dir("child").expect("a temporary");
    fs::write(temp.path().join("file"), "left behind").expect("writable");
    writeln!(io::stdout(), "\nready {}", temp.path().display()).expect("the parent listens");
    // Ends when the parent closes the pipe; the parent kills us before that.
    let _ = io::stdin().read_line(&mut String::new());
}

struct Child {
    process: std::process::Child,
    temp: PathBuf,
}

impl Child {
    fn start(root: &Path) -> Self {
        let mut process = Command::new(std::env::current_exe().expect("we are running"))
            .args(["--exact", "store::tests::child_process", "--nocapture"])
            .env("STORE_TEST_ROOT", root)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("our own binary starts");
        let lines = BufReader::new(process.stdout.take().expect("piped")).lines();
        let ready =
            lines.map_while(Result::ok).find_map(|line| line.strip_prefix("ready ").map(PathBuf::from));
        Self { process, temp: ready.expect("the child opened the store") }
    }

    fn kill(mut self) {
        self.process.kill().expect("it is ours");
        self.process.wait().expect("it is ours");
    }
}

#[test]
fn a_killed_process_is_swept_by_the_next_open_and_a_living_one_is_not() {
    let root = tempfile::tempdir().expect("tempdir");
    let (dead, alive) = (Child::start(root.path()), Child::start(root.path()));
    let (left, kept) = (dead.temp.clone(), alive.temp.clone());
    dead.kill();
    assert!(left.join("file").exists(), "kill -9 runs no destructor");

    let store = open(root.path());
    assert!(!left.exists());
    assert_eq!(fs::read(kept.join("file")).expect("untouched"), b"left behind");
    alive.kill();
    drop(store);
    open(root.path()).sync().expect("synced");
    assert_eq!(runs(root.path()), 0);
}

#[test]
fn two_handles_share_blobs_and_sweep_nothing_of_each_other() {
    let root = tempfile::tempdir().expect("tempdir");
    let (one, two) = (open(root.path()), open(root.path()));
    let temp = one.temp_dir("a/b c").expect("a temporary");
    let three = open(root.path());
    assert!(temp.path().exists());

    let mut writer = one.blob_writer().expect("a temporary");
    writer.write_all(b"content").expect("room");
    let (digest, _) = writer.commit().expect("stored");
    assert!(two.has_blob(&digest, 7) && !two.has_blob(&digest, 8));
    assert_eq!(fs::read(three.blob_path(&digest)).expect("there"), b"content");
    let missing = Sha256Digest::of(b"missing");
    assert!(matches!(two.open_blob(&missing), Err(StoreError::NoBlob { digest }) if digest == missing));
}

#[test]
fn what_a_power_failure_may_have_torn_is_thrown_away() {
    let root = tempfile::tempdir().expect("tempdir");
    drop(open(root.path()));
    let place = |name: &str, age: u64| {
        let path = root.path().join(name);
        fs::create_dir(&path).expect("writable");
        let time = std::time::SystemTime::now() - std::time::Duration::from_secs(age);
        fs::File::open(&path).and_then(|file| file.set_modified(time)).expect("ours");
        path
    };
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("later").as_secs();
    let old = [place("snapshots/old", 5000), place("git/checkouts/old", 5000)];
    let new = [place("snapshots/new", 10), place("git/checkouts/new", 10)];
    let run = |boot: &str| {
        let name = format!("tmp/7.1f.0.{:x}.{boot}", now - 100);
        fs::create_dir(root.path().join(name)).expect("writable");
    };
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("readable");
    let own: String = id.chars().filter(char::is_ascii_alphanumeric).take(16).collect();
    run(&own);
    let store = open(root.path());
    assert!(new.iter().chain(&old).all(|path| path.exists()), "a process was killed, and nothing else");
    let name = fs::read_dir(root.path().join("tmp")).expect("there").next().expect("ours").expect("readable");
    let name = name.file_name().into_string().expect("text");
    assert!(name.ends_with(&format!(".0.{:x}.{own}", now - 100)), "it takes over the beginning: {name}");
    store.sync().expect("synced");
    drop(store);
    run("another");
    drop(open(root.path()));
    assert!(old.iter().all(|path| path.exists()) && !new.iter().any(|path| path.exists()));
}

#[test]
fn a_run_without_a_lock_was_killed_while_it_began() {
    let root = tempfile::tempdir().expect("tempdir");
    drop(open(root.path()));
    fs::create_dir(root.path().join("tmp/1.0")).expect("writable");
    fs::write(root.path().join("tmp/stray"), "").expect("writable");
    open(root.path()).sync().expect("synced");
    assert_eq!(runs(root.path()), 0);
}

#[test]
fn a_store_of_another_user_map_or_format_is_refused() {
    let root = tempfile::tempdir().expect("tempdir");
    drop(open(root.path()));
    let format = root.path().join(owner::FILE);
    let own = fs::read_to_string(&format).expect("there");
    let rewrite = |text: &str| {
        fs::remove_file(&format).expect("there");
        fs::write(&format, text).expect("writable");
        Store::open(root.path()).expect_err("refused")
    };
    let foreign = rewrite("layerwright store 1\nuid=0 map=0:1000:1;0:1000:1\n");
    assert!(foreign.to_string().contains("belongs to uid=0 map=0:1000:1;0:1000:1, but this process is uid="));
    assert!(
        matches!(rewrite("layerwright store 2\n"), StoreError::Format { found, .. } if found.ends_with('2'))
    );
    assert!(matches!(rewrite(""), StoreError::Unmarked { .. }));
    fs::write(&format, own).expect("writable");
    drop(open(root.path()));
}

#[test]
fn a_damaged_or_lost_format_is_no_other_owner_and_can_be_written_anew() {
    let root = tempfile::tempdir().expect("tempdir");
    drop(open(root.path()));
    let format = root.path().join(owner::FILE);
    let own = fs::read(&format).expect("there");
    for bit in 0..own.len() * 8 {
        let mut damaged = own.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        fs::remove_file(&format).expect("there");
        fs::write(&format, damaged).expect("writable");
        let error = Store::open(root.path()).expect_err("refused");
        assert!(matches!(error, StoreError::Unmarked { .. }), "bit {bit}: {error}");
    }
    fs::remove_file(&format).expect("there");
    let error = Store::open(root.path()).expect_err("refused");
    assert!(error.to_string().ends_with("is missing"), "{error}");
    Store::claim_again(root.path()).expect("ours");
    assert_eq!(fs::read(&format).expect("there"), own);
    drop(open(root.path()));
}

#[test]
fn a_directory_of_another_user_is_refused() {
    let root = tempfile::tempdir().expect("tempdir");
    if rustix::process::geteuid().is_root() {
        if std::os::unix::fs::chown(root.path(), Some(12345), None).is_err() {
            let _ = writeln!(io::stderr(), "SKIPPED: this user namespace has a single id");
            return;
        }
        assert!(matches!(Store::open(root.path()), Err(StoreError::OtherUser { .. })));
    } else {
        assert!(matches!(Store::open(Path::new("/")), Err(StoreError::OtherUser { .. })));
    }
}

#[test]
fn a_directory_that_holds_something_else_is_left_alone() {
    let root = tempfile::tempdir().expect("tempdir");
    fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).expect("ours");
    fs::write(root.path().join("thesis.tex"), "").expect("writable");
    assert!(matches!(Store::open(root.path()), Err(StoreError::NotAStore { .. })));
    assert_eq!(fs::metadata(root.path()).expect("there").permissions().mode() & 0o777, 0o755);

    fs::remove_file(root.path().join("thesis.tex")).expect("there");
    fs::write(root.path().join("format.new"), "half").expect("writable");
    drop(open(root.path()));
    assert_eq!(fs::metadata(root.path()).expect("there").permissions().mode() & 0o777, 0o700);
}

#[test]
fn a_blob_appears_whole_or_not_at_all() {
    let root = tempfile::tempdir().expect("tempdir");
    let store = open(root.path());
    let content = vec![7_u8; 300_000];
    let digest = Sha256Digest::of(&content);
    let write = |count: usize| {
        let mut writer = store.blob_writer().expect("a temporary");
        writer.write_all(&content[..count]).expect("room");
        writer
    };
    drop(write(300_000));
    let copy = |count: usize| {
        let mut copy = store.blob_copy().expect("a temporary");
        copy.write_all(&content[..count]).expect("room");
        copy.commit_verified(&digest, 300_000)
    };
    let short = copy(299_999).expect_err("one byte is missing");
    assert!(matches!(short, StoreError::IncompleteBlob { found: 299_999, .. }), "{short}");
    assert_eq!(fs::read_dir(store.area("blobs/sha256")).expect("there").count(), 0);

    // Damage is mended by writing the blob again.
    fs::write(store.blob_path(&digest), "damaged").expect("writable");
    assert_eq!(write(300_000).commit().expect("stored"), (digest, 300_000));
    assert!(store.has_blob(&digest, 300_000));
    copy(300_000).expect("again");
    assert_eq!(fs::read(store.blob_path(&digest)).expect("there"), content);
    store.sync().expect("syncfs");
    let run = store.temp_dir("x").expect("made").path().parent().expect("the run").to_owned();
    assert_eq!(fs::read_dir(run).expect("there").count(), 2, "nothing but the lock and the pins is left");
}

#[test]
fn files_are_replaced_whole_and_only_inside() {
    let root = tempfile::tempdir().expect("tempdir");
    let store = open(root.path());
    for content in ["old", "new"] {
        store.write_atomic(Path::new("sealed/deep/er/x"), content.as_bytes()).expect("written");
        assert_eq!(fs::read_to_string(store.area("sealed").join("deep/er/x")).expect("there"), content);
    }
    store.write_atomic(&store.area("trees").join("y"), b"").expect("an absolute path inside");
    for outside in ["/etc/passwd", "../x", "trees/../../x", "", "trees/./../.."] {
        let refused = store.write_atomic(Path::new(outside), b"");
        assert!(matches!(refused, Err(StoreError::Outside { .. })), "{outside}");
    }
}

#[test]
fn the_first_to_rename_wins() {
    let root = tempfile::tempdir().expect("tempdir");
    let store = open(root.path());
    let target = Path::new("snapshots/abc");
    let with = |content: &str| {
        let temp = store.temp_dir("snapshot").expect("made");
        fs::write(temp.path().join("fs"), content).expect("writable");
        (temp.path().to_owned(), store.rename_into(temp, target).expect("renamed"))
    };
    let (first, second) = (with("one"), with("two"));
    assert!(first.1 && !second.1);
    assert!(!first.0.exists() && !second.0.exists());
    assert_eq!(fs::read(store.root().join("snapshots/abc/fs")).expect("there"), b"one");
}

#[test]
fn removal_follows_no_link_and_copes_with_locked_and_deep_directories() {
    let root = tempfile::tempdir().expect("tempdir");
    let outside = tempfile::tempdir().expect("tempdir");
    fs::write(outside.path().join("canary"), "alive").expect("writable");
    let store = open(root.path());
    let temp = store.temp_dir("hostile").expect("made");
    let at = |path: &str| temp.path().join(path);

    symlink(outside.path(), at("link")).expect("made");
    symlink("/", at("root")).expect("made");
    fs::create_dir_all(at("locked/inner/most")).expect("made");
    fs::write(at("locked/inner/most/file"), "").expect("written");
    fs::write(at(".removing.1"), "a name of ours").expect("written");
    fs::create_dir_all(at(".removing.2/x")).expect("made");
    symlink(outside.path(), at("locked/inner/link")).expect("made");
    for locked in ["locked/inner/most", "locked/inner", "locked"] {
        fs::set_permissions(at(locked), fs::Permissions::from_mode(0o0)).expect("ours");
    }
    make_deep(&at("deep"), 5_000);
    temp.remove().expect("removed");
    assert_eq!(fs::read_to_string(outside.path().join("canary")).expect("untouched"), "alive");
    drop(store);
    assert_eq!(runs(root.path()), 0);
}

/// Deeper than any path may be long, and than a process may have descriptors.
fn make_deep(root: &Path, depth: usize) {
    fs::create_dir(root).expect("made");
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut directory = rustix::fs::open(root, flags, Mode::empty()).expect("there");
    for _ in 0..depth {
        rustix::fs::mkdirat(&directory, "d", Mode::RWXU).expect("made");
        directory = rustix::fs::openat(&directory, "d", flags, Mode::empty()).expect("there");
    }
}

#[test]
fn removal_stops_at_a_mount_point() {
    let root = tempfile::tempdir().expect("tempdir");
    let error = temp::remove_tree(Path::new("/proc")).expect_err("a mount point");
    assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::XDEV.raw_os_error()));
    temp::remove_tree(&root.path().join("never there")).expect("nothing to do");
}

#[test]
fn acls_from_above_do_not_reach_the_store() {
    let above = tempfile::tempdir().expect("a temporary directory");
    // Version 2 of the kernel's form: user::rwx, user:1234:rwx, group::r-x, mask::rwx, other::r-x.
    let entries: [(u16, u16, u32); 5] =
        [(1, 7, u32::MAX), (2, 7, 1234), (4, 5, u32::MAX), (0x10, 7, u32::MAX), (0x20, 5, u32::MAX)];
    let encode = |(tag, permissions, id): (u16, u16, u32)| {
        [&tag.to_le_bytes()[..], &permissions.to_le_bytes()[..], &id.to_le_bytes()[..]].concat()
    };
    let acl = [2u32.to_le_bytes().to_vec(), entries.map(encode).concat()].concat();
    let set =
        rustix::fs::setxattr(above.path(), "system.posix_acl_default", &acl, rustix::fs::XattrFlags::empty());
    if let Err(errno) = set {
        eprintln!("SKIPPED: no ACLs in {}: {errno}", above.path().display());
        return;
    }
    let store = Store::open(&above.path().join("store")).expect("a store");
    let temp = store.temp_dir("test").expect("a directory");
    for path in [store.root(), &store.area("snapshots"), temp.path()] {
        let listed = rustix::fs::listxattr(path, &mut [0u8; 256]).expect("listed");
        assert_eq!(listed, 0, "{}", path.display());
    }
}

#[test]
fn only_what_may_not_be_on_disk_is_synced() {
    let root = tempfile::tempdir().expect("made");
    let synced = |store: &Store| {
        let mut ran = false;
        let sync = || {
            ran = true;
            Ok(())
        };
        store.run.sync(sync).expect("nothing fails");
        ran
    };
    let first = open(root.path());
    assert!(!synced(&first), "nothing was written");
    first.write_loose(Path::new("history/x"), b"x").expect("written");
    assert!(!synced(&first), "nothing that anybody would miss");
    first.write_atomic(Path::new("trees/x"), b"x").expect("written");
    assert!(synced(&first) && !synced(&first), "once for what was written");

    let second = open(root.path());
    assert!(synced(&second), "the other may have written");
    second.write_atomic(Path::new("trees/y"), b"y").expect("written");
    drop(second);
    assert!(synced(&first), "the other has written and left");
    drop(first);
    let third = open(root.path());
    assert_eq!(runs(root.path()), 1, "what the other has left is swept");
    assert!(synced(&third) && !synced(&third), "and its writing is synced");
    let failed = third
        .write_atomic(Path::new("trees/z"), b"z")
        .map(|()| third.run.sync(|| Err(rustix::io::Errno::IO)));
    assert!(failed.expect("written").is_err() && synced(&third), "what failed is tried again");
    drop(third);
    assert_eq!(runs(root.path()), 0);
}

#[test]
fn a_blob_is_trusted_by_who_has_written_it_as_long_as_it_is_that_file() {
    let directory = tempfile::tempdir().expect("temp");
    let (store, other) = (open(directory.path()), open(directory.path()));
    let mut writer = store.blob_writer().expect("a temporary");
    writer.write_all(b"layer").expect("written");
    let (digest, _) = writer.commit().expect("in place");
    assert!(store.open_own_blob(&digest).expect("it is there").is_some());
    assert!(other.open_own_blob(&digest).expect("never looked for").is_none());
    let copy = directory.path().join("copy");
    fs::write(&copy, "l4yer").expect("writable");
    fs::rename(copy, store.blob_path(&digest)).expect("ours");
    assert!(store.open_own_blob(&digest).expect("it is there").is_none());
    store.remove_blob(&digest).expect("removed");
    assert!(matches!(store.open_own_blob(&digest), Err(StoreError::NoBlob { .. })));
}
