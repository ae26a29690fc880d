//! Reading texts of bounded size: from a path of this machine, from inside a context that came from elsewhere, from a
//! pipe.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use executor::{context::IgnoreFile, pipe::read_at_most, view::open_in_root};
use rustix::fs::{Mode, OFlags};

use super::{ContextPlace, InputError};

/// The largest Dockerfile or ignore file that is read, in bytes: what the parser takes.
const TEXT_LIMIT: u64 = parser::MAX_BYTES as u64;

/// The text on a pipe.
///
/// # Errors
/// It cannot be read, is too large, or is no text.
pub fn read(input: &mut dyn Read) -> io::Result<String> {
    let mut bytes = Vec::new();
    input.take(TEXT_LIMIT + 1).read_to_end(&mut bytes)?;
    of_bytes(bytes)
}

/// Bytes as text, without a byte-order mark.
///
/// # Errors
/// They are too many, or no text.
pub fn of_bytes(bytes: Vec<u8>) -> io::Result<String> {
    if bytes.len() as u64 > TEXT_LIMIT {
        return Err(io::Error::other(format!("it is larger than {} MiB", TEXT_LIMIT >> 20)));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let before = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        io::Error::other(format!("it is not UTF-8 text: see line {line}"))
    })?;
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

/// A file of this machine, or a pipe that somebody writes to.
///
/// # Errors
/// As [`read`].
pub fn of_file(path: &Path) -> io::Result<String> {
    of_bytes(read_at_most(path, TEXT_LIMIT + 1)?)
}

/// A file that a context of this machine has itself: a link may not lead out of it, for who made the context is not
/// always who builds it.
///
/// # Errors
/// As [`read`]; it is a link that leads out or nowhere.
pub fn of_own_file(context: &Path, path: &Path) -> io::Result<String> {
    let target = path.canonicalize().map_err(|error| match (error.kind(), path.read_link()) {
        (io::ErrorKind::NotFound, Ok(target)) => leads_nowhere(&target.display().to_string(), "context"),
        _ => error,
    })?;
    match target.starts_with(context.canonicalize()?) {
        true => of_file(&target),
        false => Err(io::Error::other(format!(
            "it is a link that leads out of the context, to {}",
            target.display()
        ))),
    }
}

/// What is wrong with a link that leads to no file `within` a context or commit.
pub fn leads_nowhere(target: &str, within: &str) -> io::Error {
    let text = format!(
        "it is a link to {target:?}, which is no file of the {within}, and no link leads out of that"
    );
    io::Error::other(text)
}

/// A file of a context that came from elsewhere: no link leads out of it, and nothing but a file is waited for.
///
/// # Errors
/// As [`read`].
pub fn of_file_in(context: &Path, path: &Path) -> io::Result<String> {
    let root = rustix::fs::open(context, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let file = open_in_root(&root, path.as_os_str().as_bytes(), OFlags::RDONLY | OFlags::NONBLOCK)?;
    let mut file = File::from(file);
    match file.metadata()?.is_file() {
        true => read(&mut file),
        false => Err(io::Error::other("it is not a file")),
    }
}

/// Where the link at a path of such a context leads, for people; `None` where there is none. Links on the way to it are
/// followed as [`of_file_in`] follows them.
pub fn link_in(context: &Path, path: &Path) -> Option<String> {
    let root =
        rustix::fs::open(context, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let link = open_in_root(&root, path.as_os_str().as_bytes(), OFlags::PATH | OFlags::NOFOLLOW).ok()?;
    // Of anything but a link there is nothing to read.
    let target = rustix::fs::readlinkat(&link, "", Vec::new()).ok()?;
    Some(String::from_utf8_lossy(target.as_bytes()).into_owned())
}

/// The first of these ignore files of a context of this machine that is there.
///
/// # Errors
/// It is there and cannot be read, or lies in the context and leads out of it. A link that leads nowhere is there: whoever made
/// it wants something to be ignored.
pub fn first_ignore_file(
    context: &Path,
    paths: impl IntoIterator<Item = PathBuf>,
) -> Result<Option<IgnoreFile>, InputError> {
    let read = |path: &Path| match lies_in(context, path)? {
        true => of_own_file(context, path),
        false => of_file(path),
    };
    let found = paths.into_iter().find(|path| path.symlink_metadata().is_ok());
    found.map(|path| ignore_file(&path, read(&path))).transpose()
}

/// Whether a name lies in a context, by whatever path either is called, and wherever links on that path then lead.
fn lies_in(context: &Path, path: &Path) -> io::Result<bool> {
    let context = context.canonicalize()?;
    let named = path.ancestors().take_while(|place| place.file_name().is_some());
    let mut directories =
        named.filter_map(Path::parent).map(|directory| match directory.as_os_str().is_empty() {
            true => Path::new("."),
            false => directory,
        });
    Ok(directories.any(|directory| directory.canonicalize().is_ok_and(|place| place.starts_with(&context))))
}

/// The first of these ignore files that is in a context that came from elsewhere.
///
/// # Errors
/// It is there and cannot be read, or is a link that leads out or nowhere.
pub fn first_ignore_file_in(
    context: &ContextPlace,
    paths: impl IntoIterator<Item = PathBuf>,
) -> Result<Option<IgnoreFile>, InputError> {
    for path in paths {
        let text = match context.text(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => match context.link(&path) {
                Some(target) => Err(leads_nowhere(&target, context.noun())),
                None => continue,
            },
            text => text,
        };
        return ignore_file(&path, text).map(Some);
    }
    Ok(None)
}

/// An ignore file of this machine that lies in no context, if it is there.
///
/// # Errors
/// It is there and cannot be read.
pub fn first_ignore_file_here(path: Option<PathBuf>) -> Result<Option<IgnoreFile>, InputError> {
    let found = path.filter(|path| path.symlink_metadata().is_ok());
    found.map(|path| ignore_file(&path, of_file(&path))).transpose()
}

fn ignore_file(path: &Path, text: io::Result<String>) -> Result<IgnoreFile, InputError> {
    let shown = path.display().to_string();
    let text =
        text.map_err(|source| InputError::Read { what: "ignore file", name: shown, hint: None, source })?;
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
    Ok(IgnoreFile { name, text })
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    #[test]
    fn a_name_lies_in_a_context_whatever_it_is_called() {
        let scratch = tempfile::tempdir().expect("a directory");
        let place = |name: &str| scratch.path().join(name);
        for name in ["context/sub", "beside"] {
            fs::create_dir_all(place(name)).expect(name);
        }
        for (name, target) in [("context/out", "../beside"), ("another", "context"), ("inner", "context/sub")]
        {
            symlink(target, place(name)).expect(name);
        }
        for (context, path, expected) in [
            ("context", "context/file", true),
            ("context", "context/sub/file", true),
            ("context", "another/file", true),
            ("another", "context/file", true),
            ("context", "inner/file", true),
            ("context", "context/out/file", true),
            ("another", "context/out/file", true),
            ("context", "beside/file", false),
            ("context", "context/../beside/file", false),
            ("context", "contextual", false),
        ] {
            let found = lies_in(&place(context), &place(path)).expect(path);
            assert_eq!(found, expected, "{path} in {context}");
        }
        let (root, relative) = (Path::new("/"), Path::new("file"));
        assert!(
            lies_in(Path::new("."), relative).expect("this directory")
                && lies_in(root, relative).expect("it")
        );
    }

    #[test]
    fn a_link_is_found_where_links_on_the_way_lead_inside_the_context() {
        let scratch = tempfile::tempdir().expect("a directory");
        let context = scratch.path().join("context");
        for directory in ["context/real", "real"] {
            fs::create_dir_all(scratch.path().join(directory)).expect(directory);
        }
        for (link, target) in
            [("linked", "/real"), ("out", "../real"), ("real/file", "none"), ("../real/file", "host")]
        {
            symlink(target, context.join(link)).expect(link);
        }
        for path in ["real/file", "linked/file", "out/file"] {
            assert_eq!(link_in(&context, Path::new(path)).as_deref(), Some("none"), "{path}");
        }
        assert_eq!(link_in(&context, Path::new("linked")).as_deref(), Some("/real"));
        assert_eq!(link_in(&context, Path::new("real")), None);
    }

    #[test]
    fn an_ignore_file_of_a_context_does_not_lead_out_whatever_the_context_is_called() {
        let scratch = tempfile::tempdir().expect("a directory");
        let place = |name: &str| scratch.path().join(name);
        fs::create_dir(place("context")).expect("a context");
        symlink("context", place("another")).expect("a second name");
        fs::write(place("secret"), "secret").expect("a file");
        symlink("../secret", place("context/own")).expect("a link");
        for context in ["context", "another"] {
            let found = first_ignore_file(&place(context), [place("context/own")]);
            let said = found.map(|found| found.map(|file| file.text)).expect_err("it leads out");
            assert!(failure_chain(&said).contains("leads out of the context"), "{said}");
        }
        for (target, told) in
            [("gone", "it is a link to \"gone\", which is no file of the context"), ("own", "symbolic links")]
        {
            fs::remove_file(place("context/own")).expect("removed");
            symlink(target, place("context/own")).expect("a link");
            let found = first_ignore_file(&place("context"), [place("context/own")]);
            let said = found.map(|found| found.map(|file| file.text)).expect_err("it leads nowhere");
            assert!(failure_chain(&said).contains(told), "{}", failure_chain(&said));
        }
        let here = first_ignore_file(&place("context"), [place("secret")]).expect("read").expect("there");
        assert_eq!(here.text, "secret");
    }

    fn failure_chain(error: &dyn std::error::Error) -> String {
        std::iter::successors(Some(error), |error| error.source())
            .map(|error| error.to_string() + "; ")
            .collect()
    }
}
