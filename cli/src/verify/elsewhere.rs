//! What the arguments of a build become where it is made once more.

use std::{num::NonZeroUsize, path::Path};

use rustix::{
    fs::Mode,
    process::{Signal, set_parent_process_death_signal, umask},
};
use solver::Cancel;

use super::{IMAGE, STORE, mirror::mirror, refused};
use crate::{
    args::{BuildArgs, OnFailure},
    failure::Failure,
    inputs,
    request::{self, RequestError},
    spec::{
        context::{ContextSpec, FilesSource, NamedSource},
        output::OutputSpec,
    },
};

/// The copy of the main context in a build's directory; a build that has one is made elsewhere.
const CONTEXT: &str = "context";
/// Copies of the named ones, by their places among the arguments.
const NAMED: &str = "named";

const WRITES_NOTHING: &str = "it builds to compare, and leaves nothing";
const FROM_NOTHING: &str = "each build begins with nothing";

/// Refuses what a verification would have to ignore.
pub fn check(args: &BuildArgs) -> Result<(), RequestError> {
    let asked = [
        (!args.outputs.is_empty(), "--output", WRITES_NOTHING),
        (args.push, "--push", WRITES_NOTHING),
        (args.load, "--load", WRITES_NOTHING),
        (!args.tags.is_empty(), "--tag", WRITES_NOTHING),
        (args.iidfile.is_some(), "--iidfile", WRITES_NOTHING),
        (args.metadata_file.is_some(), "--metadata-file", WRITES_NOTHING),
        (args.depfile.is_some(), "--depfile", WRITES_NOTHING),
        (!args.cache_from.is_empty(), "--cache-from", FROM_NOTHING),
        (!args.cache_to.is_empty(), "--cache-to", FROM_NOTHING),
        (args.cache_ttl.is_some(), "--cache-ttl", FROM_NOTHING),
        (args.no_cache, "--no-cache", FROM_NOTHING),
        (!args.no_cache_filter.is_empty(), "--no-cache-filter", FROM_NOTHING),
        (args.explain, "--explain", FROM_NOTHING),
        (args.call.is_some() || args.check, "--call and --check", "nothing is built for them"),
        (args.on_failure == Some(OnFailure::Shell), "--on-failure", "builds run by themselves"),
        (args.context == "-", "context on standard input", ONCE),
        (args.file.as_deref() == Some("-"), "Dockerfile on standard input", ONCE),
    ];
    let found = asked.into_iter().find(|(is_asked, ..)| *is_asked);
    found.map_or(Ok(()), |(_, flag, why)| Err(refused(flag, why)))?;
    match names_no_context(args) {
        true => Err(RequestError::ImageInVerify(args.context.clone())),
        false => Ok(()),
    }
}

/// Whether the context is a path at which no directory is: the tar of an image, or its name. With `--git` the path need not be
/// there.
fn names_no_context(args: &BuildArgs) -> bool {
    let is_none = |path: &Path| match path.metadata() {
        Ok(metadata) => !metadata.is_dir(),
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    };
    let is_path = || matches!(args.context.parse(), Ok(ContextSpec::Files(FilesSource::Directory(path))) if is_none(&path));
    args.git.is_none() && is_path()
}

const ONCE: &str = "it can be read only once";

/// Copies the contexts of this machine into the directory of a build.
pub fn mirror_contexts(args: &BuildArgs, directory: &Path, cancel: &Cancel) -> Result<(), Failure> {
    let context = directory.join(CONTEXT);
    match is_here(args) {
        true => {
            let from = Path::new(&args.context);
            let place = request::dockerfile_place(args.file.as_deref());
            let ignored = inputs::ignore_file_here(&place, from)?;
            mirror(from, &context, ignored.as_ref(), cancel)?;
        }
        false => std::fs::create_dir(&context).map_err(|source| super::VerifyError::Room {
            action: "make",
            path: context.clone(),
            source,
        })?,
    }
    for (place, named) in args.contexts.iter().enumerate() {
        if let NamedSource::Files(FilesSource::Directory(path)) = &named.source {
            let ignored = inputs::ignore_file_of_named(path)?;
            mirror(path, &directory.join(format!("{NAMED}-{place}")), ignored.as_ref(), cancel)?;
        }
    }
    Ok(())
}

/// As [`request`](crate::request) has it: a directory of that name goes before an address. A commit is the same wherever it is
/// read from.
fn is_here(args: &BuildArgs) -> bool {
    args.git.is_none() && Path::new(&args.context).is_dir()
}

/// What the arguments become for the build in a directory, and this process with them: called while it has one thread.
pub fn settle(mut args: BuildArgs, directory: &Path) -> BuildArgs {
    // Nobody would wait for us.
    let _ = set_parent_process_death_signal(Some(Signal::TERM));
    args.root = Some(directory.join(STORE));
    args.outputs = vec![OutputSpec::layout(&directory.join(IMAGE))];
    let is_elsewhere = directory.join(CONTEXT).is_dir();
    umask(Mode::from_raw_mode(if is_elsewhere { 0o077 } else { 0o022 }));
    if !is_elsewhere {
        return args;
    }
    let one = NonZeroUsize::MIN;
    args.jobs = Some(if args.jobs == Some(one) { one.saturating_add(7) } else { one });
    for (place, named) in args.contexts.iter_mut().enumerate() {
        if let NamedSource::Files(FilesSource::Directory(path)) = &mut named.source {
            *path = directory.join(format!("{NAMED}-{place}"));
        }
    }
    if is_here(&args) {
        // `-f` of a context that is a directory lies in the working directory, which is the same.
        args.context = directory.join(CONTEXT).display().to_string();
    }
    args
}

#[cfg(test)]
mod tests {
    use crate::args::{Cli, Command, parse};

    fn refused(line: &str) -> String {
        let argv = ["layerwright", "verify", "--twice"].into_iter().chain(line.split_whitespace());
        match parse(argv) {
            Ok(Cli { command: Command::Verify(args) }) => {
                super::check(&args.build).expect_err(line).to_string()
            }
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn what_it_takes_not_is_told_in_one_grammar() {
        for (line, flag) in [
            ("-o out .", "--output"),
            ("--push .", "--push"),
            ("--load .", "--load"),
            ("-t x .", "--tag"),
            ("--iidfile x .", "--iidfile"),
            ("--metadata-file x .", "--metadata-file"),
            ("--depfile x .", "--depfile"),
        ] {
            let told = format!("verify takes no {flag}: it builds to compare, and leaves nothing");
            assert_eq!(refused(line), told);
        }
        for (line, flag) in [
            ("--cache-from x.example.org/y .", "--cache-from"),
            ("--cache-to x.example.org/y .", "--cache-to"),
            ("--cache-ttl 1h .", "--cache-ttl"),
            ("--no-cache .", "--no-cache"),
            ("--no-cache-filter x .", "--no-cache-filter"),
            ("--explain .", "--explain"),
        ] {
            assert_eq!(refused(line), format!("verify takes no {flag}: each build begins with nothing"));
        }
        for (line, told) in [
            ("--check .", "--call and --check: nothing is built for them"),
            ("--call outline .", "--call and --check: nothing is built for them"),
            ("--on-failure shell .", "--on-failure: builds run by themselves"),
            ("-", "context on standard input: it can be read only once"),
            ("-f - .", "Dockerfile on standard input: it can be read only once"),
        ] {
            assert_eq!(refused(line), format!("verify takes no {told}"));
        }
        let told = "src/main.rs is no directory, and verify builds one";
        assert_eq!(refused("src/main.rs"), told);
    }
}
