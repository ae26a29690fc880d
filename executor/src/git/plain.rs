//! What is opened in a repository by its name: regular files and nothing else.
//!
//! A repository is as hostile as any context, and whoever opens a pipe waits for its other end for ever, deaf to every wish to
//! stop. gix opens what it reads as it finds it, so this looks first, without opening: at the files that a
//! repository is opened by, at all references, and at what lists objects. What somebody exchanges after that is not found out.

use std::{
    collections::HashSet,
    fs::{self, DirEntry, File, Metadata},
    io,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use rustix::fs::{Mode, OFlags};

use super::GitError;

/// What a repository, or a work tree of it, is opened by.
const NAMES: [&str; 9] = [
    "HEAD",
    "commondir",
    "config",
    "config.worktree",
    "gitdir",
    "index",
    "packed-refs",
    "shallow",
    "objects/info/alternates",
];
/// Directories of which any file may be opened.
const DIRECTORIES: [&str; 3] = ["refs", "objects/info", "objects/pack"];
/// So many repositories lend each other objects: git follows no more than five.
const LENDERS_MAX: usize = 64;

/// Where the objects of a repository lie: its own directory, and those that it borrows from.
///
/// # Errors
/// [`GitError::NoFile`] of a repository, or `.git` of a work tree, that has something else where a file is opened.
pub fn check(dot_git: &Path) -> Result<Vec<PathBuf>, GitError> {
    file(dot_git)?;
    let git_dir = led_to(dot_git);
    names(&git_dir)?;
    let common = gix::discover::path::from_plain_file(&git_dir.join("commondir")).and_then(Result::ok);
    let common = common.map_or_else(|| git_dir.clone(), |common| git_dir.join(common));
    if common != git_dir {
        names(&common)?;
        all(&git_dir.join("refs"))?;
    }
    shared_indices(&git_dir)?;
    DIRECTORIES.iter().try_for_each(|name| all(&common.join(name)))?;
    lenders(common.join("objects"))
}

/// What of a repository that cannot be opened may not be read, or not even be looked at.
pub fn denied(dot_git: &Path) -> Option<GitError> {
    let git_dir = led_to(dot_git);
    let paths = [dot_git.to_owned(), git_dir.join("HEAD"), git_dir.join("config"), git_dir];
    paths.into_iter().find_map(|path| match open(&path) {
        Err(source) if source.kind() == io::ErrorKind::PermissionDenied => {
            Some(GitError::Unreadable { path, source })
        }
        _ => None,
    })
}

/// Where `.git` leads to, if it is a file; nothing else is opened.
fn led_to(dot_git: &Path) -> PathBuf {
    match dot_git.is_file() {
        true => gix::discover::path::from_gitdir_file(dot_git).unwrap_or_else(|_| dot_git.to_owned()),
        false => dot_git.to_owned(),
    }
}

/// Whether the files are there that a directory is taken for a repository by; looked at before they are opened.
///
/// # Errors
/// [`GitError::NoFile`] where all else says that it is one.
pub fn may_be_repository(directory: &Path) -> Result<bool, GitError> {
    if !directory.join("HEAD").exists() {
        return Ok(false);
    }
    match names(directory) {
        Ok(()) => Ok(true),
        Err(error) if directory.join("objects").is_dir() && directory.join("refs").is_dir() => Err(error),
        Err(_) => Ok(false),
    }
}

/// Looks at a name: nothing, a directory or a regular file may be there, and links that lead to one.
///
/// # Errors
/// [`GitError::NoFile`]
pub fn file(path: &Path) -> Result<(), GitError> {
    fs::metadata(path).map_or(Ok(()), |metadata| judge(path, &metadata))
}

/// Looks at everything below a directory.
///
/// # Errors
/// [`GitError::NoFile`]
pub fn all(directory: &Path) -> Result<(), GitError> {
    let (mut todo, mut linked) = (vec![directory.to_owned()], HashSet::new());
    while let Some(directory) = todo.pop() {
        for entry in entries(&directory) {
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_dir() {
                todo.push(entry.path());
            } else if !kind.is_file() {
                let Ok(metadata) = fs::metadata(entry.path()) else { continue };
                judge(&entry.path(), &metadata)?;
                // Links may lead round in circles.
                if metadata.is_dir() && linked.insert((metadata.dev(), metadata.ino())) {
                    todo.push(entry.path());
                }
            }
        }
    }
    Ok(())
}

/// Opens a file, which must be a regular one.
///
/// # Errors
/// It cannot be opened, or is none.
pub fn open(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other("it is no regular file")),
    }
}

fn names(directory: &Path) -> Result<(), GitError> {
    NAMES.iter().try_for_each(|name| file(&directory.join(name)))
}

/// What an index may be split into.
fn shared_indices(git_dir: &Path) -> Result<(), GitError> {
    let mut shared =
        entries(git_dir).filter(|entry| entry.file_name().as_encoded_bytes().starts_with(b"sharedindex."));
    shared.try_for_each(|entry| file(&entry.path()))
}

/// A directory of objects and all that it borrows from.
fn lenders(objects: PathBuf) -> Result<Vec<PathBuf>, GitError> {
    let mut found = vec![objects];
    let mut at = 0;
    while at < found.len() && found.len() < LENDERS_MAX {
        let alternates = found[at].join("info/alternates");
        file(&alternates)?;
        let text = fs::read_to_string(&alternates).unwrap_or_default();
        for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let lender = found[at].join(line);
            ["info", "pack"].iter().try_for_each(|name| all(&lender.join(name)))?;
            if !found.contains(&lender) {
                found.push(lender);
            }
        }
        at += 1;
    }
    Ok(found)
}

/// What is in a directory; nothing where it cannot be read, which whoever needs it finds out.
fn entries(directory: &Path) -> impl Iterator<Item = DirEntry> {
    fs::read_dir(directory).into_iter().flatten().flatten()
}

fn judge(path: &Path, metadata: &Metadata) -> Result<(), GitError> {
    let kind = metadata.file_type();
    let what = match kind {
        _ if kind.is_file() || kind.is_dir() => return Ok(()),
        _ if kind.is_fifo() => "a pipe",
        _ if kind.is_socket() => "a socket",
        _ => "a device",
    };
    Err(GitError::NoFile { path: path.to_owned(), what })
}

#[cfg(test)]
mod tests {
    use std::{
        process::Command,
        sync::mpsc::{Receiver, RecvTimeoutError, channel},
        thread,
        time::Duration,
    };

    use super::*;
    use crate::git::{Revision, WorkTree, testing::Scratch};

    /// What becomes of a build of a commit, told by a thread that may hang.
    fn begun(top: PathBuf, revision: &'static str) -> Receiver<Result<(), String>> {
        let (teller, told) = channel();
        thread::spawn(move || {
            let cancel = solver::Cancel::default();
            let opened = Revision::open(&top, revision);
            let compared = opened.and_then(|opened| opened.against(WorkTree::MustBeClean, &[], &cancel));
            teller.send(
                compared
                    .and_then(|opened| opened.context().file(b"file").map(drop))
                    .map_err(|error| error.to_string()),
            )
        });
        told
    }

    /// Waits for that; a pipe that was opened is given its other end at last, so that no thread stays.
    fn ended(told: &Receiver<Result<(), String>>, pipe: &Path) -> Result<(), String> {
        match told.recv_timeout(Duration::from_secs(60)) {
            Err(RecvTimeoutError::Timeout) => {
                drop(File::options().read(true).write(true).open(pipe));
                Err(format!("{} was waited for", pipe.display()))
            }
            answer => answer.expect("it ended"),
        }
    }

    fn replace(place: &Path) {
        fs::create_dir_all(place.parent().expect("has one")).expect("made");
        let _ = fs::remove_file(place);
        assert!(Command::new("mkfifo").arg(place).status().expect("run").success());
    }

    #[test]
    fn no_pipe_of_a_repository_is_waited_for() {
        let id = |scratch: &Scratch, name: String| scratch.git(&["rev-parse", &name]);
        let loose = |id: String| format!("objects/{}/{}", &id[..2], &id[2..]);
        let fixed = NAMES.iter().chain(&[
            "refs/heads/main",
            "refs/tags/x/y",
            "objects/pack/pack-1.idx",
            "objects/pack/multi-pack-index",
            "objects/info/commit-graph",
            "sharedindex.1",
        ]);
        let names = fixed
            .map(|name| (*name).to_owned())
            .chain(["HEAD^{commit}", "HEAD^{tree}", "HEAD:file"].map(str::to_owned));
        for name in names {
            let scratch = Scratch::new();
            scratch.write(&[("file", "1")]);
            scratch.commit();
            let is_object = name.starts_with("HEAD^") || name.contains(':');
            let name = if is_object { loose(id(&scratch, name.clone())) } else { name };
            let pipe = scratch.top().join(".git").join(&name);
            replace(&pipe);
            for revision in ["HEAD", "HEAD~0"] {
                let error = ended(&begun(scratch.top(), revision), &pipe).expect_err(&name);
                assert!(error.ends_with(" is a pipe, where a git repository has a file"), "{name}: {error}");
            }
        }
    }

    #[test]
    fn a_pipe_instead_of_a_repository_or_its_file_of_lfs_is_not_waited_for() {
        let scratch = Scratch::new();
        let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:".to_owned()
            + &"ab".repeat(32)
            + "\nsize 0\n";
        scratch.write(&[("file", &pointer), (".gitattributes", "file filter=lfs\n")]);
        scratch.commit();
        let large = scratch.top().join(".git/lfs/objects/ab/ab").join("ab".repeat(32));
        replace(&large);
        let error = ended(&begun(scratch.top(), "HEAD"), &large).expect_err("no file");
        assert!(error.contains("of Git LFS is not on this machine"), "{error}");

        fs::create_dir(scratch.beside("other")).expect("made");
        let pipe = scratch.beside("other/.git");
        replace(&pipe);
        let error = ended(&begun(scratch.beside("other"), "HEAD"), &pipe).expect_err("no repository");
        assert!(error.contains(" is a pipe"), "{error}");
    }

    #[test]
    fn lenders_are_looked_at_and_links_go_round_in_circles() {
        let scratch = Scratch::new();
        scratch.write(&[("file", "1")]);
        scratch.commit();
        let lender = scratch.beside("lender");
        fs::create_dir_all(lender.join("pack")).expect("made");
        let alternates = scratch.top().join(".git/objects/info/alternates");
        fs::write(alternates, format!("{}\n", lender.display())).expect("written");
        for name in ["a", "b"] {
            std::os::unix::fs::symlink(".", scratch.top().join(".git/refs").join(name)).expect("linked");
        }
        assert_eq!(check(&scratch.top().join(".git")).expect("sound").len(), 2);
        replace(&lender.join("pack/x.pack"));
        assert!(check(&scratch.top().join(".git")).is_err());
    }
}
