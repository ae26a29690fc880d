//! `--check`: everything that is wrong or doubtful, in all stages, whether or not a target needs them.

use std::collections::BTreeMap;

use oci::Platform;
use parser::{Diagnostic, Dockerfile};

use super::{PlanError, PlanOptions, Planner, stage::StageState, survey, unused};
use crate::traits::Resolver;

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Checked {
    /// Errors and findings of lint rules that the planner sees; the parser's are beside its tree.
    pub diagnostics: Vec<Diagnostic>,
}

/// Looks at the target, or at all stages where none is named, on every platform asked for. An image that cannot be had
/// is an error like any other and keeps no other stage from being looked at.
pub fn check(dockerfile: &Dockerfile, options: &PlanOptions, resolver: &dyn Resolver) -> Checked {
    let mut planner = Planner::new(dockerfile, options, resolver);
    if let Err(failure) = look_at_all(&mut planner) {
        planner.note(failure);
    }
    Checked { diagnostics: planner.report.checked(dockerfile) }
}

fn look_at_all(planner: &mut Planner) -> Result<(), PlanError> {
    planner.check_frontend()?;
    let target = survey::target(planner)?;
    planner.report.extend(unused::refused_args(planner));
    planner.report.extend(unused::cache_filters(planner));
    let options = planner.options;
    let implicit = [options.build_platform.clone()];
    let platforms = if options.platforms.is_empty() { &implicit[..] } else { &options.platforms };
    for platform in platforms {
        look_at_platform(planner, target, platform)?;
    }
    Ok(())
}

fn look_at_platform(planner: &mut Planner, target: usize, platform: &Platform) -> Result<(), PlanError> {
    let globals = planner.globals(target, platform)?;
    let first = if planner.options.target.is_some() { target } else { 0 };
    let mut done: BTreeMap<usize, StageState> = BTreeMap::new();
    let mut surveyed = BTreeMap::new();
    for number in (first..=target).rev() {
        if surveyed.contains_key(&number) {
            continue;
        }
        let looked = survey::survey(planner, number, &globals, platform);
        let planned = looked.and_then(|stages| {
            let planned = planner.stages(&stages, &globals, platform, &mut done);
            surveyed.extend(stages);
            planned
        });
        if let Err(failure) = planned {
            planner.note(failure);
        }
    }
    planner.report.extend(unused::build_args(planner, &surveyed));
    Ok(())
}

impl Planner<'_> {
    /// Takes a failure for a finding.
    fn note(&mut self, failure: PlanError) {
        match failure {
            PlanError::Dockerfile { diagnostics } => self.report.extend(diagnostics),
            PlanError::Image { span, failure } => {
                let found = Diagnostic::error(span, failure.message.clone());
                self.report.push(Diagnostic { hint: failure.hint, ..found });
            }
        }
    }
}

#[cfg(test)]
mod tests;
