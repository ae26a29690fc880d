//! What a step stands on, directory by directory: what fuse-overlayfs shows of the layers below an upper directory.

use std::{
    ffi::CString,
    os::fd::{AsFd, OwnedFd},
};

use rustix::{
    fs::{FileType, OFlags, Stat, readlinkat},
    io::Errno,
};

use crate::{
    mount::OverlayMarks,
    rootfs::{file_type, lstat, open_beneath},
};

const MARKS: OverlayMarks = OverlayMarks::Names;

/// A directory below, in all layers that show through, topmost first.
pub struct Below(Vec<OwnedFd>);

impl Below {
    /// The directory of a path in these layers, topmost first; `None` where there is none.
    ///
    /// # Errors
    /// What openat2(2) and fstatat(2) say.
    pub fn at(layers: &[OwnedFd], path: &[u8]) -> Result<Option<Self>, Errno> {
        let mut found = Vec::new();
        for layer in layers {
            let (directory, is_last) = enter(layer, path)?;
            found.extend(directory);
            if is_last {
                break;
            }
        }
        Ok((!found.is_empty()).then_some(Self(found)))
    }

    /// What it is, as seen.
    ///
    /// # Errors
    /// What fstat(2) says.
    pub fn stat(&self) -> Result<Stat, Errno> {
        rustix::fs::fstat(&self.0[0])
    }

    /// Where a link of this name points to.
    ///
    /// # Errors
    /// What readlinkat(2) says.
    pub fn target(&self, name: &[u8]) -> Result<CString, Errno> {
        let found = self.0.iter().map(|directory| readlinkat(directory, name, Vec::new()));
        found.into_iter().find(|target| *target != Err(Errno::NOENT)).unwrap_or(Err(Errno::NOENT))
    }

    /// What it has of this name.
    ///
    /// # Errors
    /// What fstatat(2) says.
    pub fn entry(&self, name: &[u8]) -> Result<Option<Stat>, Errno> {
        for directory in &self.0 {
            if let Some(found) = lstat(directory, name)? {
                return Ok(Some(found));
            }
            if MARKS.hides(directory, name)? {
                break;
            }
        }
        Ok(None)
    }
}

/// A directory of one layer, and whether that hides all of the layers below it.
fn enter(layer: &OwnedFd, path: &[u8]) -> Result<(Option<OwnedFd>, bool), Errno> {
    let mut directory = open_beneath(layer, b"", OFlags::PATH | OFlags::DIRECTORY)?;
    let mut is_opaque = false;
    for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
        match lstat(&directory, name)? {
            Some(stat) if file_type(&stat) == FileType::Directory => {
                directory = open_beneath(directory.as_fd(), name, OFlags::PATH | OFlags::DIRECTORY)?;
                is_opaque |= MARKS.is_opaque(&directory)?;
            }
            Some(_) => return Ok((None, true)),
            None => return Ok((None, is_opaque || MARKS.hides(&directory, name)?)),
        }
    }
    Ok((Some(directory), is_opaque))
}
