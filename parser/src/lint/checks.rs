//! `# check=skip=RULE,...;error=true`.

use crate::ast::{Directives, Span};
use crate::diagnostic::Diagnostic;
use crate::go;

/// What a Dockerfile says about lint rules.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Checks {
    skip: Rules,
    experimental: Rules,
    /// Where findings are asked to be errors, if they are.
    error: Option<Span>,
    /// What counts for one instruction besides, in the order of the text.
    local: Vec<(Span, Checks)>,
}

impl Checks {
    /// Reads the directive, and those that stand above single instructions; one of these that is wrong says nothing.
    ///
    /// # Errors
    /// An option of the directive that is not known.
    pub fn read(directives: &Directives) -> Result<Checks, Diagnostic> {
        let mut checks = match &directives.check {
            Some(word) => Self::options(&word.value, word.span)
                .map_err(|message| Diagnostic::error(word.span, message))?,
            None => Checks::default(),
        };
        let local = directives.local_checks.iter();
        let local = local.filter_map(|local| {
            Some((local.instruction, Self::options(&local.check, local.instruction).ok()?))
        });
        checks.local = local.collect();
        Ok(checks)
    }

    fn options(text: &str, span: Span) -> Result<Checks, String> {
        let mut checks = Checks::default();
        let text = without_remark(text);
        if text.is_empty() {
            return Ok(checks);
        }
        for option in text.splitn(3, ';') {
            let Some((key, value)) = option.split_once('=') else {
                return Err(format!("invalid check option {}", go::quote(option)));
            };
            match (key.trim(), value.trim()) {
                ("skip", value) => checks.skip = Rules::read(value),
                ("experimental", value) => checks.experimental = Rules::read(value),
                ("error", value) => match go::boolean(value) {
                    Some(error) => checks.error = error.then_some(span),
                    None => {
                        let option = go::quote(option);
                        return Err(format!("failed to parse check option {option}: invalid syntax"));
                    }
                },
                (key, _) => return Err(format!("invalid check option {}", go::quote(key))),
            }
        }
        Ok(checks)
    }

    /// Whether a finding is wanted; what is no rule's finding always is.
    pub fn allow(&self, finding: &Diagnostic) -> bool {
        finding.rule.is_none_or(|rule| {
            let place = finding.span.start;
            let behind = self.local.partition_point(|(span, _)| span.start <= place);
            let here = self.local[..behind].last().filter(|(span, _)| span.contains(place));
            let all = || std::iter::once(self).chain(here.map(|(_, checks)| checks));
            // Experimental rules have to be asked for, and are never skipped.
            match super::rule(rule).is_some_and(|rule| rule.experimental) {
                true => all().any(|checks| checks.experimental.hold(rule)),
                false => !all().any(|checks| checks.skip.hold(rule)),
            }
        })
    }

    /// The error that findings amount to where `error=true` is set.
    pub fn violation(&self, findings: &[Diagnostic]) -> Option<Diagnostic> {
        let local = self.local.iter().find_map(|(_, checks)| checks.error);
        let span = self.error.or(local)?;
        let mut rules: Vec<&str> = findings.iter().filter_map(|finding| finding.rule).collect();
        rules.sort_unstable();
        rules.dedup();
        if rules.is_empty() {
            return None;
        }
        Some(Diagnostic::error(span, format!("lint violation found for rules: {}", rules.join(", "))))
    }
}

/// The options without what is said about them: `skip=all // as long as it is a draft`.
fn without_remark(text: &str) -> &str {
    let remark = text.match_indices("//").find(|(at, _)| text[..*at].ends_with([' ', '\t']));
    remark.map_or(text, |(at, _)| &text[..at]).trim()
}

/// What `skip=` or `experimental=` names.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Rules {
    All,
    Named(Vec<String>),
}

impl Default for Rules {
    fn default() -> Self {
        Self::Named(Vec::new())
    }
}

impl Rules {
    fn read(value: &str) -> Self {
        match value {
            "all" => Self::All,
            names => Self::Named(names.split(',').map(|rule| rule.trim().to_owned()).collect()),
        }
    }

    fn hold(&self, rule: &str) -> bool {
        match self {
            Self::All => true,
            Self::Named(names) => names.iter().any(|name| name == rule),
        }
    }
}
