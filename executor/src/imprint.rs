//! What a directory of the store holds on disk, as a [`Tree`]: taken when the directory is made, kept beside it, and taken
//! again when somebody wants to know whether it is what it was ([`crate::fsck`]).
//!
//! This is the disk as it is and not a layer: a character device 0:0 is a [`EntryKind::Whiteout`], overlayfs's mark of an
//! opaque directory an [`EntryKind::Opaque`], owners are those that the disk could hold. Times are left out; attributes
//! are those that [reach layers](crate::rootfs::reaches_layer).

use std::{collections::BTreeMap, fs::File, io, os::fd::OwnedFd, path::Path};

use oci::{
    ContentDigest, Entry, EntryKind, EntryTime, Metadata, Tree,
    store::{StoreError, checked},
    tree::TreeError,
};
use rayon::prelude::*;
use rustix::fs::{OFlags, Stat};

use crate::{
    listing::{NodeKind, hash},
    mount::OverlayMarks,
    rootfs::{PathError, failed, join, lstat, names, open_beneath, permissions, shown, xattrs, xattrs_at},
    whiteout::{hidden_by, is_whiteout},
};

/// Name of the file beside `fs/` that holds what was taken of it.
pub const FILE: &str = "tree";

/// Why what is on disk cannot be said.
#[derive(Debug, thiserror::Error)]
pub enum ImprintError {
    /// The system said no.
    #[error(transparent)]
    Path(#[from] PathError),
    /// The entries do not make a tree.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// Something that no directory of the store holds.
    #[error("{0} is a socket")]
    Socket(String),
}

/// Takes the imprint of a directory. The content of a regular file is what `known` says, or is read; files are read
/// several at a time.
///
/// # Errors
/// See [`ImprintError`].
pub fn imprint(
    root: &OwnedFd,
    known: &(dyn Fn(&Stat) -> Option<ContentDigest> + Sync),
) -> Result<Tree, ImprintError> {
    let (mut entries, mut files) = walk(root)?;
    let read = files.par_iter_mut().map(|(names, entry)| {
        let EntryKind::File { content, .. } = &mut entry.kind else { return Ok(()) };
        let path = &entry.path;
        let file =
            open_beneath(root, path, OFlags::RDONLY | OFlags::NONBLOCK).map_err(failed("reading", path))?;
        entry.metadata.xattrs = xattrs(&file).map_err(failed("reading attributes of", path))?;
        *content = match known(&names.stat) {
            Some(content) => content,
            None => content_of(file.into(), names.stat.st_size).map_err(failed("reading", path))?,
        };
        Ok(())
    });
    read.collect::<Result<(), PathError>>()?;
    for (names, entry) in files {
        let link = |path| Entry {
            path,
            kind: EntryKind::HardLink { target: entry.path.clone() },
            metadata: entry.metadata.clone(),
        };
        entries.extend(names.others.into_iter().map(link).collect::<Vec<_>>());
        entries.push(entry);
    }
    Ok(Tree::new(entries)?)
}

/// Keeps an imprint in the directory that stands around `fs/`, before that is put in its place.
///
/// # Errors
/// It cannot be written.
pub fn keep(directory: &Path, tree: &Tree) -> Result<(), StoreError> {
    checked::write_binary(&directory.join(FILE), tree.to_bytes())
}

/// Reads what [`keep`] has kept; `None` where there is none.
///
/// # Errors
/// The file is damaged, or cannot be read.
pub fn kept(directory: &Path) -> Result<Option<Tree>, checked::CheckedError> {
    let path = directory.join(FILE);
    let Some(bytes) = checked::read_binary(&path)? else { return Ok(None) };
    let damaged = |error: TreeError| checked::CheckedError::Io { path: path.clone(), source: invalid(error) };
    Tree::from_bytes(&bytes).map(Some).map_err(damaged)
}

fn invalid(error: TreeError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

fn content_of(mut file: File, size: i64) -> io::Result<ContentDigest> {
    let mut hasher = blake3::Hasher::new();
    hash(&mut file, u64::try_from(size).unwrap_or(0), &mut hasher)?;
    Ok(hasher.finalize().into())
}

/// A file, and the names it has beside that of its entry.
struct Names {
    stat: Stat,
    others: Vec<Vec<u8>>,
}

/// Directories and marks; and everything else, whose regular files have no content yet.
type Walked = (Vec<Entry>, Vec<(Names, Entry)>);

fn walk(root: &OwnedFd) -> Result<Walked, ImprintError> {
    let (mut entries, mut files): Walked = Default::default();
    let mut todo = vec![Vec::new()];
    while let Some(dir) = todo.pop() {
        let opened =
            open_beneath(root, &dir, OFlags::RDONLY | OFlags::DIRECTORY).map_err(failed("reading", &dir))?;
        if !dir.is_empty() {
            entries.extend(directory(&opened, &dir)?);
        }
        for name in names(&opened).map_err(failed("reading", &dir))? {
            let path = join(&dir, &name);
            let Some(stat) = lstat(&opened, &name).map_err(failed("reading", &path))? else { continue };
            // No layer has such a file, so it can only be a mark.
            if let Some(hidden) = hidden_by(&name, &stat) {
                let hidden = hidden.map(|hidden| join(&dir, hidden));
                let whiteout =
                    |path| Entry { path, kind: EntryKind::Whiteout, metadata: Metadata::default() };
                entries.extend(hidden.map(whiteout));
                continue;
            }
            let kind = match is_whiteout(&stat) {
                true => EntryKind::Whiteout,
                false => kind(&opened, &path, &stat)?,
            };
            match kind {
                EntryKind::Directory => todo.push(path),
                EntryKind::Whiteout => {
                    entries.push(Entry { path, kind, metadata: Metadata::default() });
                }
                kind => {
                    let mut metadata = metadata(&kind, &stat);
                    if !matches!(kind, EntryKind::File { .. }) {
                        metadata.xattrs =
                            xattrs_at(&opened, &name).map_err(failed("reading attributes of", &path))?;
                    }
                    let entry = Entry { path, metadata, kind };
                    files.push((Names { stat, others: Vec::new() }, entry));
                }
            }
        }
    }
    Ok((entries, together(files)))
}

/// Names of one file become one file with the first of them in byte order.
fn together(mut files: Vec<(Names, Entry)>) -> Vec<(Names, Entry)> {
    files.sort_by(|(_, a), (_, b)| a.path.cmp(&b.path));
    let mut leaders: Vec<(Names, Entry)> = Vec::with_capacity(files.len());
    let mut inodes = BTreeMap::new();
    for (names, entry) in files {
        if names.stat.st_nlink < 2 {
            leaders.push((names, entry));
            continue;
        }
        match inodes.get(&names.stat.st_ino) {
            None => {
                inodes.insert(names.stat.st_ino, leaders.len());
                leaders.push((names, entry));
            }
            Some(leader) => leaders[*leader].0.others.push(entry.path),
        }
    }
    leaders
}

/// A directory's entry, and the mark that it hides what is below.
fn directory(opened: &OwnedFd, path: &[u8]) -> Result<Vec<Entry>, PathError> {
    let stat = rustix::fs::fstat(opened).map_err(failed("reading", path))?;
    let xattrs = xattrs(opened).map_err(failed("reading attributes of", path))?;
    let metadata = Metadata { xattrs, ..metadata(&EntryKind::Directory, &stat) };
    let mut entries = vec![Entry { path: path.to_vec(), kind: EntryKind::Directory, metadata }];
    for marks in [OverlayMarks::Trusted, OverlayMarks::User, OverlayMarks::Names] {
        let is_opaque = marks.is_opaque(opened).map_err(failed("reading attributes of", path))?;
        if is_opaque && entries.len() == 1 {
            let metadata = Metadata::default();
            entries.push(Entry { path: path.to_vec(), kind: EntryKind::Opaque, metadata });
        }
    }
    Ok(entries)
}

fn kind(parent: &OwnedFd, path: &[u8], stat: &Stat) -> Result<EntryKind, ImprintError> {
    let unread = ContentDigest::new([0; 32]);
    Ok(match NodeKind::of(parent, path, stat)? {
        None => return Err(ImprintError::Socket(shown(path))),
        Some(NodeKind::Directory) => EntryKind::Directory,
        Some(NodeKind::File { size, .. }) => EntryKind::File { size, content: unread },
        Some(NodeKind::Symlink { target }) => EntryKind::Symlink { target },
        Some(NodeKind::CharDevice { major, minor }) => EntryKind::CharDevice { major, minor },
        Some(NodeKind::BlockDevice { major, minor }) => EntryKind::BlockDevice { major, minor },
        Some(NodeKind::Fifo) => EntryKind::Fifo,
    })
}

fn metadata(kind: &EntryKind, stat: &Stat) -> Metadata {
    let mode = if matches!(kind, EntryKind::Symlink { .. }) { 0o777 } else { permissions(stat) };
    Metadata { mode, uid: stat.st_uid, gid: stat.st_gid, time: EntryTime::Epoch, xattrs: BTreeMap::new() }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use rustix::fs::Mode;

    use super::*;
    use crate::{rootfs::set_xattr, whiteout::make_whiteout};

    fn open(path: &Path) -> OwnedFd {
        rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).expect("it opens")
    }

    #[test]
    fn everything_on_disk_is_in_its_imprint() {
        let temp = tempfile::tempdir().expect("a temporary directory");
        let root = temp.path();
        fs::create_dir_all(root.join("a/opaque")).expect("made");
        fs::write(root.join("a/file"), "text").expect("written");
        fs::set_permissions(root.join("a/file"), fs::Permissions::from_mode(0o4711)).expect("changed");
        fs::hard_link(root.join("a/file"), root.join("a/again")).expect("linked");
        std::os::unix::fs::symlink("nowhere", root.join("l")).expect("linked");
        set_xattr(open(&root.join("a")), b"user.kept", b"v").expect("attributes work here");
        OverlayMarks::User.mark_opaque(open(&root.join("a/opaque"))).expect("attributes work here");
        make_whiteout(open(root), b"gone").expect("made");

        let tree = imprint(&open(root), &|_| None).expect("readable");
        let told: Vec<_> = tree.entries().iter().map(|entry| (shown(&entry.path), &entry.kind)).collect();
        let file = EntryKind::File { size: 4, content: ContentDigest::of(b"text") };
        let wanted = [
            ("a", EntryKind::Directory),
            ("a/again", file),
            ("a/file", EntryKind::HardLink { target: b"a/again".to_vec() }),
            ("a/opaque", EntryKind::Directory),
            ("a/opaque", EntryKind::Opaque),
            ("gone", EntryKind::Whiteout),
            ("l", EntryKind::Symlink { target: b"nowhere".to_vec() }),
        ];
        assert_eq!(told, wanted.each_ref().map(|(path, kind)| ((*path).to_owned(), kind)));
        assert_eq!(tree.get(b"a/again").expect("there").metadata.mode, 0o4711);
        assert_eq!(tree.get(b"a").expect("there").metadata.xattrs.len(), 1);
    }

    #[test]
    fn what_is_known_is_not_read_and_what_is_kept_comes_back() {
        let temp = tempfile::tempdir().expect("a temporary directory");
        fs::create_dir(temp.path().join("fs")).expect("made");
        fs::write(temp.path().join("fs/file"), "text").expect("written");
        let known = ContentDigest::of(b"told");
        let tree = imprint(&open(&temp.path().join("fs")), &|_| Some(known)).expect("readable");
        let kind = EntryKind::File { size: 4, content: known };
        assert_eq!(tree.get(b"file").map(|entry| &entry.kind), Some(&kind));
        assert!(kept(temp.path()).expect("readable").is_none());
        keep(temp.path(), &tree).expect("written");
        assert_eq!(kept(temp.path()).expect("readable"), Some(tree));
    }
}
