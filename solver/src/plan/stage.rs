//! One stage: its instructions, in order, applied to a state that the next stage may start from.

use std::{cell::RefCell, collections::BTreeMap};

use oci::{History, ImageConfig, Platform};
use parser::{
    Diagnostic, Span,
    ast::{InstructionKind, Word},
    word,
};

use super::{
    OutlineArg, PlanError, Planner,
    bases::{self, Base},
    lint, path,
    survey::{Surveyed, Task},
    variables::{self, DEFAULT_PATH, Environment},
};
use crate::{
    graph::{HistoryItem, Vertex, VertexId, Written},
    op::{self, ContextSource, Op, Place, Selector, Source},
    remote,
};

/// What BuildKit's frontend puts into the `comment` of its history entries; tools look for it.
const COMMENT: &str = "buildkit.dockerfile.v0";

/// A stage as far as it is planned.
#[derive(Debug, Clone)]
pub(super) struct StageState {
    /// The step that was added last.
    pub(super) tip: VertexId,
    pub(super) platform: Platform,
    pub(super) config: ImageConfig,
    pub(super) base_layers: usize,
    pub(super) history: Vec<HistoryItem>,
    /// What variables expand to and what RUN sees: the config's ENV, and ARG where it came later.
    pub(super) environment: Environment,
    /// Declared ARGs with the value they got, in order.
    pub(super) arguments: Vec<(String, Option<String>)>,
    /// Where each name stands among the config's ENV, once somebody has asked.
    env_places: BTreeMap<String, usize>,
    /// Whether a WORKDIR of this Dockerfile has been gone through.
    pub(super) workdir_is_set: bool,
    /// What this stage itself declares, for the outline.
    pub(super) declared: Vec<Declared>,
    /// What the stage is built on in the end.
    ground: Ground,
}

/// What is known of the image that a stage is built on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ground {
    Known,
    /// Its registry did not answer: any variable may be set in it.
    Unknown,
}

/// A name of an ARG in a stage.
#[derive(Debug, Clone)]
pub(super) struct Declared {
    pub(super) name: String,
    /// The stage's own definition; `None` where it takes over what the global scope says.
    pub(super) own: Option<OutlineArg>,
}

/// Plans a stage. `None` when its base has mistakes, which are reported already.
pub(super) fn plan(
    planner: &mut Planner,
    number: usize,
    surveyed: &Surveyed,
    globals: &Environment,
    target: &Platform,
    done: &BTreeMap<usize, StageState>,
) -> Result<Option<StageState>, PlanError> {
    let mut labels = Labels::new(planner, number, surveyed);
    let Some(mut state) = first_state(planner, number, surveyed, done, &mut labels) else {
        return Ok(None);
    };
    state.declared.clear();
    let uses_cache = uses_cache(planner, number);
    let command_is_set = false;
    let mut walk = Walk { planner, number, globals, target, done, labels, state, uses_cache, command_is_set };
    walk.inherit();
    for task in &surveyed.program {
        match walk.instruction(task).map_err(|error| task.explain(error)) {
            // A variable that the image sets would have made another instruction of it.
            Err(PlanError::Dockerfile { .. }) if walk.depends_on_the_unknown(task) => {}
            walked => drop(walk.planner.reported(walked)?),
        }
    }
    Ok(Some(walk.state))
}

fn uses_cache(planner: &Planner, number: usize) -> bool {
    let name = planner.name_of(number).unwrap_or("");
    let filtered = planner.options.no_cache_filter.iter().any(|filter| filter.eq_ignore_ascii_case(name));
    !planner.options.no_cache && !filtered
}

/// What a stage starts from, before anything is done in it.
fn first_state(
    planner: &mut Planner,
    number: usize,
    surveyed: &Surveyed,
    done: &BTreeMap<usize, StageState>,
    labels: &mut Labels,
) -> Option<StageState> {
    let Surveyed { base, image, platform, program: _ } = surveyed;
    let stage = &planner.dockerfile.stages[number];
    match (base, image) {
        (Base::Stage(earlier), _) => done.get(earlier).cloned(),
        (_, Some(image)) => {
            let label = labels.next(&format!("FROM {}", image.pinned));
            let tip = planner.add_source(bases::source(image), platform, label, stage.span);
            planner.report.extend(lint::invalid_base_image_platform(
                stage,
                platform,
                &image.config.platform(),
            ));
            let config = ImageConfig { created: None, ..image.config.clone() };
            let mut state = StageState::new(tip, platform.clone(), config, image.layers.len());
            if matches!(base, Base::Image(name) if planner.images.is_unknown(name)) {
                state.ground = Ground::Unknown;
            }
            Some(state)
        }
        (_, None) => {
            let tip = planner.add_source(Source::Scratch, platform, "FROM scratch".to_owned(), stage.span);
            let mut state = StageState::new(tip, platform.clone(), bases::empty_config(platform), 0);
            if let Base::Directory(name) = base {
                copy_whole(planner, &mut state, name, stage.span, labels);
            }
            Some(state)
        }
    }
}

impl StageState {
    fn new(tip: VertexId, platform: Platform, config: ImageConfig, base_layers: usize) -> Self {
        Self {
            tip,
            platform,
            config,
            base_layers,
            history: Vec::new(),
            environment: Environment::default(),
            arguments: Vec::new(),
            env_places: BTreeMap::new(),
            workdir_is_set: false,
            declared: Vec::new(),
            ground: Ground::Known,
        }
    }

    /// Puts `NAME=value` into the config's ENV, in the place of an older one of the name.
    pub(super) fn set_in_config(&mut self, name: &str, variable: String) {
        let variables = &mut self.config.config.env;
        // The first of several of a name is the one that is replaced, so the last to be put in here is the first.
        if self.env_places.is_empty() {
            let places = variables.iter().enumerate().rev();
            self.env_places =
                places.map(|(place, old)| (variables::split(old).0.to_owned(), place)).collect();
        }
        match self.env_places.get(name) {
            Some(place) => variables[*place] = variable,
            None => {
                self.env_places.insert(name.to_owned(), variables.len());
                variables.push(variable);
            }
        }
    }
}

/// A stage on a directory: all of it, as one layer.
fn copy_whole(planner: &mut Planner, state: &mut StageState, name: &str, span: Span, labels: &mut Labels) {
    let selector = Selector { include: vec![String::new()], ..Selector::default() };
    let context =
        Source::Context(ContextSource { place: Place::Context(name.to_owned()), selector: selector.clone() });
    let context =
        planner.add_source(context, &state.platform, context_label(&Place::Context(name.to_owned())), span);
    let copy = op::Copy {
        items: vec![op::CopyItem { input: 1, selector, unpack: false }],
        destination: "/".to_owned(),
        into_directory: true,
        chown: None,
        chmod: None,
        timestamps: planner.options.timestamps,
    };
    state.tip = planner.graph.add(Vertex {
        op: Op::Copy(copy),
        inputs: vec![state.tip, context],
        platform: state.platform.clone(),
        label: labels.next(&format!("FROM {name}")),
        span: Some(span),
        ambient_env: Vec::new(),
        use_cache: true,
        written: Written { instruction: format!("FROM {name}"), ..Written::default() },
    });
    state.history.push(history(format!("FROM {name}"), true));
}

/// How the reading of a context is shown.
pub(super) fn context_label(place: &Place) -> String {
    match place {
        Place::Context(name) if name.is_empty() => "[internal] load build context".to_owned(),
        Place::Context(name) => format!("[context {name}] load files"),
        Place::Git(address) => format!("load from {}", remote::redacted(&address.remote)),
        Place::Http(file) => format!("load from {}", remote::redacted(&file.url)),
    }
}

fn history(created_by: String, produces_layer: bool) -> HistoryItem {
    let entry = History {
        created_by,
        comment: COMMENT.to_owned(),
        empty_layer: !produces_layer,
        ..History::default()
    };
    HistoryItem { entry, produces_layer }
}

/// Numbers the steps of a stage as BuildKit does: `[build 2/5] RUN make`, and with several platforms
/// `[linux/amd64->arm64 build 2/5] RUN make` where the step can know for which of them it is made.
pub(super) struct Labels {
    /// Where the steps run, where there are several platforms.
    platform: Option<Platform>,
    /// `->arm64`
    target: String,
    /// Of the stage, with a blank after it; empty where there is one stage.
    name: String,
    total: usize,
    done: usize,
}

impl Labels {
    fn new(planner: &Planner, number: usize, surveyed: &Surveyed) -> Self {
        let is_step = |task: &&Task| {
            use InstructionKind::{Add, Copy, Run, Workdir};
            matches!(task.instruction.kind, Add(_) | Copy(_) | Run(_) | Workdir(_))
        };
        let from = usize::from(!matches!(surveyed.base, Base::Scratch | Base::Stage(_)));
        let platform = (planner.options.platforms.len() > 1).then(|| surveyed.platform.clone());
        let name = match planner.dockerfile.stages.len() {
            1 => String::new(),
            _ => format!("{} ", planner.shown_stage_name(number)),
        };
        let total = from + surveyed.program.iter().filter(is_step).count();
        Self { platform, target: String::new(), name, total, done: 0 }
    }

    /// From here on the steps know the platform that the image is for.
    pub(super) fn know(&mut self, target: &Platform) {
        let Some(own) = &self.platform else { return };
        self.target = match (own.os == target.os, own.architecture == target.architecture) {
            (false, _) => format!("->{target}"),
            (true, false) => {
                let variant = target.variant.as_ref().map(|variant| format!("/{variant}"));
                format!("->{}{}", target.architecture, variant.unwrap_or_default())
            }
            (true, true) => String::new(),
        };
    }

    fn next(&mut self, text: &str) -> String {
        self.done += 1;
        self.again(text)
    }

    /// Another label of the same number.
    fn again(&self, text: &str) -> String {
        let width = self.total.max(1).ilog10() as usize + 1;
        let platform = self.platform.as_ref().map(|platform| format!("{platform}{} ", self.target));
        let platform = platform.unwrap_or_default();
        format!("[{platform}{}{:width$}/{}] {text}", self.name, self.done, self.total)
    }
}

/// What a step does, and that a trigger of the base asks for it.
fn in_trigger(task: &Task, shown: &str) -> String {
    let trigger = if task.trigger_at.is_some() { "ONBUILD " } else { "" };
    format!("{trigger}{shown}")
}

/// The way through a stage.
pub(super) struct Walk<'w, 'a> {
    pub(super) planner: &'w mut Planner<'a>,
    pub(super) number: usize,
    pub(super) globals: &'w Environment,
    pub(super) target: &'w Platform,
    /// The stages planned so far.
    pub(super) done: &'w BTreeMap<usize, StageState>,
    pub(super) labels: Labels,
    pub(super) state: StageState,
    uses_cache: bool,
    /// CMD has been gone through in this very stage.
    pub(super) command_is_set: bool,
}

impl Walk<'_, '_> {
    /// Takes over what the base's config says.
    fn inherit(&mut self) {
        let state = &mut self.state;
        let container = &mut state.config.config;
        container.on_build.clear();
        if !container.env.iter().any(|variable| variables::split(variable).0 == "PATH") {
            container.env.push(format!("PATH={DEFAULT_PATH}"));
        }
        for variable in &container.env {
            let (name, value) = variables::split(variable);
            state.environment.set(name, value);
        }
        if !container.working_dir.is_empty() {
            container.working_dir = path::clean(&container.working_dir);
        }
    }

    fn instruction(&mut self, task: &Task) -> Result<(), PlanError> {
        match &task.instruction.kind {
            InstructionKind::Add(copy) | InstructionKind::Copy(copy) => self.copy(task, copy),
            InstructionKind::Run(run) => self.run(task, run),
            InstructionKind::Workdir(directory) => self.workdir(task, directory),
            _ => self.setting(task),
        }
    }

    fn workdir(&mut self, task: &Task, directory: &Word) -> Result<(), PlanError> {
        let written = self.expand(task, directory)?;
        if !self.state.workdir_is_set && directory.value.contains('$') && !written.starts_with('/') {
            let place = task.place(directory.span);
            self.planner.report.push(lint::workdir_relative_path(place, &written));
        }
        self.state.workdir_is_set = true;
        let path = path::join(&self.state.config.config.working_dir, &written);
        self.state.config.config.working_dir.clone_from(&path);
        let is_step = path != "/";
        if is_step {
            let make = op::MakeDir {
                path: path.clone(),
                owner: self.state.config.config.user.clone(),
                timestamps: self.planner.options.timestamps,
            };
            let shown = self.shown(task);
            self.step(task, Op::MakeDir(make), Vec::new(), &shown, Vec::new());
        }
        self.commit(format!("WORKDIR {path}"), is_step);
        Ok(())
    }

    /// Adds a step on top of the stage.
    pub(super) fn step(
        &mut self,
        task: &Task,
        op: Op,
        other_inputs: Vec<VertexId>,
        shown: &str,
        ambient_env: Vec<(String, String)>,
    ) {
        let label = self.labels.next(&in_trigger(task, shown));
        let inputs = [vec![self.state.tip], other_inputs].concat();
        self.state.tip = self.add(task, op, inputs, label, ambient_env);
    }

    /// Adds a COPY --link on top of the stage: the files are copied to an empty file system, and its only layer is laid
    /// over the stage's, whatever those hold.
    pub(super) fn linked_step(&mut self, task: &Task, copy: op::Copy, sources: Vec<VertexId>) {
        let shown = self.shown(task);
        let label = self.labels.next(&in_trigger(task, &shown));
        let platform = self.state.platform.clone();
        let nothing =
            self.planner.add_source(Source::Scratch, &platform, "FROM scratch".to_owned(), task.span());
        let copied = self.add(task, Op::Copy(copy), [vec![nothing], sources].concat(), label, Vec::new());
        let label = self.labels.again(&in_trigger(task, &format!("LINK {shown}")));
        self.state.tip = self.add(task, Op::Merge, vec![self.state.tip, copied], label, Vec::new());
    }

    /// Adds a vertex of this stage to the graph.
    pub(super) fn add(
        &mut self,
        task: &Task,
        op: Op,
        inputs: Vec<VertexId>,
        label: String,
        ambient_env: Vec<(String, String)>,
    ) -> VertexId {
        let written = self.written(task, &op);
        self.planner.graph.add(Vertex {
            op,
            inputs,
            platform: self.state.platform.clone(),
            label,
            span: Some(task.span()),
            ambient_env,
            use_cache: self.uses_cache,
            written,
        })
    }

    /// What people know a step of this instruction by.
    fn written(&self, task: &Task, op: &Op) -> Written {
        let state = &self.state;
        let variables = &state.config.config.env;
        let of_config = |(name, value): &(String, String)| {
            variables.iter().any(|variable| variables::split(variable) == (name, value))
        };
        let named = RefCell::new(BTreeMap::new());
        let lookup = |name: &str| {
            let value = state.environment.get(name)?.to_owned();
            named.borrow_mut().insert(name.to_owned(), value.clone());
            Some(value)
        };
        // Only asked for what it looks up; a text that is wrong is reported elsewhere.
        let escape = self.planner.dockerfile.directives.escape;
        let _ = word::expand_for_display(&task.instruction.text, escape, &lookup);
        let mut named = named.into_inner();
        if matches!(op, Op::Exec(_)) {
            let seen = state.arguments.iter().map(|(name, _)| name);
            let seen = seen.filter_map(|name| Some((name.clone(), state.environment.get(name)?.to_owned())));
            named.extend(seen);
        }
        let (env, arguments) = named.into_iter().partition(of_config);
        Written { instruction: remote::redacted(&task.instruction.text), arguments, env }
    }

    pub(super) fn commit(&mut self, created_by: String, produces_layer: bool) {
        self.state.history.push(history(created_by, produces_layer));
    }

    /// A word with its variables replaced; those that nobody has set are reported.
    pub(super) fn expand(&mut self, task: &Task, word: &Word) -> Result<String, PlanError> {
        self.expand_text(task, &word.value)
            .map_err(|error| Diagnostic::error(task.place(word.span), error.to_string()).into())
    }

    /// The same for a part of a word.
    pub(super) fn expand_text(&mut self, task: &Task, text: &str) -> Result<String, word::WordError> {
        let escape = self.planner.dockerfile.directives.escape;
        let environment = &self.state.environment;
        let lookup = |name: &str| environment.get(name).map(str::to_owned);
        let expanded = word::expand(text, escape, &lookup)?;
        self.report_undefined(task, &expanded);
        Ok(expanded.value)
    }

    fn depends_on_the_unknown(&self, task: &Task) -> bool {
        self.state.ground == Ground::Unknown && task.instruction.text.contains('$')
    }

    pub(super) fn report_undefined(&mut self, task: &Task, expanded: &word::Expanded) {
        if self.state.ground == Ground::Unknown {
            return;
        }
        for name in &expanded.unmatched {
            if !self.state.arguments.iter().any(|(argument, _)| argument == name) {
                let known = self.state.environment.names().chain(self.globals.names());
                let found = lint::undefined_var(task.span(), name, self.globals, known);
                self.planner.report.push(found);
            }
        }
    }

    /// The instruction as progress shows it: variables replaced where they are set.
    pub(super) fn shown(&self, task: &Task) -> String {
        let escape = self.planner.dockerfile.directives.escape;
        let lookup = |name: &str| self.state.environment.get(name).map(str::to_owned);
        let text = &task.instruction.text;
        let shown = word::expand_for_display(text, escape, &lookup).unwrap_or_else(|_| text.clone());
        let shown = remote::redacted(&shown);
        match shown.split_once(' ') {
            Some((keyword, rest)) => format!("{} {rest}", keyword.to_uppercase()),
            None => shown.to_uppercase(),
        }
    }

    /// What is wrong with an instruction, pointing at one of its words.
    pub(super) fn mistake(&self, task: &Task, span: Span, message: impl Into<String>) -> PlanError {
        Diagnostic::error(task.place(span), message).into()
    }
}
