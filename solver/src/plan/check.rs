//! `--check`: everything that is wrong or doubtful, in all stages, whether or not a target needs them.

use std::{collections::BTreeMap, error::Error};

use oci::Platform;
use parser::{Diagnostic, Dockerfile, Severity, Span};

use super::{PlanError, PlanOptions, Planner, bases::Unanswered, stage::StageState, survey, unused};
use crate::traits::{BaseImage, FailureKind, ImageName, Resolver, StepFailure};

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Checked {
    /// Errors and findings, the parser's among them, in the order of the file.
    pub diagnostics: Vec<Diagnostic>,
    /// Whose fault it is that an image could not be had, if one could not; its error is among the others.
    pub unavailable: Option<FailureKind>,
}

/// Looks at the target, or at all stages where none is named, on every platform asked for. An image that cannot be had
/// is an error like any other and keeps no other stage from being looked at; one whose registry does not answer is told
/// of, and taken for one of which nothing is known.
pub fn check(dockerfile: &Dockerfile, options: &PlanOptions, resolver: &dyn Resolver) -> Checked {
    look(Planner::new(dockerfile, options, resolver, Unanswered::Unknown))
}

fn look(mut planner: Planner) -> Checked {
    let dockerfile = planner.dockerfile;
    let mut unavailable = None;
    if let Err(failure) = look_at_all(&mut planner, &mut unavailable) {
        planner.note(failure, &mut unavailable);
    }
    planner.report.extend(planner.images.notices());
    planner.take_over_findings();
    Checked { diagnostics: planner.report.checked(dockerfile), unavailable }
}

/// What else is wrong with a Dockerfile of which some instructions could not be read ([`parser::Parsed::remains`]). No
/// image is asked for: nothing is known of any.
pub fn mistakes(remains: &Dockerfile, options: &PlanOptions) -> Vec<Diagnostic> {
    let last = || remains.stages.len().saturating_sub(1).to_string();
    let target = Some(options.target.clone().unwrap_or_else(last));
    let options = PlanOptions { target, findings: Vec::new(), ..options.clone() };
    let mut found = look(Planner::new(remains, &options, &NoImages, Unanswered::Unasked)).diagnostics;
    // What stands nowhere is the command line's, and may be about what could not be read.
    found.retain(|found| found.severity == Severity::Error && found.span != Span::default());
    found
}

/// Knows no image, and is asked for none.
struct NoImages;

impl Resolver for NoImages {
    fn image(&self, _: &ImageName, _: &Platform) -> Result<BaseImage, StepFailure> {
        Err(StepFailure::new(FailureKind::Unavailable, "no image is looked up"))
    }
}

fn look_at_all(planner: &mut Planner, unavailable: &mut Option<FailureKind>) -> Result<(), PlanError> {
    planner.check_frontend()?;
    let target = survey::target(planner)?;
    planner.report.extend(unused::refused_args(planner));
    planner.report.extend(unused::cache_filters(planner));
    let options = planner.options;
    let implicit = [options.build_platform.clone()];
    let platforms = if options.platforms.is_empty() { &implicit[..] } else { &options.platforms };
    for platform in platforms {
        look_at_platform(planner, target, platform, unavailable)?;
    }
    Ok(())
}

fn look_at_platform(
    planner: &mut Planner,
    target: usize,
    platform: &Platform,
    unavailable: &mut Option<FailureKind>,
) -> Result<(), PlanError> {
    let globals = planner.globals(target, platform)?;
    planner.note_epoch(&globals);
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
            planner.note(failure, unavailable);
        }
    }
    planner.report.extend(unused::build_args(planner, &surveyed));
    Ok(())
}

impl Planner<'_> {
    /// Takes a failure for a finding.
    fn note(&mut self, failure: PlanError, unavailable: &mut Option<FailureKind>) {
        match failure {
            PlanError::Dockerfile { diagnostics } => self.report.extend(diagnostics),
            PlanError::Image { span, failure } => {
                unavailable.get_or_insert(failure.kind);
                let found = Diagnostic::error(span, with_causes(&failure));
                self.report.push(Diagnostic { hint: failure.hint, ..found });
            }
        }
    }
}

#[cfg(test)]
mod tests;

/// What happened and why, in one line; a cause that its effect has told already is not repeated.
fn with_causes(failure: &StepFailure) -> String {
    let mut text = failure.message.clone();
    for cause in std::iter::successors(failure.source(), |cause| (*cause).source()) {
        let cause = cause.to_string();
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}
