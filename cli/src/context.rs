//! `layerwright context ls`: what COPY and ADD can see, and which line of the ignore file decides about a path.

use std::{fmt::Write, io, sync::Arc};

use executor::{
    ContextOrigin,
    context::{CommitContext, ContextDirectory, ContextError, Entry, EntryKind, Ruling},
    sandbox,
};
use oci::registry::Limits;
use serde::Serialize;
use solver::Cancel;

use crate::{
    args::{ContextLsArgs, RegistryArgs},
    call::pretty,
    failure::{Failure, harmless},
    inputs::{self, Outside, OutsideOptions},
    request::{self, Environment},
    spec::call::Format,
};

/// The text for standard output.
///
/// # Errors
/// The context cannot be had or read.
pub fn list(args: ContextLsArgs) -> Result<String, Failure> {
    let places = request::context_places(&args.context, args.git.as_deref(), args.file.as_deref())?;
    let environment = Environment::of_process();
    let options = OutsideOptions {
        root: request::store_root(args.root, &environment)?,
        limits: Limits::default(),
        hosts: RegistryArgs::default().hosts(&environment)?,
        secrets: Default::default(),
        agents: Default::default(),
        retry: Default::default(),
    };
    if places.are_elsewhere() {
        sandbox::enter_for_store(request::mode_of_store(&options.root), &options.root)?;
    }
    let cancel = Arc::new(Cancel::default());
    let outside = Outside::new(options, Arc::new(|_| {}), Arc::clone(&cancel));
    let context = inputs::context(&places, &outside, &mut io::stdin().lock())?;
    let files = match context.origin()? {
        ContextOrigin::Directory(files) => Files::Directory(files),
        ContextOrigin::Commit(files) => Files::Commit(files),
        ContextOrigin::Git(_) | ContextOrigin::Url(_) => unreachable!("a main context is here by now"),
    };
    let Some(path) = args.why else {
        let entries = files.entries(&cancel)?;
        return Ok(match args.format {
            Format::Text => entries.iter().map(line).collect(),
            Format::Json => pretty(&Listed {
                ignore_file: context.ignore.as_ref().map(|file| file.name.as_str()),
                entries: entries.iter().map(Shown::of).collect(),
            }),
        });
    };
    let path = clean(&path);
    let ruling = files.ruling(&path)?;
    Ok(match args.format {
        Format::Text => why(&path, &ruling),
        Format::Json => pretty(&Why::of(&path, &ruling)),
    })
}

/// The files of a context.
enum Files {
    Directory(ContextDirectory),
    Commit(CommitContext),
}

impl Files {
    fn entries(&self, cancel: &Cancel) -> Result<Vec<Entry>, ContextError> {
        match self {
            Self::Directory(files) => files.entries(cancel),
            Self::Commit(files) => files.entries(cancel),
        }
    }

    fn ruling(&self, path: &str) -> Result<Ruling, ContextError> {
        match self {
            Self::Directory(files) => files.ruling(path),
            Self::Commit(files) => files.ruling(path),
        }
    }
}

/// The path as ignore files mean it: relative to the context, whatever it looks like.
fn clean(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(kept.pop()),
            part => kept.push(part),
        }
    }
    kept.join("/")
}

/// A line for each thing: directories end with a slash, links say where they point.
fn line(entry: &Entry) -> String {
    let path = harmless(&entry.path);
    match &entry.kind {
        EntryKind::Directory => format!("{path}/\n"),
        EntryKind::Link(target) => format!("{path} -> {}\n", harmless(target)),
        EntryKind::File(_) | EntryKind::Other => format!("{path}\n"),
    }
}

fn why(path: &str, ruling: &Ruling) -> String {
    let mut text = format!("{}: {}", harmless(path), if ruling.excluded { "excluded" } else { "included" });
    match &ruling.line {
        Some(line) => {
            let _ = write!(text, " by {}:{}: {}", line.file, line.number, harmless(&line.pattern));
        }
        None => text += ": no pattern matches it",
    }
    if !ruling.exists {
        text += " (there is no such path)";
    }
    text + "\n"
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Listed<'a> {
    ignore_file: Option<&'a str>,
    entries: Vec<Shown<'a>>,
}

#[derive(Serialize)]
struct Shown<'a> {
    path: &'a str,
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<&'a str>,
}

impl<'a> Shown<'a> {
    fn of(entry: &'a Entry) -> Self {
        let (kind, size, target) = match &entry.kind {
            EntryKind::Directory => ("directory", None, None),
            EntryKind::File(size) => ("file", Some(*size), None),
            EntryKind::Link(target) => ("link", None, Some(target.as_str())),
            EntryKind::Other => ("other", None, None),
        };
        Self { path: &entry.path, kind, size, target }
    }
}

#[derive(Serialize)]
struct Why<'a> {
    path: &'a str,
    excluded: bool,
    exists: bool,
    line: Option<Line<'a>>,
}

#[derive(Serialize)]
struct Line<'a> {
    file: &'a str,
    line: usize,
    pattern: &'a str,
}

impl<'a> Why<'a> {
    fn of(path: &'a str, ruling: &'a Ruling) -> Self {
        let line = |line: &'a executor::context::IgnoreLine| Line {
            file: &line.file,
            line: line.number,
            pattern: &line.pattern,
        };
        let Ruling { excluded, exists, .. } = *ruling;
        Self { path, excluded, exists, line: ruling.line.as_ref().map(line) }
    }
}
