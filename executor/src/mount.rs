//! Detached overlay mounts: a merged file system that hangs in no mount tree and is gone with its descriptor.
//!
//! The options make the upper directory a self-contained record of what changed: no redirects, no metadata-only
//! copies, no index, inode numbers left alone. Layers are handed over one by one (`lowerdir+`, Linux 6.8), so their
//! number and the characters in their paths do not matter; older kernels take them as one string of descriptors.
//!
//! Where the kernel mounts none, a program may ([`crate::fuse`]): the marks on disk say who it is.

use std::{
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{CWD, Mode, OFlags, open},
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, OpenTreeFlags,
        fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount, mount_change,
        open_tree,
    },
    thread::UnshareFlags,
};

use crate::{
    fuse::{self, Merged},
    sandbox::sys,
};

/// `OVL_MAX_STACK` of the kernel, which says `EINVAL` to the next one.
pub(crate) const MOST_LOWERS: usize = 500;

/// A mount that could not be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("overlay mount: {step} {}: {errno}{}", path.display(), aside(said))]
pub struct MountError {
    /// The call that failed, `fsconfig lowerdir+`.
    pub step: &'static str,
    /// What it was about; the topmost lower directory where no single path is to blame.
    pub path: PathBuf,
    /// What the kernel said.
    pub errno: Errno,
    /// What the program said that merges, if it is one.
    pub said: String,
}

impl MountError {
    pub(crate) fn new(step: &'static str, path: &Path, errno: Errno) -> Self {
        Self { step, path: path.to_path_buf(), errno, said: String::new() }
    }
}

/// What somebody said, in parentheses.
pub(crate) fn aside(said: &str) -> String {
    if said.is_empty() { String::new() } else { format!(" ({said})") }
}

/// Whose extended attributes overlay keeps its marks in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OverlayMarks {
    /// `trusted.overlay.*`: only real root can write them.
    Trusted,
    /// `user.overlay.*`: what a user namespace can write.
    User,
    /// Files called `.wh.NAME`, in the place of attributes and devices: what fuse-overlayfs reads, which merges them.
    Names,
}

/// What to merge.
#[derive(Debug, Clone, Copy)]
pub struct Overlay<'a> {
    /// The directories below, topmost first. Overlay wants at least one, and two where nothing is writable: an empty
    /// directory will do as the lowest.
    pub lowers: &'a [&'a Path],
    /// Upper and work directory, on one file system and neither itself on an overlay; `None` is read-only.
    pub writable: Option<(&'a Path, &'a Path)>,
    /// Where whiteouts' companions, the opaque marks, are kept.
    pub marks: OverlayMarks,
    /// Whether `fsync` inside reaches the disk.
    pub sync: OverlaySync,
}

/// What `fsync(2)` inside the mount does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OverlaySync {
    /// What it says.
    Honoured,
    /// Nothing: whoever mounts makes the upper directory durable himself. The same upper and work directory cannot
    /// be mounted a second time.
    Ignored,
}

/// Mounts an overlay with `fsync` honoured; `lowers` are topmost first, `userxattr` is for user namespaces.
///
/// # Errors
/// The step that failed, with its errno.
pub fn overlay_mount(
    lowers: &[&Path],
    writable: Option<(&Path, &Path)>,
    userxattr: bool,
) -> Result<OwnedFd, MountError> {
    let marks = if userxattr { OverlayMarks::User } else { OverlayMarks::Trusted };
    mount_by_kernel(&Overlay { lowers, writable, marks, sync: OverlaySync::Honoured })
}

/// Mounts an overlay: `nodev`, private, attached nowhere. Needs CAP_SYS_ADMIN over the mount namespace.
///
/// # Errors
/// The step that failed, with its errno: `EINVAL` at `fsconfig create` mostly means that the upper directory lies on an
/// overlay or on a file system without the needed extended attributes.
pub fn mount_overlay(overlay: &Overlay<'_>) -> Result<Merged, MountError> {
    match overlay.marks {
        OverlayMarks::Names => fuse::mount(overlay),
        OverlayMarks::Trusted | OverlayMarks::User => mount_by_kernel(overlay).map(Merged::by_kernel),
    }
}

fn mount_by_kernel(overlay: &Overlay<'_>) -> Result<OwnedFd, MountError> {
    if let [top, ..] = overlay.lowers
        && overlay.lowers.len() > MOST_LOWERS
    {
        let step = "there are more than the 500 layers that overlay can merge, below";
        return Err(MountError::new(step, top, Errno::TOOBIG));
    }
    // In the paths of these two the kernel takes a backslash for what hides the next letter: that would be another directory.
    let is_hidden = |path: &Path| path.as_os_str().as_bytes().contains(&b'\\');
    if overlay.writable.is_some_and(|(upper, work)| is_hidden(upper) || is_hidden(work)) {
        return mount_as_one_string(overlay);
    }
    // EINVAL is what an older kernel says to `lowerdir+`, and every kernel to a path of more than 255 bytes.
    mount_layer_by_layer(overlay).or_else(|error| match error.errno {
        Errno::INVAL => mount_as_one_string(overlay).map_err(|_| error),
        _ => Err(error),
    })
}

fn mount_layer_by_layer(overlay: &Overlay<'_>) -> Result<OwnedFd, MountError> {
    let top = overlay.lowers.first().copied().unwrap_or(Path::new(""));
    let failed = |step, path: &Path| {
        let path = path.to_path_buf();
        move |errno| MountError::new(step, &path, errno)
    };
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(failed("fsopen", top))?;
    fsconfig_set_string(&context, "source", "overlay").map_err(failed("fsconfig source", top))?;
    for lower in overlay.lowers {
        fsconfig_set_string(&context, "lowerdir+", *lower).map_err(failed("fsconfig lowerdir+", lower))?;
    }
    if let Some((upper, work)) = overlay.writable {
        fsconfig_set_string(&context, "upperdir", upper).map_err(failed("fsconfig upperdir", upper))?;
        fsconfig_set_string(&context, "workdir", work).map_err(failed("fsconfig workdir", work))?;
    }
    for option in options(overlay) {
        match option.split_once('=') {
            Some((key, value)) => fsconfig_set_string(&context, key, value),
            None => fsconfig_set_flag(&context, option),
        }
        .map_err(failed("fsconfig option", Path::new(option)))?;
    }
    let blamed = overlay.writable.map_or(top, |(upper, _)| upper);
    fsconfig_create(&context).map_err(failed("fsconfig create", blamed))?;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_NODEV)
        .map_err(failed("fsmount", blamed))
}

/// For Linux before 6.8: mount(2) in a mount namespace of a thread's own, where the topmost lower directory can serve
/// as the mount point without anybody seeing it, and a detached copy of the result.
fn mount_as_one_string(overlay: &Overlay<'_>) -> Result<OwnedFd, MountError> {
    let top = overlay.lowers.first().copied().unwrap_or(Path::new(""));
    let failed = |step| move |errno| MountError::new(step, top, errno);
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            sys::unshare(UnshareFlags::NEWNS | UnshareFlags::FS).map_err(failed("unshare"))?;
            mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
                .map_err(failed("make private"))?;
            // Opened here, for a directory of another mount namespace cannot be a layer.
            let mut held = Vec::new();
            let data = legacy_options(overlay, &mut held)?;
            mount("overlay", top, "overlay", MountFlags::NODEV, Some(data.as_c_str()))
                .map_err(failed("mount"))?;
            open_tree(CWD, top, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)
                .map_err(failed("open_tree"))
        });
        worker.join().unwrap_or_else(|_| Err(failed("mount thread")(Errno::IO)))
    })
}

/// The option string of mount(2). Directories are named by descriptor, which is short and free of separators.
fn legacy_options(overlay: &Overlay<'_>, held: &mut Vec<OwnedFd>) -> Result<std::ffi::CString, MountError> {
    let mut by_descriptor = |path: &Path| {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let failed = |errno| MountError::new("open", path, errno);
        let directory = open(path, flags, Mode::empty()).map_err(failed)?;
        let name = format!("/proc/self/fd/{}", directory.as_raw_fd());
        held.push(directory);
        Ok(name)
    };
    let lowers: Vec<String> =
        overlay.lowers.iter().map(|lower| by_descriptor(lower)).collect::<Result<_, _>>()?;
    let mut data = format!("lowerdir={}", lowers.join(":"));
    if let Some((upper, work)) = overlay.writable {
        data += &format!(",upperdir={},workdir={}", by_descriptor(upper)?, by_descriptor(work)?);
    }
    for option in options(overlay) {
        data.push(',');
        data += option;
    }
    Ok(std::ffi::CString::new(data).expect("made of numbers and our own words"))
}

fn options(overlay: &Overlay<'_>) -> Vec<&'static str> {
    let mut options = vec!["index=off", "redirect_dir=nofollow", "metacopy=off", "xino=off"];
    if overlay.marks == OverlayMarks::User {
        options.push("userxattr");
    }
    if overlay.writable.is_some() && overlay.sync == OverlaySync::Ignored {
        options.push("volatile");
    }
    options
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rustix::fs::openat;

    use super::*;

    #[test]
    fn more_layers_than_overlay_takes_are_told() {
        let lowers = vec![Path::new("/"); MOST_LOWERS + 1];
        let marks = OverlayMarks::Trusted;
        let error =
            mount_overlay(&Overlay { lowers: &lowers, writable: None, marks, sync: OverlaySync::Ignored });
        assert!(error.unwrap_err().to_string().contains("more than the 500 layers"));
    }

    /// Both ways of handing over layers give the same file system, whatever is in the paths.
    #[test]
    fn old_and_new_kernels_agree() {
        if !rustix::process::geteuid().is_root() {
            println!("SKIPPED: overlay mounts outside of a user namespace need root");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let make = |name: &str, files: &[(&str, &str)]| {
            let path = directory.path().join(name);
            fs::create_dir(&path).unwrap();
            files.iter().for_each(|(file, content)| fs::write(path.join(file), content).unwrap());
            path
        };
        let bottom = make("bot,tom:\\", &[("a", "bottom"), ("b", "bottom")]);
        let top = make("top", &[("b", "top")]);
        let long = make(&"x".repeat(250), &[("c", "long")]);
        for mount in [mount_layer_by_layer, mount_as_one_string, mount_by_kernel] {
            let (upper, work) = (make("upper", &[]), make("work", &[]));
            let lowers = [top.as_path(), &bottom, &long];
            let is_old_way = std::ptr::fn_addr_eq(mount, mount_layer_by_layer as fn(&Overlay<'_>) -> _);
            let lowers = if is_old_way { &lowers[..2] } else { &lowers[..] };
            let marks = OverlayMarks::Trusted;
            let writable = Some((upper.as_path(), work.as_path()));
            let overlay = Overlay { lowers, writable, marks, sync: OverlaySync::Ignored };
            let root = mount(&overlay).unwrap();
            let read = |name: &str| {
                let file = openat(&root, name, OFlags::RDONLY, Mode::empty()).unwrap();
                std::io::read_to_string(fs::File::from(file)).unwrap()
            };
            assert_eq!((read("a").as_str(), read("b").as_str()), ("bottom", "top"));
            let flags = OFlags::CREATE | OFlags::WRONLY;
            openat(&root, "made", flags, Mode::RUSR).unwrap();
            assert!(upper.join("made").exists());
            drop(root);
            fs::remove_dir_all(upper).unwrap();
            fs::remove_dir_all(work).unwrap();
        }
    }

    #[test]
    fn a_backslash_hides_nothing() {
        if !rustix::process::geteuid().is_root() {
            println!("SKIPPED: overlay mounts outside of a user namespace need root");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        // The second of each is what a kernel makes of the first.
        ["lower", r"up\per", "upper", r"wo\rk", "work"]
            .iter()
            .for_each(|name| fs::create_dir(path(name)).unwrap());
        let (lower, upper, work) = (path("lower"), path(r"up\per"), path(r"wo\rk"));
        let (marks, sync) = (OverlayMarks::Trusted, OverlaySync::Ignored);
        let writable = Some((upper.as_path(), work.as_path()));
        let root = mount_overlay(&Overlay { lowers: &[&lower], writable, marks, sync }).unwrap();
        openat(&root, "made", OFlags::CREATE | OFlags::WRONLY, Mode::RUSR).unwrap();
        assert!(upper.join("made").exists() && !path("upper").join("made").exists());
    }

    #[test]
    fn a_failure_names_the_step_and_the_path() {
        if !rustix::process::geteuid().is_root() {
            println!("SKIPPED: overlay mounts outside of a user namespace need root");
            return;
        }
        let error = overlay_mount(&[Path::new("/"), Path::new("/nothing")], None, false).unwrap_err();
        assert_eq!((error.path.as_path(), error.errno), (Path::new("/nothing"), Errno::NOENT), "{error}");
    }
}
