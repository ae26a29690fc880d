//! Which stages the target needs, and what each of them stands on, before anything is planned.
//!
//! Stages are gone through from the last to the first: whatever a stage needs comes before it, so when its turn comes
//! it is known whether anybody needs it, and the images of the others are never asked for.

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use oci::Platform;
use parser::{
    Diagnostic, Instruction, Severity, Span,
    ast::{self, InstructionKind, Word},
    suggest, word,
};

use super::{
    PlanError, Planner,
    bases::{self, Base},
    lint, source,
    variables::Environment,
};
use crate::traits::BaseImage;

/// A stage that is needed.
pub(super) struct Surveyed {
    pub(super) base: Base,
    /// The base, where it is an image.
    pub(super) image: Option<Rc<BaseImage>>,
    pub(super) platform: Platform,
    /// What is done in it: the triggers of the base, then what is written.
    pub(super) program: Vec<Task>,
}

/// An instruction to go through.
#[derive(Clone)]
pub(super) struct Task {
    pub(super) instruction: Rc<Instruction>,
    /// Where the trigger is pulled; `None` for what is written in the stage itself.
    pub(super) trigger_at: Option<Span>,
}

impl Task {
    /// Where to point for something in this instruction: a trigger's own text is not in the Dockerfile.
    pub(super) fn place(&self, span: Span) -> Span {
        self.trigger_at.unwrap_or(span)
    }

    pub(super) fn span(&self) -> Span {
        self.place(self.instruction.span)
    }

    /// A mistake in a trigger is shown at a FROM that says nothing of it, so the message has to.
    pub(super) fn explain(&self, error: PlanError) -> PlanError {
        match error {
            PlanError::Dockerfile { diagnostics } if self.trigger_at.is_some() => {
                let explain = |found| of_trigger(&self.instruction.text, found);
                PlanError::Dockerfile { diagnostics: diagnostics.into_iter().map(explain).collect() }
            }
            error => error,
        }
    }
}

fn of_trigger(trigger: &str, found: Diagnostic) -> Diagnostic {
    let message = format!("ONBUILD trigger {trigger:?} of the base: {}", found.message);
    Diagnostic { message, ..found }
}

/// The number of the stage to build.
pub(super) fn target(planner: &Planner) -> Result<usize, Diagnostic> {
    let stages = &planner.dockerfile.stages;
    let Some(name) = &planner.options.target else {
        return Ok(stages.len() - 1);
    };
    let number = name.parse().ok().filter(|number| *number < stages.len());
    planner.stage_before(name, stages.len()).or(number).ok_or_else(|| {
        let known = planner.stage_names();
        let hint = match suggest::nearest(name, known.iter().copied()) {
            Some(nearest) => format!("did you mean {nearest:?}? The stages are: {}", known.join(", ")),
            None if known.is_empty() => "no stage of this Dockerfile has a name".to_owned(),
            None => format!("the stages are: {}", known.join(", ")),
        };
        Diagnostic::error(Span::default(), format!("target stage {name:?} could not be found")).hint(hint)
    })
}

/// Looks at the target and all it needs. A stage that has a mistake is left out, and the mistake reported.
pub(super) fn survey(
    planner: &mut Planner,
    target: usize,
    globals: &Environment,
    platform: &Platform,
) -> Result<BTreeMap<usize, Surveyed>, PlanError> {
    let mut needed = BTreeSet::from([target]);
    let mut surveyed = BTreeMap::new();
    while let Some(number) = needed.pop_last() {
        planner.surveyed.insert(number);
        let looked = look_at(planner, number, globals, platform);
        let Some(stage) = planner.reported(looked)? else { continue };
        needed.extend(stages_used(planner, number, &stage, platform));
        surveyed.insert(number, stage);
    }
    Ok(surveyed)
}

fn look_at(
    planner: &mut Planner,
    number: usize,
    globals: &Environment,
    target: &Platform,
) -> Result<Surveyed, PlanError> {
    let stage = &planner.dockerfile.stages[number];
    let platform = match &stage.platform {
        Some(word) => stage_platform(planner, stage, word, globals)?,
        None => target.clone(),
    };
    let replaced =
        stage.name.as_ref().and_then(|name| bases::context(planner.options, &name.value, &platform));
    let (base, written) = match &replaced {
        Some(base) => (base.clone(), stage.base.value.clone()),
        None => stage_base(planner, number, globals, &platform)?,
    };
    let image = match &base {
        Base::Image(name) => Some(planner.images.get(name, &written, &platform, stage.span)?),
        _ => None,
    };
    let platform = if base == Base::Scratch { target.clone() } else { platform };
    let program =
        if replaced.is_some() { Vec::new() } else { program(planner, stage, &base, image.as_deref())? };
    Ok(Surveyed { base, image, platform, program })
}

/// What FROM names, and how it is written once expanded.
fn stage_base(
    planner: &mut Planner,
    number: usize,
    globals: &Environment,
    platform: &Platform,
) -> Result<(Base, String), PlanError> {
    let stage = &planner.dockerfile.stages[number];
    let name = expand_from(planner, &stage.base, globals)?.value;
    if name.is_empty() {
        let message = format!("base name ({}) should not be blank", stage.base.value);
        let hint = "give the ARG a default, or a value with --build-arg";
        return Err(Diagnostic::error(stage.base.span, message).hint(hint).into());
    }
    let base = match planner.stage_before(&name, number) {
        Some(earlier) => Base::Stage(earlier),
        None => bases::elsewhere(planner.options, &name, platform)
            .map_err(|reason| unknown_base(planner, &name, stage.base.span, reason))?,
    };
    Ok((base, name))
}

pub(super) fn unknown_base(planner: &Planner, name: &str, span: Span, reason: String) -> Diagnostic {
    let found = Diagnostic::error(span, reason);
    match suggest::nearest(name, planner.stage_names()) {
        Some(stage) => found.hint(format!("did you mean the stage {stage:?}?")),
        None => found,
    }
}

fn expand_from(planner: &Planner, word: &Word, globals: &Environment) -> Result<word::Expanded, Diagnostic> {
    let lookup = |name: &str| globals.get(name).map(str::to_owned);
    word::expand(&word.value, planner.dockerfile.directives.escape, &lookup)
        .map_err(|error| Diagnostic::error(word.span, error.to_string()))
}

fn stage_platform(
    planner: &mut Planner,
    stage: &ast::Stage,
    word: &Word,
    globals: &Environment,
) -> Result<Platform, PlanError> {
    let expanded = expand_from(planner, word, globals)?;
    if expanded.value.is_empty() {
        let found =
            Diagnostic::error(word.span, format!("empty platform value from expression {}", word.value));
        let hint = expanded.unmatched.iter().find_map(|name| platform_hint(planner, name, globals));
        return Err(match hint {
            Some(hint) => found.hint(hint).into(),
            None => found.into(),
        });
    }
    planner.report.extend(lint::redundant_target_platform(stage, word, &expanded, globals));
    let failed = |error| format!("failed to parse platform {}: {error}", word.value);
    expanded.value.parse().map_err(|error| Diagnostic::error(word.span, failed(error)).into())
}

/// What to do about a variable of `--platform` that has no value.
fn platform_hint(planner: &Planner, name: &str, globals: &Environment) -> Option<String> {
    if planner.declares_globally(name) {
        return Some(format!("ARG {name} has no value: give it a default, or --build-arg {name}=..."));
    }
    let declared = planner.global_declarations().map(|declared| declared.name.value.as_str());
    let near = suggest::nearest(name, globals.names().chain(declared))?;
    Some(format!("did you mean {near}?"))
}

/// The triggers of the base, then what is written in the stage.
fn program(
    planner: &Planner,
    stage: &ast::Stage,
    base: &Base,
    image: Option<&BaseImage>,
) -> Result<Vec<Task>, PlanError> {
    let triggers = match base {
        Base::Stage(earlier) => {
            let trigger = |instruction: &Instruction| match &instruction.kind {
                InstructionKind::Onbuild { text: _, trigger } => Some(Instruction::clone(trigger)),
                _ => None,
            };
            planner.dockerfile.stages[*earlier].instructions.iter().filter_map(trigger).collect()
        }
        _ => triggers_of(image, stage.span)?,
    };
    let pulled = triggers.into_iter().map(|trigger| (trigger, Some(stage.span)));
    let written = stage.instructions.iter().map(|instruction| (instruction.clone(), None));
    let task = |(instruction, trigger_at)| Task { instruction: Rc::new(instruction), trigger_at };
    Ok(pulled.chain(written).map(task).collect())
}

fn triggers_of(image: Option<&BaseImage>, span: Span) -> Result<Vec<Instruction>, PlanError> {
    let mut triggers = Vec::new();
    for text in image.map(|image| image.config.config.on_build.as_slice()).unwrap_or_default() {
        match parser::parse_instruction(text, '\\') {
            Ok(instruction) => triggers.push(instruction),
            Err(found) => {
                let errors = found.into_iter().filter(|found| found.severity == Severity::Error);
                let here = |found| Diagnostic { span, ..of_trigger(text, found) };
                return Err(PlanError::Dockerfile { diagnostics: errors.map(here).collect() });
            }
        }
    }
    Ok(triggers)
}

/// The earlier stages that a stage needs. References that lead nowhere are left to the planning of the stage.
fn stages_used(planner: &Planner, number: usize, stage: &Surveyed, platform: &Platform) -> Vec<usize> {
    let base = if let Base::Stage(used) = stage.base { Some(used) } else { None };
    let taken = stage.program.iter().map(|task| &task.instruction.kind);
    let taken = taken.flat_map(|kind| source::stages(planner, number, platform, kind));
    base.into_iter().chain(taken).collect()
}
