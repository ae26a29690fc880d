//! Where COPY and RUN --mount take their files from: an earlier stage by name or number, a named context, an image, or
//! nothing at all.
//!
//! Names are looked up as BuildKit does it: when all stages are known. Of several stages with one name the last one is
//! meant, and where that one does not come earlier, that is a mistake.

use std::collections::BTreeSet;

use oci::Platform;
use parser::{
    Diagnostic, Span,
    ast::{self, InstructionKind, Word},
    mount, word,
};

use super::{
    PlanError, Planner,
    bases::{self, Base},
    stage::{Walk, context_label},
    survey::Task,
};
use crate::{
    graph::VertexId,
    op::{ContextSource, Place, Selector, Source},
};

/// What takes files from elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Taker {
    /// `COPY --from`
    Copy,
    /// `RUN --mount=from=`, and where it puts them.
    Mount(String),
}

/// What a name stands for in an instruction of a stage.
///
/// # Errors
/// What is wrong with the name, at `span`.
pub(super) fn named(
    planner: &Planner,
    number: usize,
    platform: &Platform,
    name: &str,
    taker: &Taker,
    span: Span,
) -> Result<Base, Diagnostic> {
    let mistake = |message: String| Diagnostic::error(span, message);
    let all = planner.dockerfile.stages.len();
    let stage = match name.parse::<i64>() {
        Ok(index) => match usize::try_from(index).ok().filter(|index| *index < all) {
            Some(index) => Some(index),
            None => return Err(mistake(format!("invalid stage index {index}"))),
        },
        Err(_) => planner.stage_before(name, all),
    };
    let Some(stage) = stage else {
        return bases::elsewhere(planner.options, name, platform)
            .map_err(|reason| super::survey::unknown_base(planner, name, span, reason));
    };
    if let Some(base) = in_place_of(planner, stage, platform) {
        return Ok(base);
    }
    if stage < number {
        return Ok(Base::Stage(stage));
    }
    let current = planner.shown_stage_name(number);
    if needs(planner, stage, number) {
        return Err(mistake(format!("circular dependency detected on stage: {current}")));
    }
    let found = mistake(match taker {
        Taker::Copy => format!(
            "cannot copy from stage {name:?}, it needs to be defined before current stage {current:?}"
        ),
        Taker::Mount(target) => format!(
            "cannot mount from stage {name:?} to {target:?}, stage needs to be defined before current command"
        ),
    });
    Err(match planner.stage_before(name, number) {
        Some(_) => {
            found.hint(format!("several stages are called {name:?} and the last one is meant; rename one"))
        }
        None => found,
    })
}

/// The named context that a stage is replaced by. It is there whatever comes before it, and of a directory only what is
/// used is read. (A stage for another platform is left to the planning of the stage.)
fn in_place_of(planner: &Planner, stage: usize, platform: &Platform) -> Option<Base> {
    let written = &planner.dockerfile.stages[stage];
    let name = written.name.as_ref().filter(|_| written.platform.is_none())?;
    bases::context(planner.options, &name.value, platform)
}

/// The names that an instruction takes files from, as written. Those that cannot be read are left out: the planning of
/// the instruction says what is wrong with them.
pub(super) fn names(kind: &InstructionKind) -> Vec<String> {
    match kind {
        InstructionKind::Copy(copy) => copy.from.iter().map(|from| from.value.clone()).collect(),
        InstructionKind::Run(run) => {
            run.mounts.iter().filter_map(|mount| mount::from(&mount.value).ok().flatten()).collect()
        }
        _ => Vec::new(),
    }
}

/// The earlier stages that an instruction takes files from. Names that lead nowhere are left to its planning.
pub(super) fn stages(
    planner: &Planner,
    number: usize,
    platform: &Platform,
    kind: &InstructionKind,
) -> Vec<usize> {
    let stage = |name: String| match named(planner, number, platform, &name, &Taker::Copy, Span::default()) {
        Ok(Base::Stage(used)) => Some(used),
        _ => None,
    };
    names(kind).into_iter().filter_map(stage).collect()
}

/// Whether what is written in one stage leads to another.
fn needs(planner: &Planner, from: usize, to: usize) -> bool {
    let edges = planner.edges.get_or_init(|| edges(planner));
    let mut seen = vec![false; edges.len()];
    let mut open = vec![from];
    while let Some(number) = open.pop() {
        if number == to {
            return true;
        }
        if !std::mem::replace(&mut seen[number], true) {
            open.extend(&edges[number]);
        }
    }
    false
}

/// The stages that each stage is built on or takes files from, by what is written in it.
fn edges(planner: &Planner) -> Vec<BTreeSet<usize>> {
    let all = planner.dockerfile.stages.len();
    let stage_of = |name: String| {
        let index = name.parse().ok().filter(|index| *index < all);
        index.or_else(|| planner.stage_before(&name, all))
    };
    let of_stage = |(number, stage): (usize, &ast::Stage)| {
        let taken = stage.instructions.iter().flat_map(|instruction| names(&instruction.kind));
        taken.filter_map(stage_of).chain(planner.stage_before(&stage.base.value, number)).collect()
    };
    planner.dockerfile.stages.iter().enumerate().map(of_stage).collect()
}

impl Walk<'_, '_> {
    /// What `COPY --from` names.
    pub(super) fn copied_from(&self, task: &Task, from: &Word) -> Result<Base, PlanError> {
        let span = task.place(from.span);
        let escape = self.planner.dockerfile.directives.escape;
        let constant = word::expand(&from.value, escape, &|_| None);
        if !constant.is_ok_and(|expanded| expanded.value == from.value) {
            let hint = "name the image in a stage of its own, with FROM and an ARG from the global scope";
            let message = "variable expansion is not supported for --from";
            return Err(Diagnostic::error(span, message).hint(hint).into());
        }
        Ok(named(self.planner, self.number, self.target, &from.value, &Taker::Copy, span)?)
    }

    /// The vertex that holds what a name stands for. `selector` is what will be read of a context.
    pub(super) fn files_of(
        &mut self,
        task: &Task,
        base: Base,
        written: &str,
        span: Span,
        selector: &Selector,
    ) -> Result<VertexId, PlanError> {
        let platform = self.target.clone();
        match base {
            Base::Directory(name) => Ok(self.context(task, Place::Context(name), selector.clone())),
            Base::Scratch => {
                let label = "FROM scratch".to_owned();
                Ok(self.planner.add_source(Source::Scratch, &platform, label, task.span()))
            }
            Base::Image(name) => {
                let image = self.planner.images.get(&name, written, &platform, task.place(span))?;
                let label = format!("FROM {}", image.pinned);
                Ok(self.planner.add_source(bases::source(&image), &platform, label, task.span()))
            }
            // Without a state, the stage has mistakes of its own; then nothing is built, and any input will do.
            Base::Stage(stage) => Ok(self.done.get(&stage).map_or(self.state.tip, |state| state.tip)),
        }
    }

    /// Files from outside of the build.
    pub(super) fn context(&mut self, task: &Task, place: Place, selector: Selector) -> VertexId {
        let label = context_label(&place);
        let source = Source::Context(ContextSource { place, selector });
        self.planner.add_source(source, self.target, label, task.span())
    }
}

/// The inputs of a step beside the file system it works on, each once.
#[derive(Debug, Default)]
pub(super) struct Inputs(Vec<VertexId>);

impl Inputs {
    /// The number by which the operation calls a vertex.
    pub(super) fn number(&mut self, vertex: VertexId) -> usize {
        let place = self.0.iter().position(|known| *known == vertex).unwrap_or_else(|| {
            self.0.push(vertex);
            self.0.len() - 1
        });
        place + 1
    }

    pub(super) fn into_vertices(self) -> Vec<VertexId> {
        self.0
    }
}
