//! `testdata/key/CASE`: pairs of builds, and whether one key may stand for both. `docs/keys.md` has a row for each.
//!
//! A case holds `case` (a line `changes` or `same`, a line that says what differs, and `needs root` where only root can
//! make it), and what the two builds are made of: `Dockerfile`, `context/`, `options` (flags, one a line), `env` (variables
//! of the builder, one a line), `setup` (a shell script run in the copied context), `place` (where the context lies). What is in
//! `a/` or `b/` is of one of the two, what is beside them of both. With `stage`, which holds a path, the context is
//! the file system of a stage instead, and the key that of what COPY --from takes from there.
//!
//! Keys are those of a whole build: real flags, plan and identities of files, and images that are made up. `expected` says
//! how the change is explained; `UPDATE_EXPECT=1` writes it anew.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fs, io,
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use executor::{
    LocalExecutor,
    sandbox::{Files, Footing, Processes, Rung},
};
use oci::{
    BaseLayer, BlobOrigin, Descriptor, DiffId, ImageConfig, MediaType, Platform, Sha256Digest, TreeDigest,
};
use solver::{
    BaseImage, Cancel, Executor, Graph, ImageName, Miss, Op, Resolver, StepFailure, VertexId,
    explain::{Fate, Known, Origin, Project, Reason, Step},
    key::{self, Reading},
    op::Relaxations,
    op::{Selector, Source},
};

use crate::{
    args,
    build::{self, Surroundings},
    caches::RemoteCaches,
    history::BuildId,
    inputs::{self, Outside},
    request::{self, Environment},
};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("cli lies in the workspace").to_owned()
}

/// Images of one layer each. `base`, `alias` and `settings` have the same one.
struct Images;

impl Resolver for Images {
    fn image(&self, image: &ImageName, platform: &Platform) -> Result<BaseImage, StepFailure> {
        let name = match image {
            ImageName::Registry(reference) => reference.familiar(),
            ImageName::OciLayout { directory, .. } => panic!("no layout: {}", directory.display()),
        };
        let name = name.trim_end_matches(":latest");
        let content = if matches!(name, "alias" | "settings") { "base" } else { name };
        let layer = BaseLayer {
            diff_id: DiffId::from(Sha256Digest::of(content.as_bytes())),
            descriptor: Descriptor::new(MediaType::OciLayerGzip, Sha256Digest::of(name.as_bytes()), 1),
            origin: BlobOrigin::OciLayout(name.into()),
        };
        let mut config = ImageConfig::empty(platform);
        config.config.env = vec!["PATH=/bin".to_owned()];
        if name == "settings" {
            config.config.env.push("SET=1".to_owned());
        }
        Ok(BaseImage { pinned: format!("{name}@pinned"), config, layers: vec![layer] })
    }
}

/// One of the two builds of a case, made of what both share and of its own.
struct Side {
    case: PathBuf,
    name: &'static str,
    ground: tempfile::TempDir,
}

impl Side {
    fn new(case: &Path, name: &'static str) -> Self {
        let side = Self { case: case.to_owned(), name, ground: tempfile::tempdir().expect("a directory") };
        let context = side.context();
        fs::create_dir_all(&context).expect("made");
        for from in [case.to_owned(), case.join(name)] {
            copy(&from.join("context"), &context);
            if let Ok(script) = fs::read_to_string(from.join("setup")) {
                let done = Command::new("sh").args(["-euc", &script]).current_dir(&context).status();
                assert!(done.expect("a shell").success(), "{}: setup", case.display());
            }
        }
        if let Some(dockerfile) = side.file("Dockerfile") {
            fs::write(context.join("Dockerfile"), dockerfile).expect("written");
        }
        side
    }

    /// Its own file of that name, or the one that both share.
    fn file(&self, name: &str) -> Option<String> {
        let own = fs::read_to_string(self.case.join(self.name).join(name));
        own.or_else(|_| fs::read_to_string(self.case.join(name))).ok()
    }

    fn context(&self) -> PathBuf {
        let place = self.file("place").unwrap_or_else(|| "context".to_owned());
        self.ground.path().join(place.trim())
    }

    /// Digest of what is taken of a stage.
    fn picked(&self, path: &str) -> TreeDigest {
        let root = fs::File::open(self.context()).expect("opened");
        let selector = Selector::of_path(path.trim());
        executor::copy::select(root.as_fd(), &BTreeMap::new(), &selector, &Cancel::default()).expect("listed")
    }

    /// The steps of its build, with keys and pre-images, and the inventories of its files.
    fn planned(&self) -> Planned {
        let request = self.request();
        let (cancel, events) = (Arc::new(Cancel::default()), Arc::new(|_| {}) as build::Events);
        let outside = Outside::new(request.outside(), events.clone(), cancel.clone());
        let inputs = inputs::load(&request.places, &outside, &mut io::empty()).expect("loaded");
        let parsed = parser::parse(inputs.dockerfile.text());
        let dockerfile = parsed.dockerfile.unwrap_or_else(|| panic!("{:?}", parsed.diagnostics));
        let options = build::plan_options(&request, &inputs, Vec::new());
        let graph = solver::plan::plan(&dockerfile, &options, &Images).expect("planned").graph;
        let caches = RemoteCaches::open(&request, &outside, &events, &cancel).expect("opened");
        let surroundings = Surroundings {
            id: BuildId::now(),
            began: std::time::SystemTime::now(),
            footing: Footing {
                rung: Rung::Root,
                processes: Processes::Own,
                files: Files::Merged,
                relaxed: Relaxations::default(),
            },
            notes: Vec::new(),
            group: None,
            helper: None,
            caches,
            events,
            cancel,
            failed_steps: None,
        };
        let fetcher = outside.fetcher().expect("a store");
        let options =
            build::executor_options(&request, &inputs, &graph, fetcher, &surroundings).expect("options");
        Planned::of(graph, LocalExecutor::new(options), &request.root)
    }

    fn request(&self) -> request::BuildRequest {
        let at = self.ground.path().display().to_string();
        let lines = |text: Option<String>| -> Vec<String> {
            text.unwrap_or_default().lines().map(|line| line.replace('@', &at)).collect()
        };
        let options = lines(self.file("options"));
        let mut argv: Vec<&str> = vec!["layerwright", "build"];
        argv.extend(options.iter().flat_map(|line| line.split_whitespace()));
        let (context, store) = (self.context(), format!("{at}/store"));
        argv.push(context.to_str().expect("text"));
        if !argv.contains(&"--root") {
            argv.extend(["--root", &store]);
        }
        let Ok(args::Command::Build(args)) = args::parse(&argv).map(|cli| cli.command) else {
            panic!("{argv:?}")
        };
        let variable = |line: String| {
            let (name, value) = line.split_once('=').expect("NAME=VALUE");
            (OsString::from(name), OsString::from(value))
        };
        let variables = lines(self.file("env")).into_iter().map(variable).collect();
        request::read(
            *args,
            &Environment { variables, stderr_is_terminal: false, stdin_is_terminal: false, is_root: false },
        )
        .expect("a request")
    }
}

/// With the modes that git knows, whatever the umask of the checkout was.
fn copy(from: &Path, to: &Path) {
    if from.is_dir() {
        let done = Command::new("cp").arg("-a").arg(from.join(".")).arg(to).status();
        assert!(done.expect("cp").success());
        let done = Command::new("chmod").args(["-R", "u=rwX,go=rX"]).arg(to).status();
        assert!(done.expect("chmod").success());
    }
}

/// What is known of a build before anything runs.
struct Planned {
    target: TreeDigest,
    steps: Vec<(String, Miss)>,
    inventories: BTreeMap<TreeDigest, solver::explain::Inventory>,
}

impl Planned {
    fn of(graph: Graph, executor: LocalExecutor, store: &Path) -> Self {
        let mut keys: BTreeMap<VertexId, TreeDigest> = BTreeMap::new();
        let mut steps = Vec::new();
        for (id, vertex) in graph.vertices() {
            if let Op::Source(source) = &vertex.op {
                let is_files = matches!(source, Source::Context(_) | Source::Inline(_));
                let identity = is_files
                    .then(|| executor.identify(source, &Cancel::default()).expect("files that can be read"));
                let key = key::source_key(source, identity.as_ref());
                keys.insert(id, key);
                continue;
            }
            let inputs: Vec<TreeDigest> = vertex.inputs.iter().map(|input| keys[input]).collect();
            let definition = key::definition_key(vertex, &inputs);
            let read = key::readings(&vertex.op).into_iter().map(|reading| match reading {
                Reading::Whole(input) | Reading::Selected(input, _) => inputs[input],
            });
            let read: Vec<TreeDigest> = read.collect();
            let vertices: Vec<_> = vertex.inputs.iter().map(|input| graph.vertex(*input)).collect();
            let pre_image = key::pre_image(vertex, &vertices, &read);
            let content = key::content_key(vertex, &read);
            steps.push((
                vertex.label.clone(),
                Miss { definition, content, pre_image, forced: false, expired: None },
            ));
            keys.insert(id, definition);
        }
        // They are written beside the build; what is begun is done when the executor is gone.
        drop(executor);
        let inventory = |key: &TreeDigest| Some((*key, executor::inventory::read(store, key)?));
        let inventories = keys.values().filter_map(inventory).collect();
        Self { target: keys[&graph.targets[0].vertex], steps, inventories }
    }

    /// What is said of this build where the other one was built before, but for what only follows: JSON, one a line.
    fn explained(&self, before: &Self) -> String {
        let known = before.steps.iter().map(|(_, miss)| Known {
            content: miss.content,
            pre_image: miss.pre_image.clone(),
            origin: Origin::default(),
            fate: Fate::Ran,
            project: Project::Same,
        });
        let old: BTreeSet<TreeDigest> = before.steps.iter().map(|(_, miss)| miss.content).collect();
        let steps: Vec<Step<'_>> = self
            .steps
            .iter()
            .map(|(label, miss)| Step { label, miss: Some(miss).filter(|miss| !old.contains(&miss.content)) })
            .collect();
        let inventory = |files: &TreeDigest| {
            self.inventories.get(files).or_else(|| before.inventories.get(files)).cloned()
        };
        let told = solver::explain::explain(&steps, &known.collect::<Vec<_>>(), &inventory);
        let reasons = told.into_iter().flatten().flat_map(|why| why.reasons);
        let own = reasons.filter(|reason| !matches!(reason, Reason::Step { .. }));
        own.map(|reason| serde_json::to_string(&reason).expect("plain data") + "\n").collect()
    }
}

/// Checks a case; says what is wrong.
fn check(case: &Path) -> Result<(), String> {
    let text = fs::read_to_string(case.join("case")).expect("every case says what it shows");
    let changes = match text.lines().next() {
        Some("changes") => true,
        Some("same") => false,
        other => return Err(format!("{other:?} is neither `changes` nor `same`")),
    };
    if text.lines().any(|line| line == "needs root") && !is_host_root() {
        eprintln!("SKIPPED: {}: only root can make its files", case.display());
        return Ok(());
    }
    let (a, b) = (Side::new(case, "a"), Side::new(case, "b"));
    if let Some(path) = a.file("stage") {
        return verdict(changes, a.picked(&path) != b.picked(&path));
    }
    let (before, after) = (a.planned(), b.planned());
    verdict(changes, before.target != after.target)?;
    if !changes {
        return Ok(());
    }
    let told = after.explained(&before).replace(&*b.ground.path().to_string_lossy(), "@");
    let file = case.join("expected");
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        fs::write(&file, &told).expect("written");
    }
    match fs::read_to_string(&file) {
        Ok(expected) if expected == told && !told.is_empty() => Ok(()),
        expected => Err(format!("explained as\n{told}, expected\n{}", expected.unwrap_or_default())),
    }
}

fn verdict(changes: bool, changed: bool) -> Result<(), String> {
    match (changes, changed) {
        (true, false) => Err("one key stands for both".to_owned()),
        (false, true) => Err("the keys differ".to_owned()),
        _ => Ok(()),
    }
}

fn is_host_root() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    rustix::process::geteuid().is_root() && map.contains("4294967295")
}

/// The folders, by name.
fn cases() -> BTreeMap<String, PathBuf> {
    let folders = fs::read_dir(repository().join("testdata/key")).expect("cases");
    let case = |folder: io::Result<fs::DirEntry>| {
        let folder = folder.expect("listed");
        (folder.file_name().to_string_lossy().into_owned(), folder.path())
    };
    folders.map(case).collect()
}

#[test]
fn what_changes_a_key_does_and_what_does_not_does_not() {
    let wrong: Vec<String> =
        cases().iter().filter_map(|(name, case)| Some(format!("{name}: {}", check(case).err()?))).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// `docs/keys.md` is the promise, the pairs its proof; neither may grow without the other.
#[test]
fn every_row_has_a_pair_and_every_pair_a_row() {
    let page = fs::read_to_string(repository().join("docs/keys.md")).expect("a page");
    let mut rows = BTreeMap::new();
    let mut kind = "";
    for line in page.lines() {
        kind = match line {
            "## What changes the key" => "changes",
            "## What does not" => "same",
            _ if line.starts_with("## ") => "",
            _ => kind,
        };
        let Some(row) = line.strip_prefix("| ").filter(|_| !kind.is_empty()) else { continue };
        let cell = row.trim_end_matches(" |").rsplit(" | ").next().expect("a cell");
        for name in cell.split_whitespace().filter_map(|word| word.strip_prefix('`')?.strip_suffix('`')) {
            assert_eq!(rows.insert(name.to_owned(), kind), None, "{name} stands there twice");
        }
    }
    let pairs = cases().into_iter().map(|(name, case)| {
        let text = fs::read_to_string(case.join("case")).expect("a case");
        (name, if text.starts_with("changes") { "changes" } else { "same" })
    });
    let pairs: BTreeMap<String, &str> = pairs.collect();
    assert_eq!(rows, pairs);
    let count = |kind: &str| pairs.values().filter(|of| **of == kind).count();
    assert!(count("changes") >= 60 && count("same") >= 25, "RELIABILITY I3");
}
