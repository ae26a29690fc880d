//! Where the commit of a submodule is: in the repository of its work tree, or in `.git/modules` of the one that names it.
//! Nothing is fetched, unless the repository that names it was fetched itself ([`super::supply`]).

use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use gix::{ObjectId, bstr::ByteSlice, objs::Kind, objs::tree::EntryKind};

use super::{
    Commit, GitError, Repository,
    supply::{Gitlink, Module, Supply},
    tree::{CommitTree, Directory},
};
use crate::rootfs::shown;

/// The repository that has the commit of the submodule at `path`, from the top of the one that names it; `None` where nobody
/// wants its files.
///
/// # Errors
/// [`GitError::Submodule`], or [`GitError::Elsewhere`].
pub fn find(
    parent: &Directory,
    path: &[u8],
    id: ObjectId,
) -> Result<Option<(Arc<Repository>, Commit)>, GitError> {
    match parent.repository.supplied() {
        Some(supplied) => brought(&*supplied.supply, parent, path, id),
        None => find_here(parent, path, id).map(Some),
    }
}

impl CommitTree {
    /// What else than its id says what it holds: of a repository that is supplied from elsewhere, whether submodules are
    /// wanted, and which. `None` where nothing does.
    ///
    /// # Errors
    /// An object cannot be read.
    pub fn rules_of_submodules(&self) -> Result<Option<Option<ObjectId>>, GitError> {
        let (repository, commit) = (&self.root.repository, &self.root.commit);
        match repository.supplied() {
            None => Ok(None),
            Some(supplied) if !supplied.supply.has_submodules() => Ok(Some(None)),
            Some(_) => Ok(Some(Some(
                rules_of(repository, commit)?.unwrap_or_else(|| ObjectId::empty_blob(commit.tree.kind())),
            ))),
        }
    }
}

/// That of a repository that is supplied from elsewhere.
fn brought(
    supply: &dyn Supply,
    parent: &Directory,
    path: &[u8],
    id: ObjectId,
) -> Result<Option<(Arc<Repository>, Commit)>, GitError> {
    if !supply.has_submodules() {
        return Ok(None);
    }
    let module = match rules_of(&parent.repository, &parent.commit)? {
        Some(rules) => module(&parent.repository.object(&rules, Kind::Blob)?, path),
        None => None,
    };
    let link = Gitlink { path: &shown(path), commit: id, module: module.as_ref() };
    supply.submodule(link).map_err(|failure| GitError::Elsewhere(Box::new(failure)))
}

fn find_here(parent: &Directory, path: &[u8], id: ObjectId) -> Result<(Arc<Repository>, Commit), GitError> {
    let mut tried = Vec::new();
    for place in places(parent, path) {
        let Ok(repository) = Repository::open(&place) else { continue };
        match repository.commit_by_id(id) {
            Ok(commit) => return Ok((Arc::new(repository), commit)),
            Err(GitError::Missing { .. }) => tried.push(place),
            Err(error) => return Err(error),
        }
    }
    let reason = match tried.first() {
        Some(place) => format!("{} lacks it", place.display()),
        None => "it is not initialised".to_owned(),
    };
    let has_work_tree = parent.repository.work_tree().is_some();
    Err(GitError::Submodule { path: shown(path), commit: id, reason, has_work_tree })
}

/// Where it may be, the likeliest first.
fn places(parent: &Directory, path: &[u8]) -> Vec<PathBuf> {
    let mut places = Vec::new();
    let repository = &parent.repository;
    places.extend(repository.work_tree().map(|top| top.join(OsStr::from_bytes(path)).join(".git")));
    if let Some(name) = name(parent, path) {
        places.push(repository.common_directory().join("modules").join(name));
    }
    places
}

/// What `.gitmodules` of the commit calls the submodule at a path.
fn name(parent: &Directory, path: &[u8]) -> Option<PathBuf> {
    let rules = rules_of(&parent.repository, &parent.commit).ok()??;
    let text = parent.repository.object(&rules, Kind::Blob).ok()?;
    plain(&module(&text, path)?.name)
}

/// The blob of a commit's `.gitmodules`, where that is a file: a link of that name could lead anywhere.
///
/// # Errors
/// The top of the commit cannot be read.
fn rules_of(repository: &Repository, commit: &Commit) -> Result<Option<ObjectId>, GitError> {
    let top = repository.object(&commit.tree, Kind::Tree)?;
    let is_file = |kind| matches!(kind, EntryKind::Blob | EntryKind::BlobExecutable);
    let mut entries = gix::objs::TreeRefIter::from_bytes(&top, commit.tree.kind()).flatten();
    let found = entries.find(|entry| entry.filename == ".gitmodules" && is_file(entry.mode.kind()));
    Ok(found.map(|entry| entry.oid.to_owned()))
}

/// What `.gitmodules` says of the submodule at a path. The first value of a key counts: a file that says two things may
/// mean two readers.
fn module(text: &[u8], path: &[u8]) -> Option<Module> {
    let file = gix::config::File::try_from(text.as_bstr()).ok()?;
    let mut modules: Vec<Module> = Vec::new();
    for section in file.sections_by_name("submodule").into_iter().flatten() {
        let Some(name) = section.header().subsection_name() else { continue };
        let first = |key: &str| Some(section.values(key).into_iter().next()?.to_vec());
        let at = modules.iter().position(|module| module.name == *name).unwrap_or_else(|| {
            modules.push(Module { name: name.to_vec(), ..Module::default() });
            modules.len() - 1
        });
        let module = &mut modules[at];
        let clean = |path: Vec<u8>| path.strip_suffix(b"/").map(<[u8]>::to_vec).unwrap_or(path);
        module.path = module.path.take().or_else(|| first("path").map(clean));
        module.url = module.url.take().or_else(|| first("url"));
        module.is_unwanted |= section.values("update").iter().any(|value| value.as_slice() == b"none");
    }
    modules.into_iter().find(|module| module.path.as_deref() == Some(path))
}

/// A name that leads below `modules` and nowhere else.
fn plain(name: &[u8]) -> Option<PathBuf> {
    let name = Path::new(OsStr::from_bytes(name));
    let is_plain = name.components().all(|part| matches!(part, Component::Normal(_)));
    (is_plain && !name.as_os_str().is_empty()).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_word_of_gitmodules_counts() {
        let text = b"[submodule \"a.b\"]\n path = sub/\n url = ../x.git\n url = file:///etc\n[submodule \"c\"]\n path = c\n\
                     update = none\n[core]\n hookspath = /x\n[submodule \"a.b\"]\n url = other\n path = c\n";
        let first = module(text, b"sub").expect("named");
        assert_eq!((first.name.as_slice(), first.url.as_deref()), (&b"a.b"[..], Some(&b"../x.git"[..])));
        assert!(!first.is_unwanted);
        assert!(module(text, b"c").expect("named").is_unwanted);
        assert_eq!(module(text, b"x"), None);
        assert_eq!(module(b"[broken", b"sub"), None);
    }

    #[test]
    fn names_of_submodules_do_not_lead_out() {
        for (name, is_good) in [
            ("sub", true),
            ("a/b c", true),
            ("", false),
            ("../x", false),
            ("a/../../x", false),
            ("/x", false),
        ] {
            assert_eq!(plain(name.as_bytes()).is_some(), is_good, "{name}");
        }
    }
}
