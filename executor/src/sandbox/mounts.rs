//! What `RUN --mount` and `RUN --device` bring into a step.
//!
//! Sources are opened by the outer init, in the builder's own mount namespace, as mounts that hang nowhere; the inner one
//! takes the part that is asked for and attaches it. Neither is ever found by a path that something else could
//! change meanwhile: a source's path is resolved inside its own file system, a target inside the new root, each once, to a
//! descriptor. Targets come in order, so one inside of another mount is looked up in that.

use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{CWD, FileType, Mode, OFlags, Stat, fstat, fstatfs, mkdirat},
    io::Errno,
    mount::{MountAttrFlags, OpenTreeFlags, open_tree},
};

use crate::{
    fuse::{Merged, Merger},
    mount::{Overlay, OverlayMarks, OverlaySync, mount_overlay},
    sandbox::{
        failure::{Failure, NamePlace, NameStep},
        filesystem::{NODE, Staging, attach, attach_over, new_file_system},
        plan::{Access, FileTree, MountSource, PlannedMount},
        stubs::{Kind, Stubs, Unmade},
        sys,
    },
    view::open_in_root,
};

const NO_DEVICES: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NODEV;
const NO_SETUID: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOSUID;
const NO_PROGRAMS: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOEXEC;
const READ_ONLY: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_RDONLY;

/// A mount and the file system it comes from, where that is one of the builder's.
pub struct Opened<'a> {
    mount: &'a PlannedMount,
    tree: Option<OwnedFd>,
}

/// Opens what the mounts show, in the builder's mount namespace.
pub fn open_sources(
    mounts: &[PlannedMount],
    marks: OverlayMarks,
) -> Result<(Vec<Opened<'_>>, Vec<Merger>), Failure> {
    let (mut opened, mut mergers) = (Vec::new(), Vec::new());
    for mount in mounts {
        let (tree, merger) = open_source(mount, marks)?.map(Merged::into_parts).unzip();
        opened.push(Opened { mount, tree });
        mergers.extend(merger.flatten());
    }
    Ok((opened, mergers))
}

fn open_source(mount: &PlannedMount, marks: OverlayMarks) -> Result<Option<Merged>, Failure> {
    let name = format!("open what is mounted at {}", mount.target);
    let place =
        |path: &Path| clone(path).map(Merged::by_kernel).step(&format!("{name} ({})", path.display()));
    let tree = match &mount.source {
        MountSource::Tmpfs { .. } | MountSource::Secret { .. } => return Ok(None),
        MountSource::Socket(path) | MountSource::Device(path) => place(path)?,
        MountSource::Host { path, .. } => {
            whole(path).map(Merged::by_kernel).step(&format!("{name} ({})", path.display()))?
        }
        MountSource::Files { tree: FileTree::Place(path), .. } => place(path)?,
        MountSource::Files { tree: FileTree::Merged(lowers), .. } => {
            merge(lowers, None, marks).step(&name)?
        }
        MountSource::Files { tree: FileTree::Scratch { lowers, upper, work }, .. } => {
            merge(lowers, Some((upper, work)), marks).step(&name)?
        }
    };
    Ok(Some(tree))
}

fn clone(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    open_tree(CWD, path, flags | OpenTreeFlags::AT_SYMLINK_NOFOLLOW)
}

/// The same with what is mounted below it; a link is followed, for the machine's own are its own business.
fn whole(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    open_tree(CWD, path, flags | OpenTreeFlags::AT_RECURSIVE)
}

fn merge(
    lowers: &[PathBuf],
    writable: Option<(&PathBuf, &PathBuf)>,
    marks: OverlayMarks,
) -> Result<Merged, crate::mount::MountError> {
    let lowers: Vec<&Path> = lowers.iter().map(PathBuf::as_path).collect();
    let writable = writable.map(|(upper, work)| (upper.as_path(), work.as_path()));
    let sync = if writable.is_some() { OverlaySync::Ignored } else { OverlaySync::Honoured };
    mount_overlay(&Overlay { lowers: &lowers, writable, marks, sync })
}

/// Attaches all of them below the root; what lies there is covered.
pub fn attach_all(
    root: &OwnedFd,
    staging: &Staging,
    opened: Vec<Opened<'_>>,
    stubs: &mut Stubs,
) -> Result<(), Failure> {
    for (number, Opened { mount, tree }) in opened.into_iter().enumerate() {
        let name = format!("mount {}", mount.target);
        refuse_kernels(&mount.target, &name)?;
        let made = Making { root, staging, mount, number }.make(tree)?;
        let kind = if is_directory(&fstat(&made).step(&name)?) { Kind::Directory } else { Kind::File };
        let has_place = stubs.ensure(root, mount.target.as_bytes(), kind);
        has_place.map_err(|unmade| no_place(root, mount, kind, unmade))?;
        // One look only: in a cache mount, another step may put a link in the target's place at any time.
        let target = open_in_root(root, mount.target.as_bytes(), OFlags::PATH).place(&name)?;
        refuse_proc(&target, &name)?;
        attach_over(&made, &target, root, &mount.target).map_err(|errno| out_of_sight(&name, errno))?;
    }
    Ok(())
}

/// What every step has there is not to be covered, nor can anything be made in it. Below `/dev` it can.
fn refuse_kernels(target: &str, name: &str) -> Result<(), Failure> {
    match target {
        "/dev" => Err(Failure::of_image(name, "it cannot be mounted because it covers the devices of /dev")),
        _ if lies_below(target, "/proc") => {
            Err(Failure::of_image(name, "it cannot be mounted because it is inside /proc"))
        }
        _ => Ok(()),
    }
}

/// Whether a target is a directory or in it.
fn lies_below(target: &str, directory: &str) -> bool {
    let rest = target.strip_prefix(directory);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Why something has no place to be mounted at: mostly because something of the other kind is there.
fn no_place(root: &OwnedFd, mount: &PlannedMount, kind: Kind, unmade: Unmade) -> Failure {
    let target = &mount.target;
    let source = match &mount.source {
        MountSource::Host { path, .. } | MountSource::Socket(path) | MountSource::Device(path) => {
            path.display().to_string()
        }
        _ => "what is mounted".to_owned(),
    };
    let step = format!("make {target}");
    let is_there = open_in_root(root, target.as_bytes(), OFlags::PATH).is_ok();
    match (kind, unmade.into()) {
        (Kind::Directory, Errno::NOTDIR) if is_there => {
            Failure::of_image(&step, format!("{source} is a directory, and {target} in the image is none"))
        }
        (Kind::File, Errno::ISDIR) if is_there => {
            Failure::of_image(&step, format!("{source} is no directory, and {target} in the image is one"))
        }
        // What the kernel has there can be covered.
        (_, Errno::ROFS) if lies_below(target, "/sys") => Failure::of_image(
            &format!("mount {target}"),
            "it cannot be mounted because it is inside /sys, which does not have it, and nothing can be made there",
        ),
        _ => Err::<(), _>(unmade).place(&step).expect_err("it is an error"),
    }
}

/// Why something that was mounted does not lie there.
fn out_of_sight(name: &str, errno: Errno) -> Failure {
    match errno {
        Errno::STALE => {
            let message =
                "it cannot be seen there: the path leads to the root directory, or elsewhere by now";
            Failure::of_image(name, message)
        }
        errno => Err::<(), _>(errno).place(name).expect_err("it is an error"),
    }
}

/// What we read of `/proc` afterwards must be the kernel's (CVE-2019-19921).
fn refuse_proc(target: &OwnedFd, name: &str) -> Result<(), Failure> {
    const PROC_SUPER_MAGIC: i64 = 0x9fa0;
    match fstatfs(target).step(name)?.f_type == PROC_SUPER_MAGIC {
        true => Err(Failure::of_image(name, "it cannot be mounted because it is inside /proc")),
        false => Ok(()),
    }
}

/// One mount on its way.
struct Making<'a> {
    root: &'a OwnedFd,
    staging: &'a Staging,
    mount: &'a PlannedMount,
    number: usize,
}

impl Making<'_> {
    /// The mount, attached nowhere.
    fn make(&self, tree: Option<OwnedFd>) -> Result<OwnedFd, Failure> {
        let name = format!("mount {}", self.mount.target);
        let opened = || tree.ok_or(Errno::BADF).step(&name);
        let (made, flags) = match &self.mount.source {
            MountSource::Files { path, access, .. } => {
                let part = self.part(opened()?, path, &name)?;
                (part, NO_DEVICES | of(*access))
            }
            MountSource::Socket(_) => (opened()?, NO_DEVICES | NO_SETUID | NO_PROGRAMS),
            MountSource::Device(_) => (device(opened()?).step(&format!("{name}: a device node"))?, NODE),
            MountSource::Host { access, .. } => (opened()?, NO_DEVICES | NO_SETUID | of(*access)),
            MountSource::Tmpfs { size } => (self.tmpfs(*size, &name)?, NO_DEVICES | NO_SETUID),
            MountSource::Secret { content, mode, uid, gid } => {
                let file = format!("secret{}", self.number);
                let owner = Some((*uid, *gid));
                let made = self.staging.lend(&file, &content.0, *mode, owner);
                let made = made.step(&format!("{name} with owner {uid}:{gid}"))?;
                let programs = if mode & 0o111 == 0 { NO_PROGRAMS } else { MountAttrFlags::empty() };
                (made, READ_ONLY | NO_DEVICES | NO_SETUID | programs)
            }
        };
        sys::restrict_mount(&made, flags).step(&name)?;
        Ok(made)
    }

    /// One file or directory of a file system; links are followed inside of it.
    fn part(&self, tree: OwnedFd, path: &str, name: &str) -> Result<OwnedFd, Failure> {
        if path == "/" {
            return Ok(tree);
        }
        // Only of what is attached in our namespace can a part be cloned. It goes with the old root.
        let place = format!("mount{}", self.number);
        let staged = mkdirat(self.staging.directory(), &place, Mode::RWXU)
            .and_then(|()| attach(&tree, self.staging.directory(), &place));
        staged.step(&format!("{name}: stage"))?;
        let name = format!("{name}: find {path}");
        let part = open_in_root(&tree, path.as_bytes(), OFlags::PATH).place(&name)?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        open_tree(&part, "", flags | OpenTreeFlags::AT_EMPTY_PATH).step(&name)
    }

    /// With the mode of the directory it covers, as runc has it; else the kernel's own.
    fn tmpfs(&self, size: Option<u64>, name: &str) -> Result<OwnedFd, Failure> {
        let covered = match open_in_root(self.root, self.mount.target.as_bytes(), OFlags::PATH) {
            Ok(covered) => format!("{:o}", fstat(&covered).step(name)?.st_mode & 0o7777),
            Err(Errno::NOENT) => "1777".to_owned(),
            Err(errno) => return Err(errno).place(name),
        };
        let size = size.map(|bytes| bytes.to_string());
        let mut options = vec![("mode", covered.as_str())];
        options.extend(size.as_deref().map(|size| ("size", size)));
        new_file_system("tmpfs", &options, NO_DEVICES | NO_SETUID).step(name)
    }
}

fn of(access: Access) -> MountAttrFlags {
    match access {
        Access::Read => READ_ONLY,
        Access::Write => MountAttrFlags::empty(),
    }
}

fn device(node: OwnedFd) -> Result<OwnedFd, Errno> {
    match FileType::from_raw_mode(fstat(&node)?.st_mode) {
        FileType::CharacterDevice | FileType::BlockDevice => Ok(node),
        _ => Err(Errno::NODEV),
    }
}

fn is_directory(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}
