//! Rules about FROM lines and about the file as a whole.

use std::collections::{BTreeMap, BTreeSet};

use super::{Findings, Inherited, keyword};
use crate::ast::{Dockerfile, Span, Stage, Word};

/// `ConsistentInstructionCasing`: keywords are all in upper or all in lower case, as most of them are. Global ARGs do
/// not count.
pub(super) fn casing(dockerfile: &Dockerfile, findings: &mut Findings) {
    let from = |stage: &Stage| (keyword(&stage.text).to_owned(), keyword_span(stage.span, &stage.text));
    let keywords: Vec<(String, Span)> = dockerfile
        .stages
        .iter()
        .flat_map(|stage| {
            let instructions = stage.instructions.iter();
            let own = instructions.map(|it| (keyword(&it.text).to_owned(), keyword_span(it.span, &it.text)));
            std::iter::once(from(stage)).chain(own)
        })
        .collect();
    let lower = keywords.iter().filter(|(keyword, _)| *keyword == keyword.to_ascii_lowercase()).count();
    let upper = keywords.iter().filter(|(keyword, _)| *keyword == keyword.to_ascii_uppercase()).count();
    let mostly_lower = lower > upper;
    let case = if mostly_lower { "lowercase" } else { "uppercase" };
    for (keyword, span) in keywords {
        let right = if mostly_lower { keyword.to_ascii_lowercase() } else { keyword.to_ascii_uppercase() };
        if keyword != right {
            let message =
                format!("Command '{keyword}' should match the case of the command majority ({case})");
            findings.report("ConsistentInstructionCasing", span, message);
        }
    }
}

fn keyword_span(instruction: Span, text: &str) -> Span {
    Span { start: instruction.start, end: (instruction.start + keyword(text).len()).min(instruction.end) }
}

/// `StageNameCasing`, `FromAsCasing`, `ReservedStageName`, `DuplicateStageName`.
pub(super) fn names(dockerfile: &Dockerfile, text: &str, findings: &mut Findings) {
    let mut seen = BTreeSet::new();
    for stage in &dockerfile.stages {
        let Some(name) = &stage.name else { continue };
        let lower = name.value.to_ascii_lowercase();
        if lower != name.value {
            let message = format!("Stage name '{}' should be lowercase", name.value);
            findings.report("StageNameCasing", name.span, message);
        }
        as_casing(stage, name, text, findings);
        if matches!(lower.as_str(), "context" | "scratch") {
            let message = format!("Stage name should not use the same name as reserved stage {lower:?}");
            findings.report("ReservedStageName", name.span, message);
        }
        if !seen.insert(lower.clone()) {
            let message = format!("Duplicate stage name {lower:?}, stage names should be unique");
            findings.report("DuplicateStageName", name.span, message);
        }
    }
}

fn as_casing(stage: &Stage, name: &Word, text: &str, findings: &mut Findings) {
    let between = &text[stage.base.span.end..name.span.start];
    let found = between.split_whitespace().rev().find(|word| word.eq_ignore_ascii_case("as"));
    let (Some(found), from) = (found, keyword(&stage.text)) else { return };
    // A keyword in mixed case is ConsistentInstructionCasing's business.
    let agrees = match from {
        from if from == from.to_ascii_lowercase() => found == "as",
        from if from == from.to_ascii_uppercase() => found == "AS",
        _ => true,
    };
    if !agrees {
        let start = stage.base.span.end + nom::Offset::offset(between, found);
        let span = Span { start, end: start + found.len() };
        findings.report(
            "FromAsCasing",
            span,
            format!("'{found}' and '{from}' keywords' casing do not match"),
        );
    }
}

/// `FromPlatformFlagConstDisallowed`, unless the stage's name says that it is about that platform.
pub(super) fn platforms(dockerfile: &Dockerfile, findings: &mut Findings) {
    for stage in &dockerfile.stages {
        let Some(platform) = stage.platform.as_ref().filter(|platform| !platform.value.contains('$')) else {
            continue;
        };
        let Some(parts) = platform_parts(&platform.value) else { continue };
        let name = stage.name.as_ref().map(|name| name.value.to_ascii_lowercase()).unwrap_or_default();
        if parts.iter().any(|part| name.contains(part.as_str())) {
            continue;
        }
        let message = format!("FROM --platform flag should not use constant value {:?}", platform.value);
        findings.report("FromPlatformFlagConstDisallowed", platform.span, message);
    }
}

/// The operating system and architecture that a platform names; `None` when it is none.
fn platform_parts(platform: &str) -> Option<Vec<String>> {
    let parts: Vec<&str> = platform.split('/').collect();
    let well_formed = parts.len() <= 3 && parts.iter().all(|part| !part.is_empty());
    let normal = |part: &&str| match part.to_ascii_lowercase().as_str() {
        "x86_64" | "x86-64" => "amd64".to_owned(),
        "aarch64" => "arm64".to_owned(),
        "armhf" | "armel" => "arm".to_owned(),
        "macos" => "darwin".to_owned(),
        lower => lower.to_owned(),
    };
    well_formed.then(|| parts.iter().take(2).map(normal).collect())
}

/// For each stage, what the earlier stages it is built on have set.
pub(super) fn history(dockerfile: &Dockerfile) -> Vec<Inherited> {
    let mut by_name: BTreeMap<String, Inherited> = BTreeMap::new();
    let mut history = Vec::new();
    for stage in &dockerfile.stages {
        let inherited = by_name.get(&stage.base.value.to_ascii_lowercase()).copied().unwrap_or_default();
        history.push(inherited);
        if let Some(name) = &stage.name {
            let end = stage.instructions.iter().fold(inherited, Inherited::after);
            by_name.insert(name.value.to_ascii_lowercase(), end);
        }
    }
    history
}
