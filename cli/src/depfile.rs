//! `--depfile`: what a build read of this machine, as a rule that make and ninja read (`gcc -MD -MP`), so that an
//! unchanged build is not even started.
//!
//! Its targets are the files that the outputs are written to; where there are none, the file of `--iidfile`, or else of
//! `--metadata-file`. Its prerequisites are the Dockerfile, the ignore files, the files that steps picked of the main and the
//! named directories, and the directories that were read for that: a file that comes or goes changes the time of its directory.
//! Each prerequisite also is a target without a rule, so that make does not stop at one that is gone. Secrets are not listed, and
//! what is not on this machine cannot be. Of a commit (`--git`) it is what changes when the revision may come to name another
//! one; with `--dirty` every build is started.
//!
//! There are names that make or ninja cannot read, however they are escaped. Where one was read, every build is started.
//!
//! Make compares times, so a result must be newer than what it was made of, and older than what was changed meanwhile.
//! Where a result or this file lies in a directory that was read, writing it made the directory newer; that is put right
//! by setting the results' times.

use std::{
    collections::BTreeSet,
    fs::{File, FileTimes},
    io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    time::SystemTime,
};

use executor::Reads;
use exporter::outputs::file::write_file;
use solver::{Event, pattern::glob};

use crate::{
    build::Events,
    failure::Failure,
    inputs::{ContextPlace, Inputs},
    outputs::Output,
    request::BuildRequest,
    spec::context::{ContextSpec, FilesSource, NamedSource},
};

/// Never there, so that what depends on it is always made: stands for what cannot be named.
const MISSING: &str = "layerwright-cannot-name-all-that-was-read";

/// What `--depfile` is for: the files that are made of what is read.
pub fn targets(outputs: &[Output], iidfile: Option<&Path>, metadata_file: Option<&Path>) -> Vec<PathBuf> {
    let files: Vec<PathBuf> = outputs.iter().filter_map(Output::file).map(Path::to_owned).collect();
    match files.is_empty() {
        true => iidfile.or(metadata_file).map(Path::to_owned).into_iter().collect(),
        false => files,
    }
}

/// Writes the dependency file of a build that has written everything else.
///
/// # Errors
/// A file cannot be written.
pub fn write(
    path: &Path,
    request: &BuildRequest,
    inputs: &Inputs,
    reads: &Reads,
    began: SystemTime,
    events: &Events,
) -> Result<(), Failure> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| Failure::Write { path, source }
    };
    let targets = targets(&request.outputs, request.iidfile.as_deref(), request.metadata_file.as_deref());
    let read = all_read(request, inputs, reads);
    if let Some(unnamed) = read.iter().find(|path| !can_be_named(path, &read)) {
        let told = "--depfile: make and ninja cannot both read this name, so they will start every build";
        events(Event::Warning(format!("{told}: {}", unnamed.display())));
    }
    write_file(path, &rule(&targets, &read)).map_err(failed(path))?;
    let beside = [&request.iidfile, &request.metadata_file].into_iter().flatten();
    let written = targets.iter().chain(beside).map(PathBuf::as_path).chain([path]);
    let written: Vec<&Path> = written.collect();
    if let Some(time) = time_of_results(&read, &reads.directories, &written, began) {
        targets.iter().try_for_each(|target| set_time(target, time).map_err(failed(target)))?;
    }
    Ok(())
}

/// Everything on this machine that the build has read, as people would write it.
fn all_read(request: &BuildRequest, inputs: &Inputs, reads: &Reads) -> BTreeSet<PathBuf> {
    let layouts = request.places.named.values().filter_map(|source| match source {
        NamedSource::OciLayout { directory, .. } => Some(directory.join("index.json")),
        _ => None,
    });
    // A context that came from elsewhere lies in the store.
    let elsewhere = match &inputs.context.place {
        ContextPlace::Directory(directory) => Some(directory),
        ContextPlace::Commit(_) => None,
    };
    let is_here = matches!(request.places.context, ContextSpec::Files(FilesSource::Directory(_)));
    let elsewhere = elsewhere.filter(|_| !is_here);
    let commit = watched(request, inputs);
    let of_contexts = reads.files.iter().chain(&reads.directories);
    let of_contexts = of_contexts.filter(|path| elsewhere.is_none_or(|place| !path.starts_with(place)));
    let read = inputs.read_here.iter().chain(of_contexts).cloned().chain(commit);
    let here = std::env::current_dir().unwrap_or_default();
    read.chain(layouts).map(|path| relative(&path, &here)).collect()
}

/// What may make another commit of the revision that is built. Files of a work tree that are laid over it are not watched.
fn watched(request: &BuildRequest, inputs: &Inputs) -> Vec<PathBuf> {
    let (ContextPlace::Commit(revision), ContextSpec::Commit(spec)) =
        (&inputs.context.place, &request.places.context)
    else {
        return Vec::new();
    };
    let watched = revision.watched().filter(|_| !spec.is_dirty);
    watched.unwrap_or_else(|| vec![PathBuf::from(MISSING)])
}

/// Relative to the working directory where it is below that, as rules about the file would have it.
fn relative(path: &Path, here: &Path) -> PathBuf {
    let cleaned: PathBuf = path.components().collect();
    match cleaned.strip_prefix(here) {
        Ok(below) if below.as_os_str().is_empty() => PathBuf::from("."),
        Ok(below) => below.to_owned(),
        Err(_) => cleaned,
    }
}

/// The bytes of the file.
fn rule(targets: &[PathBuf], read: &BTreeSet<PathBuf>) -> Vec<u8> {
    let named = read.iter().filter(|path| can_be_named(path, read));
    let mut read_by: Vec<Vec<u8>> = named.map(|path| escaped(path)).collect();
    if read_by.len() < read.len() {
        read_by.push(MISSING.into());
    }
    let targets: Vec<Vec<u8>> = targets.iter().map(|target| escaped(target)).collect();
    let mut rule = targets.join(&b' ');
    rule.push(b':');
    for path in &read_by {
        rule.extend_from_slice(b" \\\n ");
        rule.extend_from_slice(path);
    }
    rule.push(b'\n');
    for path in &read_by {
        rule.push(b'\n');
        rule.extend_from_slice(path);
        rule.extend_from_slice(b":\n");
    }
    rule
}

/// Whether make and ninja can both read a path, escaped or not. That was found out by trying all characters. A class in
/// brackets stands for itself as long as it matches nothing else.
fn can_be_named(path: &Path, read: &BTreeSet<PathBuf>) -> bool {
    const UNREADABLE: &[u8] = b"\"%&'*;<=>?^`|";
    let name = path.as_os_str().as_bytes();
    let is_class_of_others = || {
        let others = read.iter().filter(|other| *other != path).filter_map(|other| other.to_str());
        let is_meant = |other| glob::matches(&path.to_string_lossy(), other).unwrap_or(true);
        name.contains(&b'[') && others.into_iter().any(is_meant)
    };
    let is_in_archive = name.contains(&b'(') && name.ends_with(b")");
    let ends_badly = matches!(name.last(), Some(b' ' | b':' | b'\\'));
    let has_escape = name.windows(2).any(|pair| matches!(pair, b"\\#" | b"\\:" | b"\\$"));
    let is_unreadable = name.iter().any(|byte| *byte < b' ' || *byte == 0x7f || UNREADABLE.contains(byte));
    !(is_unreadable || is_in_archive || ends_badly || has_escape || is_class_of_others())
}

/// A path as make and ninja both read it, which is what gcc writes.
fn escaped(path: &Path) -> Vec<u8> {
    let name = path.as_os_str().as_bytes();
    // Make would look for the home of somebody.
    let mut escaped = if name.starts_with(b"~") { b"./".to_vec() } else { Vec::new() };
    for byte in name {
        match byte {
            b' ' => {
                // Backslashes count only in front of what they escape.
                let before = escaped.iter().rev().take_while(|byte| **byte == b'\\').count();
                escaped.extend(std::iter::repeat_n(b'\\', before + 1));
            }
            b'#' | b':' => escaped.push(b'\\'),
            b'$' => escaped.push(b'$'),
            _ => {}
        }
        escaped.push(*byte);
    }
    escaped
}

/// The time that results must have so that make takes them for what they are; `None` where that is so already.
fn time_of_results(
    read: &BTreeSet<PathBuf>,
    directories: &BTreeSet<PathBuf>,
    written: &[&Path],
    began: SystemTime,
) -> Option<SystemTime> {
    let parent = |path: &Path| std::path::absolute(path).ok()?.parent().map(Path::to_owned);
    let ours: BTreeSet<PathBuf> = written.iter().filter_map(|path| parent(path)).collect();
    let is_ours = |path: &Path| std::path::absolute(path).is_ok_and(|path| ours.contains(&path));
    let modified = |path: &Path| path.metadata().and_then(|metadata| metadata.modified()).ok();
    let mut others = read.iter().filter(|path| !is_ours(path));
    match others.any(|path| modified(path).is_none_or(|time| time >= began)) {
        // It changed, or went, after the build had begun, and perhaps after it was read.
        true => Some(began),
        false => directories.iter().any(|directory| is_ours(directory)).then(SystemTime::now),
    }
}

fn set_time(path: &Path, time: SystemTime) -> io::Result<()> {
    File::options().write(true).open(path)?.set_times(FileTimes::new().set_modified(time))
}
