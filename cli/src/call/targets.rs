//! `--call targets`: the stages that can be built.

use serde::Serialize;
use solver::plan::StageInfo;

use super::{json, table::table};
use crate::inputs::Source;

/// For people.
pub fn text(stages: &[StageInfo]) -> String {
    let name = |stage: &StageInfo| match (&stage.name, stage.is_default) {
        (None, true) => "(default)".to_owned(),
        (Some(name), true) => format!("{name} (default)"),
        (name, false) => name.clone().unwrap_or_default(),
    };
    let named: Vec<String> = stages.iter().map(name).collect();
    let rows = named.iter().zip(stages).filter(|(name, _)| !name.is_empty());
    let rows = rows.map(|(name, stage)| [name.as_str(), stage.description.as_deref().unwrap_or_default()]);
    table(&[["TARGET", "DESCRIPTION"]].into_iter().chain(rows).collect::<Vec<_>>(), 1)
}

#[derive(Serialize)]
struct List<'a> {
    targets: Vec<Target<'a>>,
    sources: [String; 1],
}

#[derive(Serialize)]
struct Target<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    default: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<&'a str>,
    base: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    platform: Option<&'a str>,
    location: json::Location,
}

impl<'a> Target<'a> {
    fn of(stage: &'a StageInfo, source: &Source) -> Self {
        let StageInfo { name, description, base, platform, is_default, span } = stage;
        Self {
            name: name.as_deref(),
            default: *is_default,
            description: description.as_deref(),
            base,
            platform: platform.as_deref(),
            location: json::Location::of(*span, source),
        }
    }
}

/// For programs.
pub fn json(stages: &[StageInfo], source: &Source) -> String {
    let targets = stages.iter().map(|stage| Target::of(stage, source)).collect();
    json::pretty(&List { targets, sources: [json::bytes(source)] })
}
