//! `# check=skip=RULE,...;error=true`.

use crate::ast::{Spanned, Word};
use crate::diagnostic::Diagnostic;

/// What a Dockerfile says about lint rules.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Checks {
    skip: Vec<String>,
    error: Option<Word>,
}

impl Checks {
    /// Reads the value of the directive. An option that is not known is an error.
    pub fn read(directive: Option<&Word>) -> Result<Checks, Diagnostic> {
        let mut checks = Checks::default();
        let Some(word) = directive.filter(|word| !word.value.trim().is_empty()) else { return Ok(checks) };
        let refuse = |message: String| Err(Diagnostic::error(word.span, message));
        for option in word.value.trim().splitn(3, ';') {
            let Some((key, value)) = option.split_once('=') else {
                return refuse(format!("invalid check option {option:?}"));
            };
            match (key.trim(), value.trim()) {
                ("skip", value) => checks.skip = list(value),
                // It asks for rules that are off by default; we have none of those.
                ("experimental", _) => {}
                ("error", value) => match boolean(value) {
                    Some(error) => checks.error = error.then(|| word.clone()),
                    None => {
                        return refuse(format!("failed to parse check option {option:?}: invalid syntax"));
                    }
                },
                (key, _) => return refuse(format!("invalid check option {key:?}")),
            }
        }
        Ok(checks)
    }

    /// Whether findings of `rule` are wanted.
    pub fn allows(&self, rule: &str) -> bool {
        !self.skip.iter().any(|skipped| skipped == "all" || skipped == rule)
    }

    /// The error that findings amount to where `error=true` is set.
    pub fn violation(&self, findings: &[Diagnostic]) -> Option<Diagnostic> {
        let Spanned { span, .. } = self.error.as_ref()?;
        let mut rules: Vec<&str> = findings.iter().filter_map(|finding| finding.rule).collect();
        rules.sort_unstable();
        rules.dedup();
        if rules.is_empty() {
            return None;
        }
        Some(Diagnostic::error(*span, format!("lint violation found for rules: {}", rules.join(", "))))
    }
}

fn list(value: &str) -> Vec<String> {
    value.split(',').map(|rule| rule.trim().to_owned()).collect()
}

/// Go's `strconv.ParseBool`.
fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}
