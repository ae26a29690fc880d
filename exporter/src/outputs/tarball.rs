//! Outputs that are one tar: an OCI layout, or the files of images. Both are deterministic.

use std::{collections::BTreeMap, io::Write};

use oci::{EntryTime, Reference};

use super::{
    Destination, ExportError, FileSystem, PlatformSplit, Tools,
    blobs::{self, Blob},
    flat::{self, FlatEntry},
    go_on, layout,
};
use crate::{
    archive::{ArchiveError, ArchiveWriter},
    assemble::Assembled,
    layer::TimePolicy,
    pax::{Header, Kind},
};

/// Writes an OCI layout with one image as a tar.
pub fn export_image(
    assembled: &Assembled,
    destination: &Destination,
    names: &[Reference],
    tools: &Tools<'_>,
) -> Result<(), ExportError> {
    destination.write(|out| write_image(assembled, names, None, out, tools))
}

/// The tar of an OCI layout: blobs by digest, then `index.json`, `manifest.json` where it is one that docker loads, too,
/// and `oci-layout`. What names the blobs comes last, so half an archive is no image.
pub fn write_image(
    assembled: &Assembled,
    names: &[Reference],
    manifest_json: Option<&[u8]>,
    out: &mut dyn Write,
    tools: &Tools<'_>,
) -> Result<(), ExportError> {
    let mut all = blobs::contents(assembled);
    all.extend(blobs::manifests(assembled).into_iter().map(|blob| (blob.descriptor.digest, blob)));
    let mut tar = ImageTar { archive: ArchiveWriter::new(out), time: assembled.created };
    tar.directory("blobs")?;
    tar.directory("blobs/sha256")?;
    for blob in all.values() {
        go_on(tools.cancel)?;
        tar.blob(blob, tools)?;
    }
    tar.file("index.json", &layout::index_json(assembled, names))?;
    if let Some(bytes) = manifest_json {
        tar.file("manifest.json", bytes)?;
    }
    tar.file("oci-layout", layout::LAYOUT_FILE.as_bytes())?;
    tar.archive.finish()?;
    Ok(())
}

struct ImageTar<'a> {
    archive: ArchiveWriter<&'a mut dyn Write>,
    time: i64,
}

impl ImageTar<'_> {
    fn directory(&mut self, path: &str) -> Result<(), ArchiveError> {
        let (kind, xattrs) = (Kind::Directory, BTreeMap::new());
        let header = Header {
            path: path.as_bytes(),
            kind,
            mode: 0o755,
            uid: 0,
            gid: 0,
            time: self.time,
            xattrs: &xattrs,
        };
        self.archive.entry(&header)
    }

    fn file(&mut self, path: &str, bytes: &[u8]) -> Result<(), ArchiveError> {
        self.stream(path, bytes.len() as u64, &mut &*bytes)
    }

    fn blob(&mut self, blob: &Blob<'_>, tools: &Tools<'_>) -> Result<(), ExportError> {
        let path = format!("blobs/sha256/{}", blob.descriptor.digest.hex());
        let mut content = blob.open(tools).map_err(blob.failed())?;
        Ok(self.stream(&path, blob.descriptor.size, &mut content)?)
    }

    fn stream(&mut self, path: &str, size: u64, content: &mut dyn std::io::Read) -> Result<(), ArchiveError> {
        let (kind, xattrs) = (Kind::File(size), BTreeMap::new());
        let header = Header {
            path: path.as_bytes(),
            kind,
            mode: 0o644,
            uid: 0,
            gid: 0,
            time: self.time,
            xattrs: &xattrs,
        };
        self.archive.file(&header, size, None, content)
    }
}

fn directory(path: &str, time: i64) -> Header<'_> {
    static NONE: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
    Header { path: path.as_bytes(), kind: Kind::Directory, mode: 0o755, uid: 0, gid: 0, time, xattrs: &NONE }
}

/// Writes the files of images as a tar, each platform's where `split` says.
pub fn export_files(
    systems: &[FileSystem],
    destination: &Destination,
    split: PlatformSplit,
    times: TimePolicy,
    tools: &Tools<'_>,
) -> Result<(), ExportError> {
    destination.write(|out| {
        let mut archive = ArchiveWriter::new(out);
        let mut together = flat::together(systems, split);
        for system in systems {
            let prefix = flat::prefix(systems, split, &system.platform);
            if let Some(prefix) = &prefix {
                archive.entry(&directory(prefix, times.seconds(EntryTime::Epoch, None)))?;
            }
            flat::walk(system, times, tools, &mut |entry| {
                let wanted =
                    together.as_mut().map_or(Ok(true), |taken| taken.take(&system.platform, entry))?;
                if wanted {
                    write_entry(&mut archive, prefix.as_deref(), entry)?;
                }
                Ok(())
            })?;
        }
        archive.finish()?;
        Ok(())
    })
}

fn write_entry(
    archive: &mut ArchiveWriter<&mut dyn Write>,
    prefix: Option<&str>,
    entry: &FlatEntry<'_>,
) -> Result<(), ArchiveError> {
    let placed = |path: &[u8]| match prefix {
        Some(prefix) => [prefix.as_bytes(), b"/", path].concat(),
        None => path.to_vec(),
    };
    let path = placed(&entry.path);
    let target = placed(entry.kind.hard_link_target());
    let kind = entry.kind.in_archive(&target);
    let flat::FlatEntry { mode, uid, gid, time, ref xattrs, .. } = *entry;
    let header = Header { path: &path, kind, mode, uid, gid, time, xattrs };
    let Kind::File(size) = kind else {
        return archive.entry(&header);
    };
    let failed = |source| ArchiveError::Read { path: path.clone(), source };
    let mut content = entry.open().map_err(failed)?;
    archive.file(&header, size, entry.content.as_ref(), &mut content)
}
