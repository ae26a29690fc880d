//! Which things of a store stand on which, and what nobody can need.
//!
//! An arrow goes from a thing to what it would be useless without: a record to the layers of its result, a layer's
//! directory to the one below and to its tree, a sealed record to its tree and its blobs. Things are removed against the
//! arrows only, so that whatever is left is whole. What a thing stands on was used when the thing was.
//!
//! Useless is what is damaged or lacks something, and layers and trees that nothing stands on: they are found through
//! records only. Nothing is written here, and nothing pinned: a look must keep nothing alive.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    time::SystemTime,
};

use oci::{
    BlobOrigin, Layer, Snapshot,
    store::{
        Store,
        checked::{self, CheckedError},
        sealed::{self, Hint, SealedRecord},
    },
};
use solver::{Record, key::pre_image};

use super::{Kind, Thing, name_of};
use crate::{cache, cache_mounts, remote, snapshot::Meta};

/// Who stands on what, by index into the list of things.
#[derive(Debug)]
pub(super) struct Relations {
    /// What each thing stands on.
    pub(super) needs: Vec<Vec<usize>>,
    /// What is of no use to anybody, whatever stands on it.
    pub(super) useless: Vec<bool>,
    /// What is of no use once nothing stands on it.
    pub(super) wants_users: Vec<bool>,
}

impl Relations {
    /// Looks into the things. They learn what they belong to, and count as used when what stands on them was.
    pub(super) fn find(store: &Store, things: &mut [Thing]) -> Self {
        let by_path = things.iter().enumerate().map(|(at, thing)| (thing.path.clone(), at)).collect();
        let useless = vec![false; things.len()];
        let mut look = Look { root: store.root(), by_path, words: vec![None; things.len()], useless };
        let mut relations = Self {
            needs: vec![Vec::new(); things.len()],
            useless: vec![false; things.len()],
            wants_users: vec![false; things.len()],
        };
        // What a thing stands on must be known to be good: the survey has listed it after the thing.
        for at in (0..things.len()).rev() {
            let found = look.at(&things[at], at);
            relations.wants_users[at] = found.wants_users;
            look.useless[at] = found.needs.is_none();
            relations.needs[at] = found.needs.unwrap_or_default();
        }
        // A blob belongs to what its sealed record does.
        for (at, thing) in things.iter().enumerate() {
            if thing.path.starts_with("sealed") {
                let words = look.words[at].clone();
                relations.needs[at].iter().for_each(|need| look.tell(*need, words.clone()));
            }
        }
        relations.useless = look.useless;
        for (thing, words) in things.iter_mut().zip(look.words) {
            thing.what = words;
        }
        relations.pass_on_uses(things);
        relations
    }

    /// How many things stand on each.
    pub(super) fn users(&self) -> Vec<usize> {
        let mut users = vec![0; self.needs.len()];
        self.needs.iter().flatten().for_each(|need| users[*need] += 1);
        users
    }

    /// What a thing stands on was used when it was.
    fn pass_on_uses(&self, things: &mut [Thing]) {
        let mut users = self.users();
        let mut ready: Vec<usize> = (0..things.len()).filter(|at| users[*at] == 0).collect();
        while let Some(at) = ready.pop() {
            let used = things[at].used;
            for need in &self.needs[at] {
                // What is useless does not make anything else used.
                if !self.useless[at] {
                    things[*need].used = things[*need].used.max(used);
                }
                users[*need] -= 1;
                if users[*need] == 0 {
                    ready.push(*need);
                }
            }
        }
    }
}

/// What a look at a thing has told.
#[derive(Default)]
struct Found {
    /// What it stands on; `None` where it is useless.
    needs: Option<Vec<usize>>,
    wants_users: bool,
}

impl Found {
    fn standing_on(needs: Vec<usize>) -> Self {
        Self { needs: Some(needs), wants_users: false }
    }

    fn if_used(needs: Vec<usize>) -> Self {
        Self { needs: Some(needs), wants_users: true }
    }

    fn useless() -> Self {
        Self::default()
    }
}

struct Look<'a> {
    root: &'a Path,
    by_path: HashMap<PathBuf, usize>,
    words: Vec<Option<String>>,
    /// What has turned out to be of no use.
    useless: Vec<bool>,
}

impl Look<'_> {
    fn at(&mut self, thing: &Thing, at: usize) -> Found {
        let name = name_of(&thing.path);
        let area = thing.path.parent().and_then(Path::to_str).unwrap_or_default();
        match area {
            "blobs/sha256" if is_digest(name) => Found::standing_on(Vec::new()),
            "trees" if is_digest(name) => Found::if_used(Vec::new()),
            "snapshots" if is_digest(name) => self.snapshot(thing),
            "sealed" if is_digest(name) => self.sealed(thing),
            "records/definition" | "records/content" => self.record(thing, at),
            "seeds" => self.seed(thing),
            "downloads/records" => self.download(thing),
            "downloads/files" if is_digest(name) => {
                self.words[at] = first_name(&self.root.join(&thing.path));
                Found::if_used(Vec::new())
            }
            "git/remotes" => self.repository(thing),
            "locks" => Found::if_used(Vec::new()),
            "blobs/sha256" | "trees" | "snapshots" | "sealed" | "downloads/files" => Found::useless(),
            _ if thing.kind == Kind::CacheMounts => self.cache_mount(thing, at),
            _ => Found::standing_on(Vec::new()),
        }
    }

    fn find(&self, path: impl AsRef<Path>) -> Option<usize> {
        self.by_path.get(path.as_ref()).copied().filter(|at| !self.useless[*at])
    }

    fn snapshot(&mut self, thing: &Thing) -> Found {
        if name_of(&thing.path) == Snapshot::default().digest().hex() {
            // That of `scratch`: an empty directory and nothing beside it.
            return Found::standing_on(Vec::new());
        }
        let meta = match Meta::read(&self.root.join(&thing.path)) {
            Ok(Some(meta)) => meta,
            Ok(None) => return Found::useless(),
            Err(error) => return unreadable(&error),
        };
        let below = meta.parent.and_then(|parent| self.find(Path::new("snapshots").join(parent.hex())));
        let tree = self.find(Path::new("trees").join(meta.layer.hex()));
        let needs = below.into_iter().chain(tree).collect();
        match thing.kind {
            Kind::BuiltLayers => Found::if_used(needs),
            _ => Found::standing_on(needs),
        }
    }

    fn sealed(&self, thing: &Thing) -> Found {
        let tree = self.find(Path::new("trees").join(name_of(&thing.path)));
        let (mut needs, mut blobs) = (Vec::from_iter(tree), 0);
        let directory = self.root.join(&thing.path);
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            // Only that of a base layer stands for itself.
            if tree.is_none() && !sealed::is_of_base(&entry.path()) {
                continue;
            }
            let record = checked::read::<SealedRecord>(&entry.path(), sealed::VERSION).ok().flatten();
            let digest = record.map(|record| record.descriptor.digest.hex());
            let blob = digest.and_then(|digest| self.find(Path::new("blobs/sha256").join(digest)));
            blobs += usize::from(blob.is_some());
            needs.extend(blob);
        }
        if blobs == 0 { Found::useless() } else { Found::standing_on(needs) }
    }

    fn record(&mut self, thing: &Thing, at: usize) -> Found {
        let record = match cache::read_file(&self.root.join(&thing.path)) {
            Ok(Some(record)) => record,
            Ok(None) => return Found::useless(),
            Err(error) => return unreadable(&error),
        };
        let instruction = record.pre_image.get(pre_image::INSTRUCTION).cloned();
        self.tell(at, instruction.clone());
        let mut needs = self.inventories(&record);
        let depth = record.snapshot.layers.len();
        for (number, (chain, layer)) in record.snapshot.chain().enumerate() {
            // Only the topmost layer is what this instruction made.
            let words = instruction.clone().filter(|_| number + 1 == depth);
            match self.layer(&chain.hex(), layer, words) {
                Some(found) => needs.extend(found),
                None => return Found::useless(),
            }
        }
        Found::standing_on(needs)
    }

    /// What holds a layer on top of a chain; `None` where nothing does, though nobody else has it.
    fn layer(&mut self, chain: &str, layer: &Layer, words: Option<String>) -> Option<Vec<usize>> {
        let snapshots = Path::new("snapshots");
        let own = self.find(snapshots.join(chain));
        let tree = match layer {
            Layer::Base(base) => {
                let words = Some(origin(&base.origin));
                let blob = self.find(Path::new("blobs/sha256").join(base.descriptor.digest.hex()));
                own.into_iter().chain(blob).for_each(|at| self.tell(at, words.clone()));
                return Some(own.into_iter().collect());
            }
            Layer::Built(tree) => tree.hex(),
        };
        let alone = || self.find(snapshots.join(Snapshot::digest_of_one(layer).hex()));
        let sealed = self.find(Path::new("sealed").join(&tree));
        let files = own.or_else(alone);
        let tree = self.find(Path::new("trees").join(&tree))?;
        for at in [Some(tree), files, sealed].into_iter().flatten() {
            self.tell(at, words.clone());
        }
        Some(vec![tree, files.or(sealed)?])
    }

    /// The inventories of what a step read; they may be missing.
    fn inventories(&self, record: &Record) -> Vec<usize> {
        let files = record.pre_image.iter().filter(|(field, _)| field.starts_with(pre_image::FILES));
        let name = |value: &String| value.rsplit(':').next().map(|hex| Path::new("inventories").join(hex));
        files.filter_map(|(_, value)| self.find(name(value)?)).collect()
    }

    /// A hint to a sealed layer.
    fn seed(&self, thing: &Thing) -> Found {
        let sealed = Hint::read(&self.root.join(&thing.path))
            .and_then(|hint| self.find(Path::new("sealed").join(hint.tree.hex())));
        sealed.map_or_else(Found::useless, |sealed| Found::standing_on(vec![sealed]))
    }

    fn download(&mut self, thing: &Thing) -> Found {
        let place = remote::place_of(&self.root.join(&thing.path));
        let file = place.and_then(|place| self.find(Path::new("downloads/files").join(place)));
        file.map_or_else(Found::useless, |file| Found::standing_on(vec![file]))
    }

    /// A repository and its lock, which is of no use without it.
    fn repository(&mut self, thing: &Thing) -> Found {
        let name = name_of(&thing.path);
        match name.ends_with(".lock") {
            true => Found::if_used(Vec::new()),
            false => {
                let lock = self.find(thing.path.with_file_name(format!("{name}.lock")));
                Found::standing_on(lock.into_iter().collect())
            }
        }
    }

    fn cache_mount(&mut self, thing: &Thing, at: usize) -> Found {
        let directory = self.root.join(&thing.path);
        let id = thing.path.ancestors().nth(2).map(|id| self.root.join(id).join("id"));
        let id = id.and_then(|id| std::fs::read_to_string(id).ok());
        // It is NAMESPACE/ID, and hardly anybody has a namespace.
        self.words[at] = id.map(|id| id.strip_prefix('/').unwrap_or(&id).to_owned());
        match cache_mounts::is_retired(&directory) {
            true => Found::useless(),
            false => Found::standing_on(Vec::new()),
        }
    }

    fn tell(&mut self, at: usize, words: Option<String>) {
        if self.words[at].is_none() {
            self.words[at] = words;
        }
    }
}

/// A damaged file is useless, and so is one of another version; one that cannot be read now is not looked into.
fn unreadable(error: &CheckedError) -> Found {
    match error.is_damage() || matches!(error, CheckedError::Version { .. }) {
        true => Found::useless(),
        false => Found::standing_on(Vec::new()),
    }
}

fn is_digest(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn first_name(directory: &Path) -> Option<String> {
    let entry = std::fs::read_dir(directory).ok()?.next()?.ok()?;
    Some(entry.file_name().to_string_lossy().into_owned())
}

fn origin(origin: &BlobOrigin) -> String {
    match origin {
        BlobOrigin::Registry(reference) => reference.familiar(),
        BlobOrigin::OciLayout(directory) => format!("oci-layout://{}", directory.display()),
    }
}

/// Whether something was used within this time.
pub(super) fn is_recent(used: SystemTime, within: std::time::Duration) -> bool {
    // A clock that went back makes everything recent, which costs room and nothing else.
    !within.is_zero() && used.elapsed().is_ok_and(|age| age < within)
}
