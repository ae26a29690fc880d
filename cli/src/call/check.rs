//! `--check`: everything that is doubtful about a Dockerfile, with the place and a way to mend it, and what is wrong.

use std::fmt::Write;

use parser::{
    Diagnostic, Severity,
    lint::{Rule, rule},
};
use serde::Serialize;
use solver::plan::Checked;

use super::{Answer, json};
use crate::{
    failure::{self, Failure, harmless},
    inputs::Source,
    report,
    spec::call::{CallSpec, Format},
};

/// A finding of a lint rule.
struct Finding<'a> {
    found: &'a Diagnostic,
    rule: &'static Rule,
}

/// The answer to what has been found.
pub fn answer(checked: Checked, source: &Source, call: CallSpec) -> Answer {
    let Checked { diagnostics: all, unavailable } = checked;
    let findings: Vec<Finding<'_>> = all.iter().filter_map(finding).collect();
    let has_errors = all.iter().any(|found| found.severity == Severity::Error);
    let text = match call.format {
        Format::Text => text(&findings, source, has_errors),
        Format::Json => json(&findings, &all, source),
    };
    let doubts = |found: &&Diagnostic| found.severity == Severity::Warning && found.rule.is_none();
    let warnings = all.iter().filter(doubts).map(|found| report::warning_line(found, source)).collect();
    let exit_code = if findings.is_empty() || call.ignore_status { 0 } else { failure::BUILD };
    let failure = has_errors.then(|| Failure::Checked { diagnostics: all, unavailable });
    Answer { text, warnings, failure, exit_code }
}

fn finding(found: &Diagnostic) -> Option<Finding<'_>> {
    Some(Finding { found, rule: rule(found.rule?)? })
}

fn text(findings: &[Finding<'_>], source: &Source, has_errors: bool) -> String {
    let mut text = match findings.len() {
        0 if has_errors => String::new(),
        0 => "Check complete, no warnings found.\n".to_owned(),
        1 => "Check complete, 1 warning has been found!\n".to_owned(),
        count => format!("Check complete, {count} warnings have been found!\n"),
    };
    for Finding { found, rule } in findings {
        let url = if rule.url.is_empty() { String::new() } else { format!(" - {}", rule.url) };
        let _ = write!(text, "\nWARNING: {}{url}\n{}\n", rule.name, harmless(&found.message));
        text += &report::excerpt(source, found.span);
        let hint = found.hint.as_deref().unwrap_or(rule.mend);
        let _ = writeln!(text, "hint: {}", harmless(hint));
    }
    text
}

#[derive(Serialize)]
struct Results<'a> {
    warnings: Vec<Warning<'a>>,
    sources: [SourceInfo<'a>; 1],
    #[serde(rename = "buildError", skip_serializing_if = "Option::is_none")]
    build_error: Option<BuildError<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Warning<'a> {
    rule_name: &'static str,
    description: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    url: &'static str,
    detail: &'a str,
    /// How to mend it: ours, buildx has none.
    hint: &'a str,
    location: json::Location,
}

#[derive(Serialize)]
struct SourceInfo<'a> {
    filename: &'a str,
    data: String,
    language: &'static str,
}

#[derive(Serialize)]
struct BuildError<'a> {
    message: &'a str,
    location: json::Location,
}

impl<'a> Warning<'a> {
    fn of(finding: &Finding<'a>, source: &Source) -> Self {
        let Finding { found, rule } = finding;
        Self {
            rule_name: rule.name,
            description: rule.what,
            url: rule.url,
            detail: &found.message,
            hint: found.hint.as_deref().unwrap_or(rule.mend),
            location: json::Location::of(found.span, source),
        }
    }
}

fn json(findings: &[Finding<'_>], all: &[Diagnostic], source: &Source) -> String {
    let error = all.iter().find(|found| found.severity == Severity::Error);
    json::pretty(&Results {
        warnings: findings.iter().map(|finding| Warning::of(finding, source)).collect(),
        sources: [SourceInfo { filename: &source.name, data: json::bytes(source), language: "Dockerfile" }],
        build_error: error.map(|found| BuildError {
            message: &found.message,
            location: json::Location::of(found.span, source),
        }),
    })
}
