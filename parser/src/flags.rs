//! The flags of each instruction: which there are, and what may be given to them.

use crate::ast::{Spanned, Word};
use crate::diagnostic::Diagnostic;
use crate::grammar::Flag;
use crate::lexer::Line;
use crate::suggest;

/// How a flag is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// `--flag` or `--flag=true|false`, once.
    Switch,
    /// `--flag=value`, once.
    One,
    /// `--flag=value`, any number of times.
    Many,
}

/// Every instruction that has flags.
const KNOWN: [(&str, &[(&str, Kind)]); 5] = [
    (
        "ADD",
        &[
            ("checksum", Kind::One),
            ("chmod", Kind::One),
            ("chown", Kind::One),
            ("exclude", Kind::Many),
            ("keep-git-dir", Kind::Switch),
            ("link", Kind::Switch),
            ("unpack", Kind::Switch),
        ],
    ),
    (
        "COPY",
        &[
            ("chmod", Kind::One),
            ("chown", Kind::One),
            ("exclude", Kind::Many),
            ("from", Kind::One),
            ("link", Kind::Switch),
            ("parents", Kind::Switch),
        ],
    ),
    ("FROM", &[("platform", Kind::One)]),
    (
        "HEALTHCHECK",
        &[
            ("interval", Kind::One),
            ("retries", Kind::One),
            ("start-interval", Kind::One),
            ("start-period", Kind::One),
            ("timeout", Kind::One),
        ],
    ),
    (
        "RUN",
        &[("device", Kind::Many), ("mount", Kind::Many), ("network", Kind::One), ("security", Kind::One)],
    ),
];

/// The flags of one instruction that are right.
#[derive(Debug, Default)]
pub(crate) struct Flags {
    given: Vec<(&'static str, Word)>,
}

impl Flags {
    /// Checks the flags of `instruction` (upper case); what is wrong goes to `diagnostics`.
    pub(crate) fn check(
        instruction: &str,
        flags: &[Flag<'_>],
        line: &Line,
        diagnostics: &mut Vec<Diagnostic>,
    ) -> Flags {
        let known = known(instruction);
        let mut checked = Flags::default();
        for flag in flags {
            let span = line.span_of_part(flag.source);
            let Some((name, kind)) = known.iter().find(|(name, _)| *name == flag.name) else {
                diagnostics.push(unknown(instruction, &flag.name, Diagnostic::error(span, "")));
                continue;
            };
            let duplicate = *kind != Kind::Many && checked.given.iter().any(|(given, _)| given == name);
            let value =
                if duplicate { Err(format!("duplicate flag specified: --{name}")) } else { kind.value(flag) };
            match value {
                Ok(value) => checked.given.push((name, Spanned { value, span })),
                Err(message) => diagnostics.push(Diagnostic::error(span, message)),
            }
        }
        checked
    }

    /// The value of a flag that is given at most once; an empty value is as good as none.
    pub(crate) fn one(&self, name: &str) -> Option<Word> {
        self.many(name).into_iter().find(|word| !word.value.is_empty())
    }

    /// All values of a flag, in order.
    pub(crate) fn many(&self, name: &str) -> Vec<Word> {
        let given = self.given.iter().filter(|(given, _)| *given == name);
        given.map(|(_, word)| word.clone()).collect()
    }

    /// What a switch was set to.
    pub(crate) fn switch(&self, name: &str) -> Option<bool> {
        self.one(name).map(|word| word.value == "true")
    }
}

impl Kind {
    fn value(self, flag: &Flag<'_>) -> Result<String, String> {
        let missing = || format!("missing a value on flag: --{}", flag.name);
        match (self, flag.value.as_deref()) {
            (Kind::Switch, None) => Ok("true".to_owned()),
            (Kind::Switch, Some("")) => Err(missing()),
            (Kind::Switch, Some(value)) => match value.to_ascii_lowercase() {
                lower if lower == "true" || lower == "false" => Ok(lower),
                _ => Err(format!("expecting boolean value for flag --{}, not: {value}", flag.name)),
            },
            (Kind::One | Kind::Many, None) => Err(missing()),
            (Kind::One | Kind::Many, Some(value)) => Ok(value.to_owned()),
        }
    }
}

fn known(instruction: &str) -> &'static [(&'static str, Kind)] {
    let found = KNOWN.iter().find(|(name, _)| *name == instruction);
    found.map_or(&[], |(_, flags)| flags)
}

fn unknown(instruction: &str, name: &str, error: Diagnostic) -> Diagnostic {
    let error = Diagnostic { message: format!("unknown flag: --{name}"), ..error };
    if let Some(near) = suggest::nearest(name, known(instruction).iter().map(|(name, _)| *name)) {
        return error.hint(format!("did you mean --{near}?"));
    }
    let owners: Vec<&str> = KNOWN
        .iter()
        .filter(|(_, flags)| flags.iter().any(|(known, _)| *known == name))
        .map(|(owner, _)| *owner)
        .collect();
    if owners.is_empty() {
        return error;
    }
    error.hint(format!("--{name} is a flag of {}, not of {instruction}", owners.join(" and ")))
}
