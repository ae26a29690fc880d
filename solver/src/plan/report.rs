//! What is found while planning, and what of it is told: each thing once, without what `# check=` skips, in the order of
//! the file.

use std::collections::BTreeSet;

use parser::{Diagnostic, Dockerfile, MAX_ERRORS, Severity, Span, lint::Checks};

/// Everything found so far, each thing once: platforms and triggers meet the same mistakes again.
#[derive(Default)]
pub(super) struct Report {
    found: Vec<Diagnostic>,
    /// Where something was found, and what.
    seen: BTreeSet<(Span, String)>,
}

impl Report {
    pub(super) fn push(&mut self, found: Diagnostic) {
        if self.seen.insert((found.span, found.message.clone())) {
            self.found.push(found);
        }
    }

    pub(super) fn extend(&mut self, found: impl IntoIterator<Item = Diagnostic>) {
        found.into_iter().for_each(|found| self.push(found));
    }

    /// What is left when the findings that `# check=` skips are taken out, and what it makes of the others.
    pub(super) fn checked(self, dockerfile: &Dockerfile) -> Vec<Diagnostic> {
        let mut found = self.found;
        let checks = match Checks::read(&dockerfile.directives) {
            Ok(checks) => checks,
            Err(error) => return vec![error],
        };
        found.sort_by_key(|finding| finding.span.start);
        found.retain(|finding| checks.allow(finding));
        found.extend(checks.violation(&found));
        first_errors(found)
    }
}

/// Keeps as many errors as anybody reads, in the order of the file: each is shown with its lines.
fn first_errors(found: Vec<Diagnostic>) -> Vec<Diagnostic> {
    let is_error = |found: &Diagnostic| found.severity == Severity::Error;
    if found.iter().filter(|found| is_error(found)).count() <= MAX_ERRORS {
        return found;
    }
    let mut first: Vec<Diagnostic> = found.into_iter().filter(is_error).take(MAX_ERRORS).collect();
    let last = first.last().map(|found| found.span).unwrap_or_default();
    first.push(Diagnostic::error(last, "too many mistakes; the rest is left out"));
    first
}
