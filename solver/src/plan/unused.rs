//! What the command line says and the Dockerfile has no use for: told, for it is a slip of the pen as a rule, and
//! refused where BuildKit would make another image of it.

use std::collections::{BTreeMap, BTreeSet};

use parser::{
    Diagnostic, Span,
    ast::{Instruction, InstructionKind},
    suggest,
};

use super::{PlanOptions, Planner, survey::Surveyed, variables};
use crate::op::{HOSTNAME_RULE, is_hostname};

/// Build arguments by which BuildKit makes another image, or none, and what there is instead.
const REFUSED: [(&str, &str); 1] = [("BUILDKIT_MULTI_PLATFORM", "the result is one image, not an index")];

/// Those that are obeyed, here or by the command line.
const OBEYED: [&str; 6] = [
    "BUILDKIT_CACHE_MOUNT_NS",
    "BUILDKIT_CONTEXT_KEEP_GIT_DIR",
    "BUILDKIT_DOCKERFILE_CHECK",
    "BUILDKIT_INLINE_CACHE",
    HOSTNAME,
    "BUILDKIT_SYNTAX",
];

const HOSTNAME: &str = "BUILDKIT_SANDBOX_HOSTNAME";

/// The host name that RUN steps are asked to have.
pub(super) fn hostname(options: &PlanOptions) -> Option<&str> {
    options.build_args.get(HOSTNAME).map(String::as_str).filter(|name| !name.is_empty())
}

/// Refuses what no machine is called.
fn bad_hostname(options: &PlanOptions) -> Option<Diagnostic> {
    let name = hostname(options).filter(|name| !is_hostname(name))?;
    let message = format!("invalid host name {name:?} in the build argument {HOSTNAME}");
    Some(Diagnostic::error(Span::default(), message).hint(HOSTNAME_RULE))
}

/// Refuses build arguments that BuildKit itself obeys and this builder does not.
pub(super) fn refused_args(planner: &Planner) -> Vec<Diagnostic> {
    let given = |name: &str| planner.options.build_args.get(name).filter(|value| asks_for_something(value));
    let refuse = |(name, instead): &(&str, &str)| {
        let message = format!("the build argument {name} is not supported");
        given(name).map(|_| Diagnostic::error(Span::default(), message).hint(*instead))
    };
    REFUSED.iter().filter_map(refuse).chain(bad_hostname(planner.options)).collect()
}

fn asks_for_something(value: &str) -> bool {
    !matches!(value.to_ascii_lowercase().as_str(), "" | "0" | "f" | "false")
}

/// Build arguments that no ARG takes, of any stage or of a trigger of a base; those of BuildKit's own without a
/// meaning here are told apart.
pub(super) fn build_args(planner: &Planner, surveyed: &BTreeMap<usize, Surveyed>) -> Vec<Diagnostic> {
    let triggers = surveyed.values().flat_map(|stage| stage.program.iter().map(|task| &*task.instruction));
    let written = planner.dockerfile.stages.iter().flat_map(|stage| &stage.instructions);
    let taken: BTreeSet<&str> =
        written.chain(&planner.dockerfile.global_args).chain(triggers).flat_map(declared).collect();
    let unused = planner.options.build_args.keys().filter(|name| !taken.contains(name.as_str()));
    let unused = unused.filter(|name| !variables::is_predefined(name)).map(String::as_str);
    let (buildkits, others): (Vec<&str>, Vec<&str>) = unused.partition(|name| name.starts_with("BUILDKIT_"));
    let known = |name: &&str| !OBEYED.contains(name) && REFUSED.iter().all(|(refused, _)| refused != name);
    let nothing = |name: &str| Diagnostic::notice(format!("the build argument {name} has no effect here"));
    let not_consumed = || {
        let message = format!("one or more build-args [{}] were not consumed", others.join(" "));
        let near = others.iter().find_map(|name| suggest::nearest(name, taken.iter().copied()));
        Diagnostic::notice(match near {
            Some(near) => format!("{message} (did you mean {near}?)"),
            None => message,
        })
    };
    let others = (!others.is_empty()).then(not_consumed);
    buildkits.into_iter().filter(known).map(nothing).chain(others).collect()
}

/// The variables an instruction declares, or does where it is a trigger.
fn declared(instruction: &Instruction) -> Vec<&str> {
    match &instruction.kind {
        InstructionKind::Arg(declarations) => {
            declarations.iter().map(|declaration| declaration.name.value.as_str()).collect()
        }
        InstructionKind::Onbuild { text: _, trigger } => declared(trigger),
        _ => Vec::new(),
    }
}

/// Names in `--no-cache-filter` that no stage has.
pub(super) fn cache_filters(planner: &Planner) -> Vec<Diagnostic> {
    let names = planner.stage_names();
    let unknown = |filter: &&String| !names.iter().any(|name| name.eq_ignore_ascii_case(filter));
    let there_are = match names[..] {
        [] => "no stage of this Dockerfile has a name".to_owned(),
        _ => format!("the stages are: {}", names.join(", ")),
    };
    let notice = |filter: &String| {
        Diagnostic::notice(format!(
            "--no-cache-filter {filter:?} names no stage, so it has no effect; {there_are}"
        ))
    };
    planner.options.no_cache_filter.iter().filter(unknown).map(notice).collect()
}
