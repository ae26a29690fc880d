//! Joins the parts: one step from its inputs to its layer. Implements [`solver::Executor`].
//!
//! Every step goes the same way: a place to write on top of its first input, the work itself ([`run`] or a copy), a look
//! at what has changed, and a new layer of the store. What a context holds is looked at once a build: what was
//! keyed is what is copied.

mod contexts;
mod disk;
mod glance;
mod reads;
mod remember;
mod run;
mod unwritten;

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::{AsFd, BorrowedFd},
    sync::{Arc, Mutex, Once},
    time::Instant,
};

use oci::{Layer, LayerContents, Platform, Snapshot, TreeDigest, fetch::Fetcher, registry::FILE_MAX};
use solver::{
    Cancel, Event, Executed, Executor, FailureKind, Input, Op, Step, StepFailure, Stream, Vertex, VertexId,
    op::{Copy, CopyItem, MakeDir, Relaxation, Relaxations, Selector, Source, Timestamps},
};

use crate::{
    View,
    agents::Agents,
    beneath::{Bases, Beneath},
    cache_mounts::CacheMounts,
    container::FailedSteps,
    context::ContextOrigin,
    copy::{self, CopyError, Planned},
    diff::{Brought, Changes, Lower, TimeRules, Upper, scan},
    error::in_store,
    jobserver::JobServer,
    listing::{Content, Listing, Owners},
    once::OnceMap,
    remote::{RemoteOptions, Remotes},
    retry::Retry,
    rootfs::shown,
    sandbox::{
        Dns, Footing, Processes, Spares, StepLimits,
        emulation::{self, Emulation, Unsupported},
        sys,
    },
    secrets::Secrets,
    snapshot::{Events, SnapshotError, Snapshots, Writable},
    users::UserError,
};
pub(crate) use run::refuse_foreign_owners;
pub use unwritten::{looking_steps, virtual_steps};

use contexts::Contexts;
use reads::Noted;
pub use reads::Reads;

/// What a [`LocalExecutor`] works with.
#[derive(Clone)]
pub struct ExecutorOptions {
    /// The store, and where base layers come from.
    pub fetcher: Fetcher,
    /// What contexts name: the main one is `""`, the others are called as `--build-context` calls them.
    pub contexts: BTreeMap<String, ContextOrigin>,
    /// The secrets of the command line.
    pub secrets: Secrets,
    /// The SSH agents of the command line.
    pub agents: Agents,
    /// What [`crate::sandbox::enter_builder`] has found.
    pub footing: Footing,
    /// What a person should know of the sandbox, told as warnings before the first RUN step.
    pub notes: Vec<String>,
    /// Takes pulls and warnings.
    pub events: Events,
    /// Stops pulls; the same that the solver is given.
    pub cancel: Arc<Cancel>,
    /// The steps whose layers need not be on disk: a sealer takes them, and no other step reads them there. The files
    /// of all others are written as the step runs.
    pub virtual_steps: BTreeSet<VertexId>,
    /// Those of them whose base image nobody needs on disk: it is looked at without being unpacked.
    pub looking_steps: BTreeSet<VertexId>,
    /// What becomes of commands that fail, and of what cannot be had at once.
    pub retry: Retry,
    /// What the command line lets every RUN step use.
    pub limits: StepLimits,
    /// The resolver configuration of RUN steps, where it is not the builder's.
    pub dns: Dns,
    /// Whether [`LocalExecutor::reads`] will be asked, for which contexts are listed also where nothing has changed.
    pub notes_reads: bool,
    /// Takes the steps whose commands fail, where somebody wants to look at them.
    pub failed_steps: Option<FailedSteps>,
    /// Who says how many commands may run, beside the solver.
    pub job_server: Option<Arc<JobServer>>,
}

/// Runs steps on this machine.
pub struct LocalExecutor {
    snapshots: Snapshots,
    /// What was picked of snapshots so far.
    selections: OnceMap<(TreeDigest, Selector), Arc<Listing>>,
    contexts: Contexts,
    cache_mounts: CacheMounts,
    secrets: Secrets,
    agents: Agents,
    footing: Footing,
    /// Held by the command that runs, where commands must not see each other and only this keeps them apart.
    turn: Option<Mutex<()>>,
    /// What RUN steps are begun with.
    spares: Spares,
    /// What a failed step is kept with, too.
    emulation: Arc<Emulation>,
    notes: Vec<String>,
    sandbox_told: Once,
    resolver_told: Once,
    events: Events,
    virtual_steps: BTreeSet<VertexId>,
    looking_steps: BTreeSet<VertexId>,
    retry: Retry,
    limits: StepLimits,
    dns: Dns,
    failed_steps: Option<FailedSteps>,
    job_server: Option<Arc<JobServer>>,
}

impl LocalExecutor {
    /// An executor; nothing is opened or started yet.
    pub fn new(options: ExecutorOptions) -> Self {
        let ExecutorOptions {
            fetcher,
            contexts,
            secrets,
            agents,
            footing,
            notes,
            events,
            cancel,
            virtual_steps,
            looking_steps,
            retry,
            limits,
            dns,
            notes_reads,
            failed_steps,
            job_server,
        } = options;
        let remotes = Remotes::new(RemoteOptions {
            fetcher: fetcher.clone(),
            secrets: secrets.clone(),
            agents: agents.clone(),
            events: events.clone(),
            cancel: cancel.clone(),
            retry,
            pack_max: FILE_MAX,
        });
        let reads = notes_reads.then(Noted::default);
        let contexts = Contexts::new(contexts, remotes, Arc::clone(fetcher.store()), reads, events.clone());
        let snapshots = Snapshots::new(fetcher, footing.into(), events.clone(), cancel);
        let cache_mounts = CacheMounts::new(&snapshots, footing.rung);
        Self {
            snapshots,
            selections: OnceMap::default(),
            contexts,
            cache_mounts,
            secrets,
            agents,
            footing,
            turn: wants_turns(footing).then(Mutex::default),
            spares: Spares::default(),
            emulation: Arc::new(Emulation::new(footing)),
            notes,
            sandbox_told: Once::new(),
            resolver_told: Once::new(),
            events,
            virtual_steps,
            looking_steps,
            retry,
            limits,
            dns,
            failed_steps,
            job_server,
        }
    }

    /// Whether steps can run programs of this platform.
    fn check_platform(&self, platform: &Platform) -> Result<(), StepFailure> {
        if emulation::is_native(platform) {
            return Ok(());
        }
        let scratch = self.snapshots.store().temp_dir("platform").map_err(SnapshotError::from)?;
        let support = self.emulation.support(platform, &scratch.path().join("trial"));
        let failure = |error: Box<Unsupported>| {
            StepFailure::new(FailureKind::Machine, error.to_string()).hint(error.hint())
        };
        support.map(|_| ()).map_err(failure)
    }

    /// Tells what commands run in and the notes about it, once in its life.
    fn tell_sandbox(&self) {
        let tell = |note: &String| (self.events)(Event::Warning(note.clone()));
        self.sandbox_told.call_once(|| {
            (self.events)(Event::Sandbox(self.footing.to_string()));
            self.notes.iter().for_each(tell);
        });
    }

    /// What was read so far of the directories of the command line.
    pub fn reads(&self) -> Reads {
        self.contexts.reads()
    }

    /// The snapshots it works on.
    pub fn snapshots(&self) -> &Snapshots {
        &self.snapshots
    }

    /// Where the files of layers are that were copied and are not on disk.
    pub fn contents(&self) -> Arc<dyn LayerContents> {
        Arc::new(self.snapshots.contents().clone())
    }

    fn copy(&self, step: &Step<'_>, copy: &Copy) -> Result<Layer, StepFailure> {
        let sources = copy.items.iter().map(|item| self.source(step, item)).collect::<Result<Vec<_>, _>>()?;
        let below = self.beneath(step)?;
        if let Some(planned) = copy::plan(copy, &sources, &below, step.cancel)? {
            return self.adopt(step, planned);
        }
        let sources: Vec<&Listing> = sources.iter().map(AsRef::as_ref).collect();
        self.write(step, copy.timestamps, |root, below| copy::copy(copy, &sources, root, below, step.cancel))
    }

    fn make_dir(&self, step: &Step<'_>, make: &MakeDir) -> Result<Layer, StepFailure> {
        let warn = |error: UserError| {
            let told = format!("{error}: the directory belongs to root");
            (step.log)(Stream::Stderr, told.as_bytes());
        };
        let below = self.beneath(step)?;
        match copy::plan_dir(make, &below, &warn, step.cancel)? {
            Some(planned) => self.adopt(step, planned),
            None => self.write(step, make.timestamps, |root, _| copy::make_dir(make, root, &warn)),
        }
    }

    /// What a step stands on, to be looked at.
    fn beneath(&self, step: &Step<'_>) -> Result<Beneath, StepFailure> {
        let bases = match self.looking_steps.contains(&step.id) {
            true => Bases::Catalogued,
            false => Bases::Unpacked,
        };
        Ok(self.snapshots.until(step.cancel).beneath(first_input(step)?.snapshot, bases)?)
    }

    /// Makes a layer of what was planned, and writes its files where somebody will read them.
    fn adopt(&self, step: &Step<'_>, planned: Planned) -> Result<Layer, StepFailure> {
        let layer = self.snapshots.adopt(planned)?;
        if !self.virtual_steps.contains(&step.id) {
            let snapshot = first_input(step)?.snapshot.with(layer.clone());
            self.snapshots.until(step.cancel).ensure(&snapshot)?;
        }
        Ok(layer)
    }

    /// Lets `work` write into the step's file system, in this process. It is told of the owners that the parent's disk
    /// could not hold, and returns those that this one cannot.
    fn write(
        &self,
        step: &Step<'_>,
        timestamps: Timestamps,
        work: impl FnOnce(BorrowedFd<'_>, &Owners) -> Result<Owners, copy::CopyError>,
    ) -> Result<Layer, StepFailure> {
        let ground = self.ground(step)?;
        let mount = ground.writable.mount()?;
        let owners = work(mount.as_fd(), &ground.owners)?;
        ground.writable.unmount(mount)?;
        self.commit(ground, Relaxations::default(), TimeRules { timestamps, brought: Brought::All }, &owners)
    }

    /// Runs a step once.
    fn attempt(&self, step: &Step<'_>) -> Result<Executed, StepFailure> {
        let began = Instant::now();
        let layer = match &step.vertex.op {
            Op::Exec(exec) => self.run(step, exec),
            Op::Copy(copy) => self.copy(step, copy),
            Op::MakeDir(make) => self.make_dir(step, make),
            Op::Merge => merge(step),
            Op::Source(_) => Err(planner_mistake("a source is no step")),
        }?;
        Ok(Executed { layer, took: began.elapsed() })
    }

    /// What the step stands on.
    fn ground<'a>(&self, step: &Step<'a>) -> Result<Ground<'a>, StepFailure> {
        let parent = first_input(step)?.snapshot;
        let snapshots = self.snapshots.until(step.cancel);
        snapshots.check_mountable(parent)?;
        let owners = snapshots.owners(parent)?;
        let (view, writable) = (snapshots.view(parent)?, snapshots.scratch(parent)?);
        Ok(Ground { parent, view, owners, writable })
    }

    /// Makes a layer of what a step has written, which may have let go these lines under keys that say so.
    fn commit(
        &self,
        ground: Ground<'_>,
        relaxed: Relaxations,
        rules: TimeRules<'_>,
        owners: &Owners,
    ) -> Result<Layer, StepFailure> {
        let Ground { parent, view, owners: below, writable } = ground;
        let lower = Lower { root: view.root(), owners: &below };
        // The user's wish only: what a command did is worth keeping when another step fails.
        let upper = Upper { path: &writable.upper(), kind: writable.kind(), owners };
        let changes: Changes = scan(upper, lower, rules, self.snapshots.cancel())?;
        if let Some(names) = &changes.held_together
            && !relaxed.contain(Relaxation::HardLinks)
        {
            return Err(held_together(&now(names)));
        }
        Ok(self.snapshots.commit(parent, writable, &changes, owners)?)
    }

    /// What one item of a copy can pick.
    fn source(&self, step: &Step<'_>, item: &CopyItem) -> Result<Arc<Listing>, StepFailure> {
        let input = step.inputs.get(item.input).ok_or_else(|| planner_mistake("a copy names no input"))?;
        if let Op::Source(source @ (Source::Context(_) | Source::Inline(_))) = &input.vertex.op {
            let listing = self.keyed(source, input, step.cancel)?;
            // Of a file that was downloaded nobody has asked yet what it holds.
            return match listing.content {
                Content::Download(_) => {
                    Ok(Arc::new(Listing::clone(&listing).complete(step.cancel).map_err(CopyError::from)?))
                }
                _ => Ok(listing),
            };
        }
        self.selected(input.snapshot, &item.selector, step.cancel)
    }

    /// What a selector can pick of a snapshot, with contents: looked at and read once a build.
    fn selected(
        &self,
        snapshot: &Snapshot,
        selector: &Selector,
        cancel: &Cancel,
    ) -> Result<Arc<Listing>, StepFailure> {
        self.selections.get_or_make(&(snapshot.digest(), selector.clone()), || {
            let snapshots = self.snapshots.until(cancel);
            let (view, owners) = (snapshots.view(snapshot)?, snapshots.owners(snapshot)?);
            let listing = copy::list(view.root(), &owners, selector, cancel)?;
            Ok(Arc::new(listing.complete(cancel).map_err(CopyError::from)?))
        })
    }

    /// The files of a source that has content of its own, if they still are those that were keyed.
    fn keyed(
        &self,
        source: &Source,
        input: &Input<'_>,
        cancel: &Cancel,
    ) -> Result<Arc<Listing>, StepFailure> {
        let identified = self.contexts.identify(source, cancel)?;
        match input.identity.is_none_or(|keyed| keyed == identified.digest) {
            true => Ok(identified.listing),
            false => Err(StepFailure::new(FailureKind::Build, "the build context changed while reading")),
        }
    }
}

/// What a step stands on, and where it writes.
struct Ground<'a> {
    parent: &'a Snapshot,
    view: View,
    /// Owners that the parent's disk could not hold.
    owners: Owners,
    writable: Writable,
}

impl Executor for LocalExecutor {
    fn identify(&self, source: &Source, cancel: &Cancel) -> Result<TreeDigest, StepFailure> {
        self.contexts.digest(source, cancel)
    }

    fn select(
        &self,
        snapshot: &Snapshot,
        selector: &Selector,
        cancel: &Cancel,
    ) -> Result<TreeDigest, StepFailure> {
        let tell = |text: &str| (self.events)(Event::Warning(text.to_owned()));
        self.retry.make(cancel, tell, || Ok(self.selected(snapshot, selector, cancel)?.digest(cancel)?))
    }

    fn check(&self, vertex: &Vertex) -> Result<(), StepFailure> {
        match vertex.op {
            Op::Exec(_) => self.check_platform(&vertex.platform),
            _ => Ok(()),
        }
    }

    fn prepare(&self, step: Step<'_>) {
        let snapshots = self.snapshots.until(step.cancel);
        let Some(Input { snapshot: parent, .. }) = step.inputs.first() else { return };
        // Nothing of a remote cache, which is told to be lost once only, to who must read it.
        let base = parent.layers.iter().take_while(|layer| matches!(layer, Layer::Base(_)));
        let base = Snapshot { layers: base.cloned().collect() };
        // The step will say what is wrong.
        match step.vertex.op {
            Op::Merge | Op::Source(_) => {}
            _ if self.looking_steps.contains(&step.id) => drop(snapshots.catalogues(&base)),
            Op::Exec(_) if snapshots.check_mountable(parent).is_err() => {}
            _ => drop(snapshots.ensure(&base)),
        }
    }

    fn execute(&self, step: Step<'_>) -> Result<Executed, StepFailure> {
        if matches!(step.vertex.op, Op::Exec(_)) {
            self.tell_sandbox();
        }
        let tell = |text: &str| (step.log)(Stream::Stderr, text.as_bytes());
        let done = self.retry.make(step.cancel, tell, || self.attempt(&step));
        // A step writes nowhere but into the store.
        done.map_err(|failure| in_store(failure, self.snapshots.store().root()))
    }
}

/// Whether two commands could look into each other: where they see each other in `/proc`, only a domain of Landlock keeps
/// them from it, and steps have one from the version on that has scopes.
fn wants_turns(footing: Footing) -> bool {
    footing.processes != Processes::Own && sys::landlock_abi() < sys::LANDLOCK_ABI_WITH_SCOPES
}

/// The layer that its second input ends in: a copy to an empty file system, which stands as well on any other one. The
/// file system below is neither pulled nor looked at; see [`crate::snapshot`].
fn merge(step: &Step<'_>) -> Result<Layer, StepFailure> {
    let layer = step.inputs.get(1).and_then(|linked| linked.snapshot.layers.last());
    layer.cloned().ok_or_else(|| planner_mistake("there is nothing to link"))
}

fn first_input<'a>(step: &Step<'a>) -> Result<Input<'a>, StepFailure> {
    step.inputs.first().copied().ok_or_else(|| planner_mistake("a step has no input"))
}

/// The one thing that copies do otherwise than overlays: the image would be another one than elsewhere.
fn held_together(place: &str) -> StepFailure {
    let message = format!(
        "a file of an earlier layer with several names was changed, linked or moved ({place}): in this store, which copies file \
         systems, it stays one file, where an overlay parts its names, so the image may not be the one that other machines make"
    );
    StepFailure::new(FailureKind::Machine, message).hint(
        "put a copy in its place first, in that step, or let the program copy where it links (docs/sandbox.md); or let --root name a \
         file system on which the kernel mounts overlays; or --sandbox-allow=hard-links takes it all the same, for results of its own",
    )
}

/// Where such a file is now.
fn now(names: &[Vec<u8>]) -> String {
    let shown: Vec<_> = names.iter().take(4).map(|name| format!("/{}", shown(name))).collect();
    if shown.is_empty() { "removed since".to_owned() } else { format!("now {}", shown.join(", ")) }
}

/// Something that only a mistake in the planner or the scheduler can cause.
fn planner_mistake(what: &str) -> StepFailure {
    StepFailure::new(FailureKind::Machine, format!("this is a mistake of layerwright: {what}"))
}
