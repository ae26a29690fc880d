//! What can be said about a Dockerfile without building it: its targets, and what a build of one of them takes.
//!
//! An outline needs the configs of base images, whose triggers and settings belong to it, but no layer of them; the
//! list of targets needs nothing but the text. As with BuildKit, an outline is of the first platform that is asked for,
//! and an argument is in it when a FROM or an ARG of a needed stage uses it.

use std::collections::{BTreeMap, BTreeSet};

use parser::{
    Dockerfile, Severity, Span,
    ast::{ArgDeclaration, Instruction, InstructionKind},
    word,
};

use super::{
    PlanError, PlanOptions, Planner, bases::Unanswered, stage::StageState, survey, variables::Environment,
};
use crate::{
    op::{Mount, Op},
    traits::Resolver,
};

/// A stage that can be a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StageInfo {
    /// As written; stages without a name are targets by their number.
    pub name: Option<String>,
    /// What the comment above it says.
    pub description: Option<String>,
    /// What it is built on, as written.
    pub base: String,
    /// `--platform`, as written.
    pub platform: Option<String>,
    /// Whether it is built when no target is named.
    pub is_default: bool,
    /// The FROM line.
    pub span: Span,
}

/// What a build of a target takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outline {
    /// The target's name, if it has one.
    pub name: Option<String>,
    /// What the comment above it says.
    pub description: Option<String>,
    /// Build arguments, in the order of the file.
    pub args: Vec<OutlineArg>,
    /// Secrets, in the order of the file.
    pub secrets: Vec<SecretUse>,
    /// SSH agents, in the order of the file.
    pub ssh: Vec<SshUse>,
    /// Cache mounts, in the order of the file.
    pub cache: Vec<CacheUse>,
    /// Which images it was made without, since their registries did not answer.
    pub notices: Vec<String>,
}

/// A build argument.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutlineArg {
    /// Its name.
    pub name: String,
    /// What the comment above it says.
    pub description: Option<String>,
    /// What it has in this build: what the command line gives, else its default.
    pub value: Option<String>,
    /// Where it is declared.
    pub span: Span,
}

/// A secret that a step mounts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretUse {
    /// Its id.
    pub name: String,
    /// Whether a build without it fails.
    pub required: bool,
    /// The first instruction that mounts it.
    pub span: Span,
}

/// An SSH agent that a step mounts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshUse {
    /// Its id.
    pub name: String,
    /// Whether a build without it fails.
    pub required: bool,
    /// The first instruction that mounts it.
    pub span: Span,
}

/// A cache mount of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheUse {
    /// Its id.
    pub id: String,
    /// The first instruction that mounts it.
    pub span: Span,
}

/// All stages, in the order of the file.
pub fn targets(dockerfile: &Dockerfile) -> Vec<StageInfo> {
    let last = dockerfile.stages.len() - 1;
    let written = |word: &parser::ast::Word| word.value.clone();
    let info = |(number, stage): (usize, &parser::ast::Stage)| StageInfo {
        name: stage.name.as_ref().map(written),
        description: stage.comment.clone(),
        base: stage.base.value.clone(),
        platform: stage.platform.as_ref().map(written),
        is_default: number == last,
        span: stage.span,
    };
    dockerfile.stages.iter().enumerate().map(info).collect()
}

/// What a build with these options takes.
///
/// # Errors
/// As [`super::plan`].
pub fn outline(
    dockerfile: &Dockerfile,
    options: &PlanOptions,
    resolver: &dyn Resolver,
) -> Result<Outline, PlanError> {
    let mut planner = Planner::new(dockerfile, options, resolver, Unanswered::Unknown);
    let planned = read(&mut planner);
    let planned = planner.reported(planned)?;
    let found = planner.report.checked(dockerfile);
    match planned {
        Some(outline) if found.iter().all(|found| found.severity != Severity::Error) => Ok(outline),
        _ => Err(PlanError::Dockerfile { diagnostics: found }),
    }
}

fn read(planner: &mut Planner) -> Result<Outline, PlanError> {
    planner.check_frontend()?;
    let target = survey::target(planner)?;
    let options = planner.options;
    let platform = options.platforms.first().unwrap_or(&options.build_platform);
    let globals = planner.globals(target, platform)?;
    let stages = survey::survey(planner, target, &globals, platform)?;
    let mut done = BTreeMap::new();
    planner.stages(&stages, &globals, platform, &mut done)?;
    let stage = &planner.dockerfile.stages[target];
    let (secrets, ssh, cache) = mounts(planner);
    Ok(Outline {
        name: stage.name.as_ref().map(|name| name.value.clone()),
        description: stage.comment.clone(),
        args: args(planner, &globals, &done),
        secrets,
        ssh,
        cache,
        notices: planner.images.notices().into_iter().map(|notice| notice.message).collect(),
    })
}

/// The arguments of the needed stages; what a later stage says of a name counts before what an earlier one does.
fn args(planner: &Planner, globals: &Environment, done: &BTreeMap<usize, StageState>) -> Vec<OutlineArg> {
    let global = global_args(planner, globals);
    let mut found: BTreeMap<String, OutlineArg> = BTreeMap::new();
    for (number, state) in done.iter().rev() {
        for declared in &state.declared {
            if let Some(own) = &declared.own {
                found.entry(declared.name.clone()).or_insert_with(|| own.clone());
            }
        }
        let inherited = state.declared.iter().filter(|declared| declared.own.is_none());
        let from = used_in_from(planner, *number, globals);
        for name in closure(&global, inherited.map(|declared| declared.name.clone()).chain(from)) {
            if let Some((arg, _)) = global.get(&name) {
                found.entry(name).or_insert_with(|| arg.clone());
            }
        }
    }
    let mut args: Vec<OutlineArg> = found.into_values().collect();
    args.sort_by(|a, b| (a.span.start, &a.name).cmp(&(b.span.start, &b.name)));
    args
}

type GlobalArgs = BTreeMap<String, (OutlineArg, Vec<String>)>;

/// The global arguments, and the variables in the default of each.
fn global_args(planner: &Planner, globals: &Environment) -> GlobalArgs {
    let mut found = GlobalArgs::new();
    for instruction in &planner.dockerfile.global_args {
        let Instruction { kind: InstructionKind::Arg(declarations), span, .. } = instruction else {
            continue;
        };
        for ArgDeclaration { name, default, comment } in declarations {
            let is_given = planner.options.build_args.contains_key(&name.value);
            let default = default.as_ref().filter(|_| !is_given);
            let uses = default.map(|default| names_in(planner, &default.value, globals)).unwrap_or_default();
            let arg = OutlineArg {
                name: name.value.clone(),
                description: comment.clone(),
                value: globals.get(&name.value).map(str::to_owned),
                span: *span,
            };
            found.insert(name.value.clone(), (arg, uses));
        }
    }
    found
}

fn used_in_from(planner: &Planner, number: usize, globals: &Environment) -> Vec<String> {
    let stage = &planner.dockerfile.stages[number];
    let words = [Some(&stage.base), stage.platform.as_ref()].into_iter().flatten();
    words.flat_map(|word| names_in(planner, &word.value, globals)).collect()
}

fn names_in(planner: &Planner, text: &str, globals: &Environment) -> Vec<String> {
    let lookup = |name: &str| globals.get(name).map(str::to_owned);
    let expanded = word::expand(text, planner.dockerfile.directives.escape, &lookup);
    expanded.map(|expanded| expanded.matched).unwrap_or_default()
}

/// These names, and those that the defaults of global arguments lead to.
fn closure(global: &GlobalArgs, names: impl Iterator<Item = String>) -> BTreeSet<String> {
    let mut open: Vec<String> = names.collect();
    let mut seen = BTreeSet::new();
    while let Some(name) = open.pop() {
        if !seen.contains(&name) {
            open.extend(global.get(&name).map(|(_, uses)| uses.clone()).unwrap_or_default());
            seen.insert(name);
        }
    }
    seen
}

/// What the steps mount of the command line, each once.
fn mounts(planner: &Planner) -> (Vec<SecretUse>, Vec<SshUse>, Vec<CacheUse>) {
    let mut secrets: BTreeMap<&str, SecretUse> = BTreeMap::new();
    let mut agents: BTreeMap<&str, SshUse> = BTreeMap::new();
    let mut caches: BTreeMap<&str, CacheUse> = BTreeMap::new();
    let namespace = planner.options.build_args.get("BUILDKIT_CACHE_MOUNT_NS");
    let namespace = format!("{}/", namespace.map(String::as_str).unwrap_or_default());
    for (_, vertex) in planner.graph.vertices() {
        let (Op::Exec(exec), span) = (&vertex.op, vertex.span.unwrap_or_default()) else { continue };
        for mount in &exec.mounts {
            match mount {
                Mount::Secret(secret) => {
                    let (name, required) = (secret.id.clone(), secret.required);
                    secrets.entry(&secret.id).or_insert(SecretUse { name, required, span });
                }
                Mount::Ssh(agent) => {
                    let (name, required) = (agent.id.clone(), agent.required);
                    agents.entry(&agent.id).or_insert(SshUse { name, required, span });
                }
                Mount::Cache(cache) => {
                    // Without the namespace, which is not the Dockerfile's.
                    let id = cache.id.strip_prefix(&namespace).unwrap_or(&cache.id);
                    caches.entry(id).or_insert(CacheUse { id: id.to_owned(), span });
                }
                Mount::Bind(_) | Mount::Tmpfs { .. } => {}
            }
        }
    }
    (
        in_order(secrets, |used| used.span),
        in_order(agents, |used| used.span),
        in_order(caches, |used| used.span),
    )
}

fn in_order<T>(uses: BTreeMap<&str, T>, span: impl Fn(&T) -> Span) -> Vec<T> {
    let mut uses: Vec<T> = uses.into_values().collect();
    uses.sort_by_key(|used| span(used).start);
    uses
}

#[cfg(test)]
mod tests;
