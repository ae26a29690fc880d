//! The JSON in which BuildKit's frontend answers `--call=outline`, `targets` and `check`: its field names, its order, its
//! places (one range a line, no columns), the Dockerfile itself among them as `sources`.

use parser::{Diagnostic, Severity, Span, line_column, lint};
use serde::{Serialize, Serializer};

use super::{Outline, StageInfo};

/// The outline, as `--call=outline,format=json` prints it.
pub fn outline_json(outline: &Outline, text: &str) -> String {
    let Outline { name, description, args, secrets, ssh, cache } = outline;
    pretty(&OutlineForm {
        name,
        description,
        args: args.iter().map(|arg| arg.form(text)).collect(),
        secrets: secrets.iter().map(|used| Use::new(&used.name, used.required, used.span, text)).collect(),
        ssh: ssh.iter().map(|used| Use::new(&used.name, used.required, used.span, text)).collect(),
        cache: cache.iter().map(|used| Cache { id: &used.id, location: location(used.span, text) }).collect(),
        sources: [Base64(text)],
    })
}

/// The stages, as `--call=targets,format=json` prints them.
pub fn targets_json(targets: &[StageInfo], text: &str) -> String {
    let target = |info: &StageInfo| TargetForm {
        name: info.name.clone(),
        default: info.is_default,
        description: info.description.clone(),
        base: info.base.clone(),
        platform: info.platform.clone(),
        location: location(info.span, text),
    };
    pretty(&Targets { targets: targets.iter().map(target).collect(), sources: [Base64(text)] })
}

/// What a check found, as `--call=check,format=json` prints it: findings of rules as warnings, and the first error.
pub fn check_json(found: &[Diagnostic], file_name: &str, text: &str) -> String {
    let warning = |finding: &Diagnostic| {
        let rule = lint::rule(finding.rule?)?;
        Some(Warning {
            rule_name: rule.name,
            description: rule.what,
            url: rule.url,
            detail: finding.message.clone(),
            location: location(finding.span, text),
        })
    };
    let error = found.iter().find(|finding| finding.severity == Severity::Error);
    let source = SourceFile { filename: file_name, data: Base64(text), language: "Dockerfile" };
    pretty(&Findings {
        warnings: found.iter().filter_map(warning).collect(),
        sources: [source],
        build_error: error
            .map(|error| BuildError { message: error.message.clone(), location: location(error.span, text) }),
    })
}

fn pretty(form: &impl Serialize) -> String {
    serde_json::to_string_pretty(form).expect("forms of strings, numbers and lists can be written")
}

#[derive(Serialize)]
struct OutlineForm<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: &'a Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: &'a Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    args: Vec<Arg<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    secrets: Vec<Use<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ssh: Vec<Use<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    cache: Vec<Cache<'a>>,
    sources: [Base64<'a>; 1],
}

#[derive(Serialize)]
struct Arg<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: &'a Option<String>,
    #[serde(skip_serializing_if = "str::is_empty")]
    value: &'a str,
    location: Location,
}

impl super::OutlineArg {
    fn form(&self, text: &str) -> Arg<'_> {
        let value = self.value.as_deref().unwrap_or("");
        Arg { name: &self.name, description: &self.description, value, location: location(self.span, text) }
    }
}

#[derive(Serialize)]
struct Use<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    required: bool,
    location: Location,
}

impl<'a> Use<'a> {
    fn new(name: &'a str, required: bool, span: Span, text: &str) -> Self {
        Self { name, required, location: location(span, text) }
    }
}

#[derive(Serialize)]
struct Cache<'a> {
    #[serde(rename = "ID")]
    id: &'a str,
    location: Location,
}

#[derive(Serialize)]
struct Targets<'a> {
    targets: Vec<TargetForm>,
    sources: [Base64<'a>; 1],
}

#[derive(Serialize)]
struct TargetForm {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    default: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    base: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    platform: Option<String>,
    location: Location,
}

#[derive(Serialize)]
struct Findings<'a> {
    warnings: Vec<Warning>,
    sources: [SourceFile<'a>; 1],
    #[serde(rename = "buildError", skip_serializing_if = "Option::is_none")]
    build_error: Option<BuildError>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Warning {
    rule_name: &'static str,
    description: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    url: &'static str,
    detail: String,
    location: Location,
}

#[derive(Serialize)]
struct BuildError {
    message: String,
    location: Location,
}

#[derive(Serialize)]
struct SourceFile<'a> {
    filename: &'a str,
    data: Base64<'a>,
    language: &'static str,
}

/// A place; without ranges where it is none of the Dockerfile.
#[derive(Serialize)]
struct Location {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ranges: Vec<Range>,
}

#[derive(Serialize)]
struct Range {
    start: Position,
    end: Position,
}

#[derive(Serialize, Clone, Copy)]
struct Position {
    line: usize,
}

fn location(span: Span, text: &str) -> Location {
    if span == Span::default() {
        return Location { ranges: Vec::new() };
    }
    let line = |place| line_column(text, Span { start: place, end: place }).0;
    let lines = line(span.start)..=line(span.end.max(span.start + 1) - 1);
    let range = |line| Range { start: Position { line }, end: Position { line } };
    Location { ranges: lines.map(range).collect() }
}

/// Text in base64, which is what Go makes of bytes in JSON.
struct Base64<'a>(&'a str);

impl Serialize for Base64<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&base64::display::Base64Display::new(
            self.0.as_bytes(),
            &base64::engine::general_purpose::STANDARD,
        ))
    }
}
