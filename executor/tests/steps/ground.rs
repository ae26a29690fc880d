//! A store, base layers in an OCI layout, a context, and short ways to run a step and see what it made.

use std::{
    collections::BTreeMap,
    ffi::CString,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::SystemTime,
};

use executor::{
    ContextOrigin, ExecutorOptions, LocalExecutor, Secrets,
    context::{ContextDirectory, ContextModes},
    sandbox::{Files, Footing, Processes, Rung},
};
use oci::{
    BaseLayer, BlobOrigin, Descriptor, Entry, EntryKind, EntryTime, Layer, MediaType, Platform, Sha256Digest,
    Snapshot, Tree,
    fetch::Fetcher,
    registry::{Registry, RegistryOptions},
    store::Store,
};
use rustix::{
    fs::OFlags,
    mount::{MountFlags, UnmountFlags},
};
use solver::{
    Cancel, Event, Executor, Input, Op, Step, StepFailure, Stream, Vertex, VertexId,
    op::{ContextSource, Copy, CopyItem, Exec, Mount, Place, Relaxations, Selector, Source},
};
use tempfile::TempDir;

/// What the sandbox would have a person know.
pub const NOTE: &str = "a note of the sandbox";

/// The world of one test.
pub struct Ground {
    /// Whose ids the builder has.
    pub rung: Rung,
    /// Executes steps.
    pub executor: LocalExecutor,
    /// What was said.
    pub events: Arc<Mutex<Vec<Event>>>,
    busybox: PathBuf,
    store: Arc<Store>,
    context: TempDir,
    layout: TempDir,
    root: Arc<TempDir>,
}

/// Who takes the output of a step, and says when it is to stop.
pub type Watch<'a> = (&'a (dyn Fn(Stream, &[u8]) + Sync), &'a Cancel);

/// Whether a step may come from a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UseCache {
    /// It may.
    Yes,
    /// `--no-cache`.
    No,
}

/// An entry of a base layer: path, kind, mode, owner and time.
pub struct Base<'a> {
    /// Path in the archive; a slash at the end makes a directory.
    pub path: &'a str,
    /// Content of a file.
    pub content: &'a [u8],
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub owner: (u64, u64),
    /// Modification time.
    pub time: u64,
}

/// A root-owned file of 2001.
pub const FILE: Base<'static> =
    Base { path: "", content: b"", mode: 0o644, owner: (0, 0), time: 1_000_000_000 };

impl Ground {
    /// A new store and an empty context.
    pub fn new(rung: Rung, busybox: &Path) -> Self {
        Self::in_store(rung, busybox, Arc::new(tempfile::tempdir().unwrap()))
    }

    /// Another one, whose store is on a disk of so many bytes.
    pub fn with_small_disk(&self, size: usize) -> Self {
        let root = tempfile::tempdir().unwrap();
        let size = CString::new(format!("size={size},mode=755")).unwrap();
        rustix::mount::mount("tmpfs", root.path(), "tmpfs", MountFlags::empty(), size.as_c_str()).unwrap();
        Self::in_store(self.rung, &self.busybox, Arc::new(root))
    }

    /// Takes the small disk away, so that its directory can go.
    pub fn detach_disk(self) {
        rustix::mount::unmount(self.root.path(), UnmountFlags::DETACH).unwrap();
    }

    fn in_store(rung: Rung, busybox: &Path, root: Arc<TempDir>) -> Self {
        let [context, layout] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        fs::create_dir_all(layout.path().join("blobs/sha256")).unwrap();
        let store = Arc::new(Store::open(root.path()).unwrap());
        let events = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&events);
        let directory =
            ContextDirectory::new(context.path().to_owned(), None, ContextModes::Normalise).unwrap();
        let executor = LocalExecutor::new(ExecutorOptions {
            retry: Default::default(),
            notes_reads: false,
            limits: Default::default(),
            dns: Default::default(),
            failed_steps: None,
            job_server: None,
            fetcher: Fetcher::new(Arc::clone(&store), Registry::new(RegistryOptions::default()).unwrap()),
            contexts: BTreeMap::from([(String::new(), ContextOrigin::Directory(directory))]),
            secrets: Secrets::default(),
            agents: Default::default(),
            footing: Footing {
                rung,
                processes: Processes::Own,
                files: Files::Merged,
                relaxed: Relaxations::default(),
            },
            notes: vec![NOTE.to_owned()],
            events: Arc::new(move |event| sink.lock().unwrap().push(event)),
            cancel: Arc::default(),
            virtual_steps: Default::default(),
            looking_steps: Default::default(),
        });
        Self { rung, executor, events, busybox: busybox.to_owned(), store, context, layout, root }
    }

    /// Puts a file into the context.
    pub fn put(&self, path: &str, content: &str) {
        let path = self.context.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    /// Gives a file of the context a time.
    pub fn touch(&self, path: &str, time: SystemTime) {
        let file = fs::File::options().write(true).open(self.context.path().join(path)).unwrap();
        file.set_modified(time).unwrap();
    }

    /// Another build with the same store.
    pub fn in_same_store(&self) -> Self {
        Self::in_store(self.rung, &self.busybox, Arc::clone(&self.root))
    }

    /// A layer that brings busybox and its names.
    pub fn shell(&self) -> Layer {
        let busybox = fs::read(&self.busybox).unwrap();
        let links = ["cat", "chmod", "echo", "ln", "ls", "mkdir", "mv", "rm", "sh", "stat", "touch"];
        let mut archive = tar::Builder::new(Vec::new());
        append(&mut archive, &Base { path: "bin/", mode: 0o755, ..FILE });
        append(&mut archive, &Base { path: "bin/busybox", content: &busybox, mode: 0o755, ..FILE });
        for name in links {
            let mut header = header(&FILE, tar::EntryType::Symlink);
            archive.append_link(&mut header, format!("bin/{name}"), "busybox").unwrap();
        }
        self.layer(archive)
    }

    /// A layer of files and directories.
    pub fn files(&self, entries: &[Base<'_>]) -> Layer {
        let mut archive = tar::Builder::new(Vec::new());
        entries.iter().for_each(|entry| append(&mut archive, entry));
        self.layer(archive)
    }

    /// A layer of an archive.
    pub fn layer(&self, archive: tar::Builder<Vec<u8>>) -> Layer {
        let blob = archive.into_inner().unwrap();
        let descriptor = Descriptor::of(MediaType::OciLayer, &blob);
        fs::write(self.layout.path().join("blobs/sha256").join(descriptor.digest.hex()), &blob).unwrap();
        let origin = BlobOrigin::OciLayout(self.layout.path().to_owned());
        Layer::Base(Box::new(BaseLayer { diff_id: Sha256Digest::of(&blob).into(), descriptor, origin }))
    }

    /// `RUN` of a shell command.
    pub fn run(&self, parent: &Snapshot, command: &str) -> Result<Snapshot, StepFailure> {
        let exec = shell_command(command);
        self.execute(Op::Exec(exec), parent, &[])
    }

    /// `RUN --mount=...` of a shell command; a mount's input 1 is the first of `inputs`.
    pub fn run_mounted(
        &self,
        parent: &Snapshot,
        command: &str,
        mounts: &[Mount],
        inputs: &[&Snapshot],
    ) -> Result<Snapshot, StepFailure> {
        let told = |stream, line: &[u8]| println!("    {stream:?} {}", String::from_utf8_lossy(line));
        self.run_watched(parent, command, mounts, inputs, UseCache::Yes, (&told, &Cancel::default()))
    }

    /// The same, watched, and perhaps with `--no-cache`.
    pub fn run_watched(
        &self,
        parent: &Snapshot,
        command: &str,
        mounts: &[Mount],
        inputs: &[&Snapshot],
        use_cache: UseCache,
        (log, cancel): Watch<'_>,
    ) -> Result<Snapshot, StepFailure> {
        let exec = Exec { mounts: mounts.to_vec(), ..shell_command(command) };
        let vertex = Vertex { use_cache: use_cache == UseCache::Yes, ..vertex(Op::Exec(exec)) };
        let source = self::vertex(Op::Source(Source::Scratch));
        let input = |snapshot| Input { vertex: &source, snapshot, identity: None };
        let inputs = std::iter::once(parent).chain(inputs.iter().copied()).map(input).collect();
        let step = Step { id: VertexId(0), vertex: &vertex, inputs, log, cancel };
        Ok(parent.with(self.executor.execute(step)?.layer))
    }

    /// `COPY --chown=OWNER SOURCE DESTINATION` from the context.
    pub fn copy(
        &self,
        parent: &Snapshot,
        source: &str,
        to: &str,
        chown: Option<&str>,
    ) -> Result<Snapshot, StepFailure> {
        let selector = Selector { include: vec![source.to_owned()], ..Selector::default() };
        let context = Source::Context(ContextSource {
            place: Place::Context(String::new()),
            selector: selector.clone(),
        });
        let identity = self.executor.identify(&context, &Cancel::default())?;
        let (vertex, empty) = (vertex(Op::Source(context)), Snapshot::default());
        let input = Input { vertex: &vertex, snapshot: &empty, identity: Some(identity) };
        self.execute(copy(selector, to, chown), parent, &[input])
    }

    /// `COPY --from` another file system.
    pub fn copy_from(
        &self,
        parent: &Snapshot,
        from: &Snapshot,
        source: &str,
        to: &str,
    ) -> Result<Snapshot, StepFailure> {
        let selector = Selector { include: vec![source.to_owned()], ..Selector::default() };
        let vertex = vertex(Op::Source(Source::Scratch));
        let input = Input { vertex: &vertex, snapshot: from, identity: None };
        // What is keyed must at least be there.
        self.executor.select(from, &selector, &Cancel::default())?;
        self.execute(copy(selector, to, None), parent, &[input])
    }

    /// `COPY --link`: the last layer of `copied` on top of another file system.
    pub fn merge(&self, parent: &Snapshot, copied: &Snapshot) -> Result<Snapshot, StepFailure> {
        let vertex = vertex(Op::Source(Source::Scratch));
        let input = Input { vertex: &vertex, snapshot: copied, identity: None };
        self.execute(Op::Merge, parent, &[input])
    }

    /// A base layer that can be had from nowhere.
    pub fn absent(&self) -> Layer {
        let layer = self.files(&[Base { path: "absent", ..FILE }]);
        let Layer::Base(base) = &layer else { unreachable!("it comes from a layout") };
        fs::remove_file(self.layout.path().join("blobs/sha256").join(base.descriptor.digest.hex())).unwrap();
        layer
    }

    /// The text of a file.
    pub fn text(&self, snapshot: &Snapshot, path: &str) -> String {
        let view = self.executor.snapshots().view(snapshot).unwrap();
        let file = view.open(path.as_bytes(), OFlags::RDONLY).unwrap();
        std::io::read_to_string(fs::File::from(file)).unwrap()
    }

    /// Any step.
    pub fn execute(&self, op: Op, parent: &Snapshot, others: &[Input<'_>]) -> Result<Snapshot, StepFailure> {
        let (vertex, below) = (vertex(op), vertex(Op::Source(Source::Scratch)));
        let mut inputs = vec![Input { vertex: &below, snapshot: parent, identity: None }];
        inputs.extend(others);
        let log = |stream: Stream, line: &[u8]| println!("    {stream:?} {}", String::from_utf8_lossy(line));
        let step = Step { id: VertexId(0), vertex: &vertex, inputs, log: &log, cancel: &Cancel::default() };
        Ok(parent.with(self.executor.execute(step)?.layer))
    }

    /// The tree of a snapshot's topmost layer, a line an entry: path, kind, mode, owner, time.
    pub fn tree(&self, snapshot: &Snapshot) -> Vec<String> {
        let Some(Layer::Built(digest)) = snapshot.layers.last() else { panic!("no step made this") };
        if snapshot.layers.last().unwrap().is_empty() {
            return Vec::new();
        }
        let bytes = fs::read(self.store.root().join("trees").join(digest.hex())).unwrap();
        Tree::from_bytes(&bytes).unwrap().entries().iter().map(shown).collect()
    }

    /// What is left in the store's temporaries beside the lock.
    pub fn temporaries(&self) -> usize {
        let runs = fs::read_dir(self.store.root().join("tmp")).unwrap();
        // Beside them lie the lock of the process and its pins.
        let is_left = |entry: &std::io::Result<fs::DirEntry>| entry.as_ref().unwrap().path().is_dir();
        runs.map(|run| fs::read_dir(run.unwrap().path()).unwrap().filter(is_left).count()).sum()
    }

    /// The warnings so far.
    pub fn warnings(&self) -> Vec<String> {
        let events = self.events.lock().unwrap();
        let warning = |event: &Event| match event {
            Event::Warning(text) => Some(text.clone()),
            _ => None,
        };
        events.iter().filter_map(warning).collect()
    }
}

fn shell_command(command: &str) -> Exec {
    Exec { env: vec![("PATH".to_owned(), "/bin".to_owned())], ..Exec::new(["/bin/sh", "-c", command]) }
}

fn vertex(op: Op) -> Vertex {
    let (inputs, ambient_env) = (Vec::new(), Vec::new());
    Vertex {
        op,
        inputs,
        platform: Platform::host(),
        label: String::new(),
        span: None,
        ambient_env,
        use_cache: true,
        written: Default::default(),
    }
}

fn copy(selector: Selector, to: &str, chown: Option<&str>) -> Op {
    Op::Copy(Copy {
        items: vec![CopyItem { input: 1, selector, unpack: false }],
        destination: to.to_owned(),
        into_directory: to.ends_with('/'),
        chown: chown.map(str::to_owned),
        chmod: None,
        timestamps: Default::default(),
    })
}

fn append(archive: &mut tar::Builder<Vec<u8>>, entry: &Base<'_>) {
    let kind = if entry.path.ends_with('/') { tar::EntryType::Directory } else { tar::EntryType::Regular };
    archive.append_data(&mut header(entry, kind), entry.path, entry.content).unwrap();
}

fn header(entry: &Base<'_>, kind: tar::EntryType) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(entry.mode);
    header.set_uid(entry.owner.0);
    header.set_gid(entry.owner.1);
    header.set_mtime(entry.time);
    header.set_size(entry.content.len() as u64);
    header
}

fn shown(entry: &Entry) -> String {
    let kind = match &entry.kind {
        EntryKind::Whiteout => return format!("{} gone", String::from_utf8_lossy(&entry.path)),
        EntryKind::Directory => "directory".to_owned(),
        EntryKind::File { size, .. } => format!("file {size}"),
        other => format!("{other:?}"),
    };
    let time = match entry.metadata.time {
        EntryTime::Epoch => "epoch".to_owned(),
        EntryTime::Content => "content".to_owned(),
        EntryTime::Kept(seconds) => seconds.to_string(),
    };
    let oci::Metadata { mode, uid, gid, .. } = &entry.metadata;
    format!("{} {kind} {mode:o} {uid}:{gid} {time}", String::from_utf8_lossy(&entry.path))
}

/// A busybox that needs no libraries.
pub fn static_busybox() -> Option<PathBuf> {
    let is_static = |path: &PathBuf| {
        // The name of the dynamic loader stands in the first page of every dynamic program.
        fs::read(path)
            .is_ok_and(|bytes| !bytes[..4096.min(bytes.len())].windows(8).any(|word| word == b"/ld-linu"))
    };
    ["/bin/busybox", "/usr/bin/busybox"].map(PathBuf::from).into_iter().find(is_static)
}
