//! `--call outline`: what a build of the target takes.

use serde::Serialize;
use solver::plan::{CacheUse, Outline, OutlineArg, SecretUse, SshUse};

use super::{json, table::table};
use crate::inputs::Source;

/// For people: a table for each kind of thing that there is.
pub fn text(outline: &Outline) -> String {
    let mut tables = Vec::new();
    if outline.name.is_some() || outline.description.is_some() {
        let name = ["TARGET:", outline.name.as_deref().unwrap_or("(default)")];
        let description = outline.description.as_deref().map(|text| ["DESCRIPTION:", text]);
        tables.push(table(&[name].into_iter().chain(description).collect::<Vec<_>>(), 1));
    }
    let arg = |arg: &OutlineArg| {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        [arg.name.clone(), text(&arg.value), text(&arg.description)]
    };
    tables.extend(listed(["BUILD ARG", "VALUE", "DESCRIPTION"], outline.args.iter().map(arg)));
    let uses = outline.secrets.iter().map(|secret| required(&secret.name, secret.required));
    tables.extend(listed(["SECRET", "REQUIRED"], uses));
    let uses = outline.ssh.iter().map(|ssh| required(&ssh.name, ssh.required));
    tables.extend(listed(["SSH", "REQUIRED"], uses));
    tables.iter().map(|table| format!("{table}\n")).collect()
}

fn required(name: &str, required: bool) -> [String; 2] {
    [name.to_owned(), if required { "true".to_owned() } else { String::new() }]
}

/// A table, unless it would be empty.
fn listed<const N: usize>(head: [&str; N], rows: impl Iterator<Item = [String; N]>) -> Option<String> {
    let rows: Vec<[String; N]> = rows.collect();
    let shown = rows.iter().map(|row| std::array::from_fn(|column| row[column].as_str()));
    let lines: Vec<[&str; N]> = [head].into_iter().chain(shown).collect();
    (!rows.is_empty()).then(|| table(&lines, 3))
}

#[derive(Serialize)]
struct Shown<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    args: Vec<Arg<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    secrets: Vec<Use<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ssh: Vec<Use<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    cache: Vec<Cache<'a>>,
    sources: [String; 1],
}

#[derive(Serialize)]
struct Arg<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<&'a str>,
    location: json::Location,
}

#[derive(Serialize)]
struct Use<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    required: bool,
    location: json::Location,
}

#[derive(Serialize)]
struct Cache<'a> {
    #[serde(rename = "ID")]
    id: &'a str,
    location: json::Location,
}

impl<'a> Arg<'a> {
    fn of(arg: &'a OutlineArg, source: &Source) -> Self {
        let OutlineArg { name, description, value, span } = arg;
        let location = json::Location::of(*span, source);
        Self { name, description: description.as_deref(), value: value.as_deref(), location }
    }
}

/// For programs.
pub fn json(outline: &Outline, source: &Source) -> String {
    let at = |span| json::Location::of(span, source);
    let Outline { name, description, args, secrets, ssh, cache, notices: _ } = outline;
    json::pretty(&Shown {
        name: name.as_deref(),
        description: description.as_deref(),
        args: args.iter().map(|arg| Arg::of(arg, source)).collect(),
        secrets: secrets
            .iter()
            .map(|SecretUse { name, required, span }| Use { name, required: *required, location: at(*span) })
            .collect(),
        ssh: ssh
            .iter()
            .map(|SshUse { name, required, span }| Use { name, required: *required, location: at(*span) })
            .collect(),
        cache: cache.iter().map(|CacheUse { id, span }| Cache { id, location: at(*span) }).collect(),
        sources: [json::bytes(source)],
    })
}
