//! Whether an entry of a layer's tar is the one that the layer's tree has in its place.
//!
//! A layer's tar has the entries of its tree, one by one, in the order of the tree. What comes from elsewhere may be the tar of
//! another tree: that is found out here, and by the hashes of the files. Times are left out: a tar has what a policy makes of
//! them.

use std::borrow::Cow;

use oci::{Entry, EntryKind};

use crate::{
    rootfs::split,
    tarball::{TarEntry, TarKind},
    unpack::{OPAQUE_WHITEOUT, WHITEOUT_PREFIX},
};

/// Whether this is how a tar has that entry of a tree.
pub(super) fn is_that_of(tar: &TarEntry, entry: &Entry) -> bool {
    let TarEntry { path, kind, size, mode, uid, gid, xattrs, seconds: _, nanoseconds: _ } = tar;
    let own = &entry.metadata;
    let is_kind = match (kind, &entry.kind) {
        (TarKind::File, EntryKind::File { size: own, .. }) => size == own,
        (TarKind::File, EntryKind::Whiteout | EntryKind::Opaque) => *size == 0,
        (TarKind::Directory, EntryKind::Directory) | (TarKind::Fifo, EntryKind::Fifo) => true,
        (TarKind::Symlink(target), EntryKind::Symlink { target: own })
        | (TarKind::HardLink(target), EntryKind::HardLink { target: own }) => target == own,
        (TarKind::CharDevice { major, minor }, EntryKind::CharDevice { major: own, minor: own_minor })
        | (TarKind::BlockDevice { major, minor }, EntryKind::BlockDevice { major: own, minor: own_minor }) => {
            (major, minor) == (own, own_minor)
        }
        _ => false,
    };
    let path = path.strip_suffix(b"/").unwrap_or(path);
    let is_metadata = (*mode, *uid, *gid) == (own.mode, own.uid, own.gid) && *xattrs == own.xattrs;
    is_kind && is_metadata && path == &*path_in_tar(entry)
}

fn path_in_tar(entry: &Entry) -> Cow<'_, [u8]> {
    let (parent, name) = split(&entry.path);
    match entry.kind {
        EntryKind::Whiteout if parent.is_empty() => Cow::Owned([WHITEOUT_PREFIX, name].concat()),
        EntryKind::Whiteout => Cow::Owned([parent, b"/", WHITEOUT_PREFIX, name].concat()),
        EntryKind::Opaque => Cow::Owned([&entry.path[..], b"/", OPAQUE_WHITEOUT].concat()),
        _ => Cow::Borrowed(&entry.path),
    }
}

#[cfg(test)]
mod tests {
    use oci::Metadata;

    use super::*;
    use crate::tarball::{
        TarReader,
        craft::{Archive, Fields},
    };

    fn only(archive: Archive) -> TarEntry {
        TarReader::new(&archive.finish()[..]).next_entry().expect("good").expect("one")
    }

    #[test]
    fn everything_but_the_time_counts() {
        let metadata = Metadata { mode: 0o644, ..Metadata::default() };
        let kind = EntryKind::File { size: 1, content: oci::ContentDigest::of(b"x") };
        let entry = Entry { path: b"d/f".to_vec(), kind, metadata };
        let fields = || Fields { path: b"d/f", ..Fields::default() };
        let is_it = |fields: Fields<'_>, content: &[u8]| {
            is_that_of(&only(Archive::default().entry(fields, content)), &entry)
        };
        assert!(is_it(fields(), b"x") && is_it(Fields { time: 7, ..fields() }, b"x"));
        for other in [
            Fields { path: b"d/g", ..fields() },
            Fields { mode: 0o4644, ..fields() },
            Fields { owner: (1, 0), ..fields() },
            Fields { owner: (0, 1), ..fields() },
            Fields { typeflag: b'2', link: b"x", ..fields() },
        ] {
            let content: &[u8] = if other.typeflag == b'0' { b"x" } else { b"" };
            assert!(!is_it(other.clone(), content), "{other:?}");
        }
        assert!(!is_it(fields(), b"xx"));
        let with_attribute = Archive::default().pax(&[("SCHILY.xattr.user.a", b"b")]).entry(fields(), b"x");
        assert!(!is_that_of(&only(with_attribute), &entry));
    }

    #[test]
    fn what_is_gone_has_names_of_its_own() {
        let entry = |path: &str, kind| Entry { path: path.into(), kind, metadata: Metadata::default() };
        for (entry, name) in [
            (entry("w", EntryKind::Whiteout), ".wh.w"),
            (entry("d/w", EntryKind::Whiteout), "d/.wh.w"),
            (entry("d/o", EntryKind::Opaque), "d/o/.wh..wh..opq"),
        ] {
            assert_eq!(&*path_in_tar(&entry), name.as_bytes());
        }
    }
}
