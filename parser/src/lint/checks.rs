//! `# check=skip=RULE,...;error=true`.

use crate::ast::{Spanned, Word};
use crate::diagnostic::Diagnostic;
use crate::go;
use crate::lint::RULES;

/// What a Dockerfile says about lint rules.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Checks {
    skip: Rules,
    experimental: Rules,
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
                ("skip", value) => checks.skip = Rules::read(value),
                ("experimental", value) => checks.experimental = Rules::read(value),
                ("error", value) => match go::boolean(value) {
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

    /// Whether findings of `rule` are wanted: experimental rules have to be asked for, and are never skipped.
    pub fn allows(&self, rule: &str) -> bool {
        let is_experimental = RULES.iter().any(|known| known.name == rule && known.experimental);
        if is_experimental { self.experimental.hold(rule) } else { !self.skip.hold(rule) }
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
