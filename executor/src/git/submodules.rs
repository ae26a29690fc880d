//! Where the commit of a submodule is: in the repository of its work tree, or in `.git/modules` of the one that names it.
//! Nothing is fetched.

use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use gix::{ObjectId, bstr::ByteSlice, objs::Kind, objs::tree::EntryKind};

use super::{Commit, GitError, Repository, tree::Directory};
use crate::rootfs::shown;

/// The repository that has the commit of the submodule at `path`, from the top of the one that names it.
///
/// # Errors
/// [`GitError::Submodule`]
pub fn find(parent: &Directory, path: &[u8], id: ObjectId) -> Result<(Arc<Repository>, Commit), GitError> {
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
    Err(GitError::Submodule { path: shown(path), commit: id, reason })
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
    let (repository, commit) = (&parent.repository, &parent.commit);
    let top = repository.object(&commit.tree, Kind::Tree).ok()?;
    let entries = gix::objs::TreeRefIter::from_bytes(&top, commit.tree.kind()).flatten();
    let is_file = |kind| matches!(kind, EntryKind::Blob | EntryKind::BlobExecutable);
    let file =
        entries.into_iter().find(|entry| entry.filename == ".gitmodules" && is_file(entry.mode.kind()))?;
    let text = repository.object(&file.oid.to_owned(), Kind::Blob).ok()?;
    let modules = gix::config::File::try_from(text.as_bstr()).ok()?;
    let named = modules.sections_by_name("submodule")?.find_map(|section| {
        let at = section.value("path")?;
        let at = at.strip_suffix(b"/").unwrap_or(&at);
        (at == path).then(|| section.header().subsection_name().map(|name| name.to_vec())).flatten()
    })?;
    plain(&named)
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
