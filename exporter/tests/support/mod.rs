//! What the tests of this crate share: trees described as text, and a store that holds them as the executor leaves them.
//!
//! A description has one entry a line; `#` begins a comment. Paths, targets, contents and values know `\n`, `\xHH` and
//! `{100*n}` for a hundred times the character n; blanks are written `\x20`.
//!
//! ```text
//! dir       PATH MODE UID:GID TIME
//! file      PATH MODE UID:GID TIME CONTENT
//! symlink   PATH MODE UID:GID TIME TARGET
//! hardlink  PATH MODE UID:GID TIME TARGET
//! char      PATH MODE UID:GID TIME MAJOR:MINOR     (block alike)
//! fifo      PATH MODE UID:GID TIME
//! whiteout  PATH
//! opaque    PATH
//! xattr     NAME VALUE                             (of the entry above)
//! ```
//!
//! TIME is `epoch`, `content` or Unix seconds.
#![allow(dead_code, clippy::unwrap_used)]

pub mod graph;

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex},
};

use exporter::{Encoder, SealOptions, Sealer, TimePolicy, Tools, UploadOptions, Uploads};
use oci::{
    ContentDigest, Entry, EntryKind, EntryTime, FileSource, Layer, LayerContents, MediaType, Metadata,
    Snapshot, Tree,
    fetch::Fetcher,
    registry::{Registry, RegistryOptions},
    store::Store,
};
use solver::{Cancel, Event};

/// A tree and the bytes of its files.
#[derive(Debug, Clone, Default)]
pub struct Described {
    pub tree: Tree,
    pub files: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Described {
    pub fn parse(text: &str) -> Self {
        let (mut entries, mut files) = (Vec::<Entry>::new(), BTreeMap::new());
        let lines = text.lines().map(|line| line.split('#').next().unwrap());
        for line in lines.filter(|line| !line.trim().is_empty()) {
            let words: Vec<_> = line.split_whitespace().collect();
            if let ["xattr", name, value] = words[..] {
                entries.last_mut().expect("an entry").metadata.xattrs.insert(bytes(name), bytes(value));
                continue;
            }
            let entry = entry(&words);
            if matches!(entry.kind, EntryKind::File { .. }) {
                files.insert(entry.path.clone(), words.get(5).map(|word| bytes(word)).unwrap_or_default());
            }
            entries.push(entry);
        }
        Self { tree: Tree::new(entries).expect("a valid tree"), files }
    }

    pub fn tar(&self, times: TimePolicy) -> Vec<u8> {
        let mut tar = Vec::new();
        exporter::write_tar(&self.tree, self, times, &mut tar).expect("written");
        tar
    }
}

impl FileSource for Described {
    fn open(&self, path: &[u8]) -> io::Result<Box<dyn Read + Send>> {
        let content = self.files.get(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new(io::Cursor::new(content.clone())))
    }
}

fn entry(words: &[&str]) -> Entry {
    let path = bytes(words[1]);
    let rest = words.get(5).map(|word| bytes(word)).unwrap_or_default();
    let numbers = || pair(words[5]);
    let kind = match words[0] {
        "whiteout" => EntryKind::Whiteout,
        "opaque" => EntryKind::Opaque,
        "dir" => EntryKind::Directory,
        "file" => EntryKind::File { size: rest.len() as u64, content: ContentDigest::of(&rest) },
        "symlink" => EntryKind::Symlink { target: rest },
        "hardlink" => EntryKind::HardLink { target: rest },
        "char" => EntryKind::CharDevice { major: numbers().0, minor: numbers().1 },
        "block" => EntryKind::BlockDevice { major: numbers().0, minor: numbers().1 },
        "fifo" => EntryKind::Fifo,
        other => panic!("unknown kind {other}"),
    };
    let metadata = match words.get(2..5) {
        None => Metadata::default(),
        Some(words) => Metadata {
            mode: u32::from_str_radix(words[0], 8).unwrap(),
            uid: pair(words[1]).0,
            gid: pair(words[1]).1,
            time: match words[2] {
                "epoch" => EntryTime::Epoch,
                "content" => EntryTime::Content,
                seconds => EntryTime::Kept(seconds.parse().unwrap()),
            },
            xattrs: BTreeMap::new(),
        },
    };
    Entry { path, kind, metadata }
}

fn pair(word: &str) -> (u32, u32) {
    let (first, second) = word.split_once(':').expect("two numbers");
    (first.parse().unwrap(), second.parse().unwrap())
}

fn bytes(word: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = word;
    while let Some(c) = rest.chars().next() {
        if let Some(after) = rest.strip_prefix("\\n") {
            out.push(b'\n');
            rest = after;
        } else if let Some(after) = rest.strip_prefix("\\x") {
            out.push(u8::from_str_radix(&after[..2], 16).unwrap());
            rest = &after[2..];
        } else if let Some((inside, after)) = rest.strip_prefix('{').and_then(|rest| rest.split_once('}')) {
            let (count, text) = inside.split_once('*').unwrap();
            out.extend(text.repeat(count.parse().unwrap()).bytes());
            rest = after;
        } else {
            out.extend(c.to_string().bytes());
            rest = &rest[c.len_utf8()..];
        }
    }
    out
}

/// A store as the executor leaves it, and what an export needs.
pub struct Workshop {
    pub directory: tempfile::TempDir,
    pub store: Arc<Store>,
    pub fetcher: Fetcher,
    pub events: Arc<Mutex<Vec<Event>>>,
    pub cancel: Arc<Cancel>,
    sink: Box<dyn Fn(Event) + Send + Sync>,
}

impl Workshop {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(&directory.path().join("store")).expect("a store"));
        let registry = Registry::new(RegistryOptions::default()).expect("a client");
        let fetcher = Fetcher::new(store.clone(), registry);
        let events = Arc::new(Mutex::new(Vec::new()));
        let seen = events.clone();
        let sink = Box::new(move |event| seen.lock().unwrap().push(event));
        Self { directory, store, fetcher, events, cancel: Arc::default(), sink }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn tools(&self) -> Tools<'_> {
        Tools { fetcher: &self.fetcher, events: &*self.sink, cancel: &self.cancel, helper: None }
    }

    /// Those of a build of which something runs.
    pub fn uploads(&self, names: &[oci::Reference]) -> Uploads {
        let uploads = self.waiting_uploads(names);
        uploads.begin();
        uploads
    }

    /// Those of a build of which nothing has run yet.
    pub fn waiting_uploads(&self, names: &[oci::Reference]) -> Uploads {
        let events = self.events.clone();
        let options = UploadOptions {
            registry: self.fetcher.registry().clone(),
            events: Arc::new(move |event| events.lock().unwrap().push(event)),
            cancel: Cancel::clone(&self.cancel),
            refused: Cancel::default(),
        };
        Uploads::new(options, names)
    }

    pub fn sealer(&self, encoder: Encoder, times: TimePolicy, jobs: usize) -> Sealer {
        self.sealer_of(None, encoder, times, jobs)
    }

    pub fn sealer_of(
        &self,
        contents: Option<Arc<dyn LayerContents>>,
        encoder: Encoder,
        times: TimePolicy,
        jobs: usize,
    ) -> Sealer {
        Sealer::new(self.seal_options(contents, encoder, times, jobs))
    }

    /// One that tells of what it has sealed.
    pub fn sealer_telling(
        &self,
        encoder: Encoder,
        times: TimePolicy,
        jobs: usize,
        on_sealed: exporter::seal::OnSealed,
    ) -> Sealer {
        Sealer::new(SealOptions { on_sealed, ..self.seal_options(None, encoder, times, jobs) })
    }

    /// One that makes base layers anew, and tells of what it has sealed.
    pub fn repacker(&self, encoder: Encoder, on_sealed: exporter::seal::OnSealed) -> Sealer {
        let options = self.seal_options(None, encoder, TimePolicy::Default, 2);
        Sealer::new(SealOptions { base: exporter::BaseLayers::Repacked, on_sealed, ..options })
    }

    fn seal_options(
        &self,
        contents: Option<Arc<dyn LayerContents>>,
        encoder: Encoder,
        times: TimePolicy,
        jobs: usize,
    ) -> SealOptions {
        let events = self.events.clone();
        SealOptions {
            base: exporter::BaseLayers::default(),
            store: self.store.clone(),
            encoder,
            times,
            courtesy: Default::default(),
            jobs,
            events: Arc::new(move |event| events.lock().unwrap().push(event)),
            cancel: self.cancel.clone(),
            contents,
            fetcher: self.fetcher.clone(),
            on_sealed: Arc::new(|_| ()),
        }
    }

    /// Puts a built layer on top of a snapshot: its tree into `trees`, its files into `snapshots`.
    pub fn step(&self, parent: &Snapshot, layer: &Described) -> Snapshot {
        let snapshot = self.step_without_files(parent, layer);
        let files = self.files_of(&snapshot);
        fs::create_dir_all(&files).unwrap();
        for (path, content) in &layer.files {
            let path = files.join(std::ffi::OsStr::from_bytes(path));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        snapshot
    }

    /// The same for a layer whose files nobody has written down.
    pub fn step_without_files(&self, parent: &Snapshot, layer: &Described) -> Snapshot {
        fs::write(self.store.area("trees").join(layer.tree.digest().hex()), layer.tree.to_bytes()).unwrap();
        parent.with(Layer::Built(layer.tree.digest()))
    }

    /// Where the files of a snapshot's topmost layer are.
    pub fn files_of(&self, snapshot: &Snapshot) -> PathBuf {
        self.store.area("snapshots").join(snapshot.digest().hex()).join("fs")
    }
}

/// The tar in a layer's blob.
pub fn unpacked(media_type: &MediaType, blob: &[u8]) -> Vec<u8> {
    let mut tar = Vec::new();
    match media_type {
        MediaType::OciLayer => tar.extend_from_slice(blob),
        MediaType::OciLayerGzip => {
            flate2::read::MultiGzDecoder::new(blob).read_to_end(&mut tar).expect("gzip");
        }
        MediaType::OciLayerZstd => tar = zstd::decode_all(blob).expect("zstd"),
        other => panic!("{other} is no type of ours"),
    }
    tar
}

/// Runs a program that judges what we write. Returns `None`, loudly, where it is not installed.
pub fn judge(command: &mut Command) -> Option<String> {
    let output = match command.output() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            eprintln!("SKIPPED: {} is not installed", command.get_program().display());
            return None;
        }
        output => output.unwrap(),
    };
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?} failed: {errors}");
    Some(String::from_utf8(output.stdout).expect("text"))
}

/// Compares with an expected file, or writes it when UPDATE_EXPECT is set.
pub fn expect(path: &Path, found: &str) {
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        fs::write(path, found).unwrap();
    }
    let expected = fs::read_to_string(path).unwrap_or_default();
    assert_eq!(found, expected, "{} differs; UPDATE_EXPECT=1 rewrites it", path.display());
}

/// The root of the workspace.
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}
