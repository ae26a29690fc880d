//! The file systems of a step: its root, `/proc`, `/sys`, `/dev` and the files it is lent, put together in the inner
//! init's own mount namespace, and then made the only ones there are.
//!
//! Everything is mounted by descriptor onto a target that the kernel resolved inside the new root, and looked at again
//! afterwards: what lies there must be what was mounted. `/proc`, `/sys` and `/dev` must be real directories of the
//! image; a link there is refused.

use std::os::fd::{AsFd, OwnedFd};

use rustix::{
    fs::{CWD, Dir, FileType, Mode, OFlags, PROC_SUPER_MAGIC, Stat, fchmod, fchown, fstat, fstatfs, openat},
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
        UnmountFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount_change, move_mount,
        open_tree, unmount,
    },
    process::{Gid, Uid, chdir, fchdir, pivot_root},
};

use crate::{
    fuse::Merged,
    mount::{Overlay, OverlayMarks, OverlaySync, mount_overlay},
    sandbox::{
        devices,
        failure::{Failure, NamePlace, NameStep},
        mounts::{self, Opened},
        plan::{Access, Hidden, Locked, Processes, ProvidedFile, Root, SandboxPlan, Security},
        stubs::{Kind, Stubs},
        sys,
    },
    view::open_in_root,
};

const NOTHING_SPECIAL: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOSUID
    .union(MountAttrFlags::MOUNT_ATTR_NODEV)
    .union(MountAttrFlags::MOUNT_ATTR_NOEXEC);

/// A device node that nobody may change; writing to the device itself is something else.
pub const NODE: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_RDONLY
    .union(MountAttrFlags::MOUNT_ATTR_NOSUID)
    .union(MountAttrFlags::MOUNT_ATTR_NOEXEC);

const READ_ONLY_FILE: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_RDONLY
    .union(MountAttrFlags::MOUNT_ATTR_NOSUID)
    .union(MountAttrFlags::MOUNT_ATTR_NODEV);

/// Mounts the root file system, attached nowhere yet. Device nodes in it cannot be opened: an image or a step could
/// have made one of a disk.
pub fn mount_root(root: &Root, marks: OverlayMarks) -> Result<Merged, Failure> {
    match root {
        Root::Overlay { lowers, upper, work } => {
            let lowers: Vec<_> = lowers.iter().map(|lower| lower.as_path()).collect();
            let writable = Some((upper.as_path(), work.as_path()));
            // The store makes a finished layer durable itself; a package manager's thousand fsyncs are for nothing.
            let overlay = Overlay { lowers: &lowers, writable, marks, sync: OverlaySync::Ignored };
            mount_overlay(&overlay).step("overlay")
        }
        Root::Directory(directory) => {
            let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
            let clone = open_tree(CWD, directory, flags).step("open root directory")?;
            sys::restrict_mount(&clone, MountAttrFlags::MOUNT_ATTR_NODEV).step("forbid devices")?;
            Ok(Merged::by_kernel(clone))
        }
        Root::Chroot { .. } => Err(Failure::new("open root directory", "a chroot is not mounted")),
    }
}

/// Makes the mount points of what every step has that the root file system lacks.
fn make_mount_points(root: &OwnedFd, stubs: &mut Stubs) -> Result<(), Failure> {
    for directory in ["/proc", "/sys", "/dev"] {
        stubs.ensure(root, directory.as_bytes(), Kind::Directory).place(&format!("make {directory}"))?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        let name = format!("find a real directory {directory}");
        match open_in_root(root, directory.as_bytes(), flags) {
            Err(Errno::NOTDIR | Errno::LOOP) => {
                let message = format!(
                    "the image has something else there, on which a step's {directory} cannot be put"
                );
                return Err(Failure::of_image(&name, message));
            }
            found => drop(found.step(&name)?),
        }
    }
    Ok(())
}

/// Builds everything and makes it this process's root. The process must be PID 1 of its PID namespace and alone in its
/// mount namespace. What is made for mount points is in `stubs`, also when this fails.
pub fn enter_root(
    root: OwnedFd,
    plan: &SandboxPlan,
    opened: Vec<Opened<'_>>,
    stubs: &mut Stubs,
) -> Result<(), Failure> {
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .step("make mounts private")?;
    // The staging area will cover it.
    let outer_proc = outer_proc(plan.processes)?;
    let staging = Staging::new()?;
    // On top of everything, where pivot_root finds it without a directory to mount it on.
    attach(&root, CWD, "/").step("attach root")?;
    make_mount_points(&root, stubs)?;
    mount_proc(&root, outer_proc)?;
    mount_sys(&root, plan)?;
    devices::mount_dev(&root, &staging, plan)?;
    for (index, file) in plan.files.iter().enumerate() {
        stubs.ensure(&root, file.target.as_bytes(), Kind::File).place(&format!("make {}", file.target))?;
        let name = format!("mount {}", file.target);
        let clone = lend_file(&staging, file, index).step(&name)?;
        attach_inside(&clone, &root, &file.target).place(&name)?;
    }
    if let Security::Sandbox { hidden, locked, .. } = &plan.security {
        mask(&root, hidden, locked)?;
    }
    mounts::attach_all(&root, &staging, opened, stubs)?;
    if plan.root_access == Access::Read {
        // Nobody can make it any more then, and a missing one is made for every step.
        Stubs::default()
            .ensure(&root, plan.cwd.as_bytes(), Kind::Directory)
            .place("make the working directory")?;
        sys::restrict_mount_alone(&root, MountAttrFlags::MOUNT_ATTR_RDONLY)
            .step("make the root read-only")?;
    }
    leave_old_root(&root)
}

fn mount_proc(root: &OwnedFd, outer: Option<OwnedFd>) -> Result<(), Failure> {
    let proc = match outer {
        Some(outer) => outer,
        None => new_file_system("proc", &[], NOTHING_SPECIAL).step("mount /proc")?,
    };
    attach_inside(&proc, root, "/proc").step("mount /proc")
}

/// The machine's `/proc` with all that covers parts of it, where a step gets that one. Nothing in it can be written, for
/// much of it belongs to other processes of the same user. What the kernel shows of those is what it shows to anybody:
/// to look into them a process would need their capabilities, which no step has, and a step is kept from another's by
/// Landlock or by running alone.
fn outer_proc(processes: Processes) -> Result<Option<OwnedFd>, Failure> {
    const ROOT_INODE: u64 = 1;
    if processes == Processes::Own {
        return Ok(None);
    }
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let proc = open_tree(CWD, "/proc", flags).step("open the machine's /proc")?;
    let is_proc = fstatfs(&proc).step("look at the machine's /proc")?.f_type == PROC_SUPER_MAGIC
        && fstat(&proc).step("look at the machine's /proc")?.st_ino == ROOT_INODE;
    if !is_proc {
        return Err(Failure::new("open the machine's /proc", "it is another file system".to_owned()));
    }
    sys::restrict_mount(&proc, NOTHING_SPECIAL | MountAttrFlags::MOUNT_ATTR_RDONLY)
        .step("make the machine's /proc read-only")?;
    Ok(Some(proc))
}

/// A fresh sysfs belongs to whoever owns the network namespace; where that is somebody else, an empty directory.
fn mount_sys(root: &OwnedFd, plan: &SandboxPlan) -> Result<(), Failure> {
    let read_only = NOTHING_SPECIAL | MountAttrFlags::MOUNT_ATTR_RDONLY;
    let flags = if plan.security == Security::Insecure { NOTHING_SPECIAL } else { read_only };
    let sys = match new_file_system("sysfs", &[], flags) {
        Err(Errno::PERM | Errno::ACCESS) => new_file_system("tmpfs", EMPTY_TMPFS, read_only),
        answer => answer,
    }
    .step("mount /sys")?;
    attach_inside(&sys, root, "/sys").step("mount /sys")
}

/// Options of a tmpfs that holds nothing.
const EMPTY_TMPFS: &[(&str, &str)] = &[("mode", "755"), ("nr_inodes", "2")];

fn mask(root: &OwnedFd, hidden: &[Hidden], locked: &[Locked]) -> Result<(), Failure> {
    for path in hidden.iter().map(|hidden| hidden.path()) {
        let step = format!("mask {path}");
        match path.split_once('*') {
            None => mask_path(root, path).step(&step)?,
            Some((before, after)) => {
                let places = numbered(root, before).step(&step)?;
                places.into_iter().try_for_each(|place| mask_path(root, &(place + after))).step(&step)?;
            }
        }
    }
    for path in locked.iter().map(|locked| locked.path()) {
        lock_path(root, path).step(&format!("make {path} read-only"))?;
    }
    Ok(())
}

/// What is there whose path begins like that and goes on with a number.
fn numbered(root: &OwnedFd, beginning: &str) -> Result<Vec<String>, Errno> {
    let (directory, prefix) = beginning.rsplit_once('/').unwrap_or(("", beginning));
    let opened = match open_in_root(root, directory.as_bytes(), OFlags::RDONLY | OFlags::DIRECTORY) {
        Ok(directory) => Dir::new(directory)?,
        Err(Errno::NOENT) => return Ok(Vec::new()),
        Err(errno) => return Err(errno),
    };
    let mut paths = Vec::new();
    for entry in opened {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let number = name.strip_prefix(prefix).unwrap_or_default();
        if !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()) {
            paths.push(format!("{directory}/{name}"));
        }
    }
    Ok(paths)
}

/// Hides a path that is there: a directory behind an empty one, anything else behind our null device.
fn mask_path(root: &OwnedFd, path: &str) -> Result<(), Errno> {
    let target = match open_in_root(root, path.as_bytes(), OFlags::PATH) {
        Ok(target) => target,
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(errno),
    };
    let cover = if is_directory(&fstat(&target)?) {
        new_file_system("tmpfs", EMPTY_TMPFS, NOTHING_SPECIAL | MountAttrFlags::MOUNT_ATTR_RDONLY)?
    } else {
        let null = clone_mount(root, "dev/null")?;
        sys::restrict_mount(&null, NODE)?;
        null
    };
    attach_inside(&cover, root, path)
}

fn lock_path(root: &OwnedFd, path: &str) -> Result<(), Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE
        | OpenTreeFlags::AT_EMPTY_PATH;
    let target = match open_in_root(root, path.as_bytes(), OFlags::PATH) {
        Ok(target) => target,
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(errno),
    };
    let clone = open_tree(&target, "", flags)?;
    sys::restrict_mount(&clone, MountAttrFlags::MOUNT_ATTR_RDONLY)?;
    attach_inside(&clone, root, path)
}

fn leave_old_root(root: &OwnedFd) -> Result<(), Failure> {
    fchdir(root).step("enter root")?;
    // The old root ends up on top of the new one, whence it is taken away.
    pivot_root(".", ".").step("pivot_root")?;
    unmount(".", UnmountFlags::DETACH).step("detach old root")?;
    chdir("/").step("enter root")
}

/// A private tmpfs from which single files can be lent into the root. It goes with the old root; what was lent stays.
pub struct Staging {
    directory: OwnedFd,
}

impl Staging {
    /// A file can be cloned only from a mount that is attached in our namespace, so the staging area covers the old
    /// root's `/proc`, which is there since we were started through it, and which is needed no more.
    fn new() -> Result<Self, Failure> {
        let flags = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOATIME;
        let directory = new_file_system("tmpfs", &[("mode", "700")], flags).step("make staging area")?;
        attach(&directory, CWD, "/proc").step("make staging area")?;
        Ok(Self { directory })
    }

    /// The directory.
    pub fn directory(&self) -> &OwnedFd {
        &self.directory
    }

    /// A detached mount of one thing in it.
    pub fn clone_out(&self, name: &str) -> Result<OwnedFd, Errno> {
        clone_mount(&self.directory, name)
    }

    /// A new file, as a detached mount. Without an owner it is root's.
    pub fn lend(
        &self,
        name: &str,
        content: &[u8],
        mode: u32,
        owner: Option<(u32, u32)>,
    ) -> Result<OwnedFd, Errno> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let written = openat(&self.directory, name, flags, Mode::RUSR)?;
        write_all(&written, content)?;
        if let Some((uid, gid)) = owner {
            fchown(&written, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
        }
        fchmod(&written, Mode::from_raw_mode(mode))?;
        drop(written);
        self.clone_out(name)
    }
}

fn lend_file(staging: &Staging, file: &ProvidedFile, number: usize) -> Result<OwnedFd, Errno> {
    let clone = staging.lend(&format!("file{number}"), file.content.as_bytes(), file.mode, None)?;
    let mut flags = READ_ONLY_FILE;
    if file.mode & 0o111 == 0 {
        flags |= MountAttrFlags::MOUNT_ATTR_NOEXEC;
    }
    sys::restrict_mount(&clone, flags)?;
    Ok(clone)
}

/// Writes all of it.
pub fn write_all(file: &OwnedFd, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        let written = rustix::io::retry_on_intr(|| rustix::io::write(file, bytes))?;
        bytes = &bytes[written..];
    }
    Ok(())
}

/// A new file system, attached nowhere.
pub fn new_file_system(
    kind: &str,
    options: &[(&str, &str)],
    flags: MountAttrFlags,
) -> Result<OwnedFd, Errno> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "source", kind)?;
    for (key, value) in options {
        fsconfig_set_string(&context, *key, *value)?;
    }
    fsconfig_create(&context)?;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, flags)
}

/// A detached mount of the file or directory at a path that is one of ours, without what is mounted below it.
pub fn clone_mount(directory: impl AsFd, path: &str) -> Result<OwnedFd, Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
    open_tree(directory.as_fd(), path, flags)
}

/// Attaches a detached mount to a path below the new root, and looks whether that is what lies there now.
pub fn attach_inside(mount: &OwnedFd, root: &OwnedFd, path: &str) -> Result<(), Errno> {
    attach_over(mount, &open_in_root(root, path.as_bytes(), OFlags::PATH)?, root, path)
}

/// The same for a path that was opened already: `target` is what is covered, wherever the path leads by now.
pub fn attach_over(mount: &OwnedFd, target: &OwnedFd, root: &OwnedFd, path: &str) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, "", target, "", flags)?;
    let found = open_in_root(root, path.as_bytes(), OFlags::PATH)?;
    let identity = |stat: Stat| (stat.st_dev, stat.st_ino, stat.st_rdev);
    if identity(fstat(&found)?) == identity(fstat(mount)?) { Ok(()) } else { Err(Errno::STALE) }
}

/// Attaches a detached mount to a path that is one of ours.
pub fn attach(mount: &OwnedFd, directory: impl AsFd, path: &str) -> Result<(), Errno> {
    move_mount(mount, "", directory, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

fn is_directory(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}
