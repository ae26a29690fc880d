//! What is remembered of contexts, and what is never believed.

use std::{
    fs::{self, File},
    os::fd::AsFd,
    os::unix::fs::{FileExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use solver::{Cancel, op::Selector};

use super::*;
use crate::{
    context::{kept::KEPT_UNUSED, read::complete_after},
    listing::{
        NodeKind,
        disk::{Disk, DiskKind},
        sight,
        walk::is_unread,
    },
    rootfs::shown,
    testing::draw,
};

struct Scene {
    _temp: tempfile::TempDir,
    store: Arc<Store>,
    context: PathBuf,
}

impl Scene {
    /// A context whose files have been there for a while, and a store.
    fn new(drawn: &[&str]) -> Self {
        let temp = tempfile::tempdir().expect("a temporary directory");
        let context = temp.path().join("context");
        fs::create_dir(&context).expect("made");
        draw(&context, drawn);
        let store = Arc::new(Store::open(&temp.path().join("store")).expect("a store"));
        Self { _temp: temp, store, context }
    }

    fn index(&self) -> Index {
        Index::load(&self.store, &self.context)
    }

    fn kept(&self) -> PathBuf {
        self.index().kept.expect("it is no temporary context").path
    }

    /// Looks at all files as if they had been there for a while, and returns their contents by path.
    fn look(&self, index: &Index) -> BTreeMap<String, ContentDigest> {
        self.look_after(index, Horizon::everything_settled())
    }

    fn look_after(&self, index: &Index, horizon: Horizon) -> BTreeMap<String, ContentDigest> {
        let root = File::open(&self.context).expect("opened");
        let selector = Selector { include: vec![String::new()], ..Selector::default() };
        let (kind, cancel) = (DiskKind::Context { ignore: None }, Cancel::default());
        let disk = Disk { root: root.as_fd(), kind, cancel: &cancel };
        let mut seen = sight::see(&disk, &selector).expect("listed").settled().0;
        complete_after(root.as_fd(), &mut seen, index, &cancel, &horizon).expect("read");
        assert!(seen.iter().all(|thing| !is_unread(&thing.node)));
        let content = |kind: &NodeKind| match kind {
            NodeKind::File { content, .. } => *content,
            _ => None,
        };
        let content = seen.iter().filter_map(|thing| Some((shown(&thing.path), content(&thing.node.kind)?)));
        content.collect()
    }

    /// Puts something into the index that no file holds, so that whoever believes it is caught.
    fn poisoned(&self) -> Index {
        let index = self.index();
        self.look(&index);
        for learned in index.lock().values_mut() {
            learned.known.content = poison();
        }
        index.save();
        self.index()
    }
}

fn poison() -> ContentDigest {
    ContentDigest::of(b"what no file holds")
}

#[test]
fn what_has_not_changed_is_not_read_again() {
    let scene = Scene::new(&["a = 1", "d/b = 2", "d-e = 3", "d/c/f = 4", "l -> a"]);
    let believed = scene.look(&scene.poisoned());
    assert_eq!(believed.len(), 4);
    assert!(believed.values().all(|content| *content == poison()), "{believed:?}");
}

#[test]
fn whatever_happens_to_a_file_it_is_read_again() {
    type Row<'a> = (&'a str, &'a dyn Fn(&Path));
    let rows: [Row<'_>; 9] = [
        ("written to", &|path| fs::write(path, "2").expect("written")),
        ("made longer", &|path| fs::write(path, "1 and more").expect("written")),
        ("replaced by one with the same time and size", &|path| {
            let new = path.with_file_name("new");
            fs::write(&new, "2").expect("written");
            let modified = fs::metadata(path).expect("there").modified().expect("has a time");
            File::options().write(true).open(&new).expect("opened").set_modified(modified).expect("set");
            fs::rename(&new, path).expect("renamed");
        }),
        ("written to and its time set back", &|path| {
            let file = File::options().write(true).open(path).expect("opened");
            let modified = file.metadata().expect("there").modified().expect("has a time");
            file.write_all_at(b"2", 0).expect("written");
            file.set_modified(modified).expect("set");
        }),
        ("written to by another name", &|path| {
            let other = path.with_file_name("other");
            fs::hard_link(path, &other).expect("linked");
            fs::write(&other, "2").expect("written");
        }),
        ("mode", &|path| fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("set")),
        ("made anew", &|path| {
            fs::remove_file(path).expect("removed");
            fs::write(path, "1").expect("written");
        }),
        ("touched", &|path| {
            let file = File::options().write(true).open(path).expect("opened");
            file.set_modified(SystemTime::UNIX_EPOCH).expect("set");
        }),
        ("moved and a link in its place", &|path| {
            fs::rename(path, path.with_file_name("moved")).expect("renamed");
            fs::hard_link(path.with_file_name("moved"), path).expect("linked");
        }),
    ];
    for (what, change) in rows {
        let scene = Scene::new(&["d/f = 1"]);
        let index = scene.poisoned();
        let path = scene.context.join("d/f");
        wait_for_the_clock(&path);
        change(&path);
        let expected = ContentDigest::of(&fs::read(&path).expect("readable"));
        assert_eq!(scene.look(&index)["d/f"], expected, "{what}");
    }
}

/// Makes other files until one has a later time than this one: the clock of the file system has ticked.
fn wait_for_the_clock(path: &Path) {
    let changed = |path: &Path| {
        let metadata = fs::metadata(path).expect("there");
        (metadata.ctime(), metadata.ctime_nsec())
    };
    let began = Instant::now();
    let probe = path.with_file_name("probe");
    loop {
        fs::write(&probe, "").expect("written");
        let ticked = changed(&probe) > changed(path);
        fs::remove_file(&probe).expect("removed");
        if ticked {
            return;
        }
        assert!(began.elapsed().as_secs() < 60, "the clock of the file system stands still");
    }
}

#[test]
fn what_was_just_written_is_known_to_this_build_only() {
    let scene = Scene::new(&["f = 1"]);
    let index = scene.index();
    let root = File::open(&scene.context).expect("opened");
    let horizon = || Horizon::of(&root).expect("asked");
    let first = scene.look_after(&index, horizon());
    assert!(!index.has_news(), "it may be written to again without another time");
    index.save();
    assert!(!scene.kept().exists());
    index.lock().values_mut().for_each(|learned| learned.known.content = poison());
    assert_eq!(scene.look_after(&index, horizon())["f"], poison(), "two looks of a build read it once");
    assert_eq!(scene.look(&scene.index()), first, "another build reads it");
}

#[test]
fn times_in_the_future_are_not_believed() {
    let scene = Scene::new(&["f = 1"]);
    let file = File::options().write(true).open(scene.context.join("f")).expect("opened");
    file.set_modified(SystemTime::now() + Duration::from_secs(86400)).expect("set");
    let index = scene.index();
    scene.look_after(&index, Horizon::of(File::open(&scene.context).expect("opened")).expect("asked"));
    assert!(!index.has_news());
}

#[test]
fn a_damaged_index_counts_as_none_and_is_replaced() {
    let scene = Scene::new(&["a = 1", "b = 2"]);
    let index = scene.index();
    let expected = scene.look(&index);
    index.save();
    let (path, sound) = (scene.kept(), fs::read(scene.kept()).expect("written"));
    assert_eq!(scene.index().old.count, 2);
    for bit in 0..sound.len() * 8 {
        let mut damaged = sound.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(Records::new(damaged).is_none(), "bit {bit}");
    }
    for length in 0..sound.len() {
        assert!(Records::new(sound[..length].to_vec()).is_none(), "{length} bytes");
    }
    fs::write(&path, "damaged").expect("written");
    let index = scene.index();
    assert_eq!(scene.look(&index), expected);
    index.save();
    assert_eq!(fs::read(&path).expect("readable"), sound);
}

#[test]
fn a_lie_with_a_right_digest_is_no_panic() {
    let sealed = |body: &[u8]| [MAGIC.as_slice(), blake3::hash(body).as_bytes(), body].concat();
    let entry = |path_end: u32, end: u32| {
        let mut entry = [0; ENTRY];
        entry[..4].copy_from_slice(&path_end.to_le_bytes());
        entry[4..8].copy_from_slice(&end.to_le_bytes());
        entry
    };
    for (count, entries, texts) in [
        (1_u64, vec![], 0),
        (u64::MAX, vec![], 0),
        (u64::MAX / ENTRY as u64, vec![entry(1, 1)], 1),
        (1, vec![entry(2, 1)], 1),
        (1, vec![entry(1, 2)], 1),
        (2, vec![entry(3, 3), entry(1, 4)], 4),
        (2, vec![entry(5, 5), entry(3, 3)], 3),
        (0, vec![], 1),
    ] {
        let body = [&count.to_le_bytes()[..], &entries.concat(), &vec![b'x'; texts]].concat();
        assert!(Records::new(sealed(&body)).is_none(), "{count} {texts}");
    }
    assert_eq!(Records::new(sealed(&0_u64.to_le_bytes())).map(|records| records.count), Some(0));
}

#[test]
fn what_nobody_asks_for_is_dropped_in_time() {
    let scene = Scene::new(&["gone = 1"]);
    let index = scene.index();
    scene.look(&index);
    index.save();
    fs::remove_file(scene.context.join("gone")).expect("removed");
    let mut left = Vec::new();
    for number in 0..=KEPT_UNUSED {
        fs::write(scene.context.join("new"), vec![b'x'; number.into()]).expect("written");
        let index = scene.index();
        left.push(index.old.count);
        scene.look(&index);
        index.save();
    }
    assert_eq!(left.last(), Some(&2));
    assert_eq!(scene.index().old.count, 1);
}

#[test]
fn capabilities_are_remembered() {
    let scene = Scene::new(&["f = 1"]);
    let index = scene.index();
    scene.look(&index);
    index.lock().values_mut().for_each(|learned| learned.known.capability = Some(vec![1, 2, 3]));
    let known = index.lock().values().next().expect("one").known.clone();
    index.save();
    let index = scene.index();
    assert_eq!(index.cursor().find(b"f", &known.state), Some(known));
}

#[test]
fn of_two_builds_at_once_the_last_one_stays() {
    let scene = Scene::new(&["a = 1", "b = 2", "c = 3"]);
    let index = scene.index();
    scene.look(&index);
    let learned = index.lock();
    let all = learned.iter().map(|(path, learned)| (path.clone(), learned.known.clone()));
    let all: Vec<_> = all.collect();
    std::thread::scope(|scope| {
        for known in 1..=3 {
            let (all, scene) = (&all, &scene);
            scope.spawn(move || {
                for _ in 0..50 {
                    let index = Index { old: Records::default(), ..scene.index() };
                    index.learn(all[..known].to_vec(), &Horizon::everything_settled());
                    index.save();
                    let found = fs::read(scene.kept()).ok().and_then(Records::new).expect("whole");
                    assert!((1..=3).contains(&found.count));
                    assert!((0..found.count).all(|at| found.get(at).known() == all[at].1));
                }
            });
        }
    });
}

#[test]
fn temporary_contexts_are_not_remembered() {
    let scene = Scene::new(&[]);
    let directory = scene.store.temp_dir("context").expect("made");
    assert!(Index::load(&scene.store, directory.path()).kept.is_none());
}
