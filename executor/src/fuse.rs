//! What merges layers where the kernel does not: fuse-overlayfs, a program that anybody may use who can open `/dev/fuse`.
//!
//! We mount, and it serves: the file system is made by [`mount`] as any other, attached nowhere, without devices and with
//! set-user-ID programs, and its connection is the standard input of the program. So nothing has to be unmounted: when the
//! last descriptor of the mount is closed, by whoever dies, the connection ends, and the program with it.
//!
//! It runs in the builder's own namespaces, knows the connection and nothing else of the builder: no variable, no other
//! descriptor. A step has neither its process in sight nor the right to trace or signal it.
//!
//! What it writes is not quite what the kernel writes; [`close`] makes good what can be. For the rest each
//! store tries it before it is begun with (`sandbox::files::try_fuse`): who has not allowed for that takes none that does
//! otherwise. What it cannot do a step is told: to change a pipe, socket or device of an earlier layer.

mod below;
mod close;
mod process;
mod times;

use std::{
    fs::File,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::{ffi::OsStrExt, process::CommandExt},
    },
    path::{Component, Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

use rustix::{
    fs::{MemfdFlags, Mode, OFlags, memfd_create, open, openat},
    io::{Errno, retry_on_intr},
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string,
        fsmount, fsopen,
    },
};

pub use close::{CloseError, close};
pub use process::{Ended, Merger};

use crate::{
    mount::{MountError, Overlay},
    sandbox::sys,
};

/// What is called, and how a machine gets it.
pub const NAME: &str = "fuse-overlayfs";

/// Through which it is spoken to.
pub const DEVICE: &str = "/dev/fuse";

/// What helps against what it cannot do.
pub const OTHERWISE: &str = "let --root name a file system on which the kernel mounts overlays, or build where fuse-overlayfs is \
    not in PATH, with copies";

static PROGRAM: OnceLock<Option<PathBuf>> = OnceLock::new();

/// Where it is: in an absolute directory of PATH, looked up once.
pub fn program() -> Option<&'static Path> {
    PROGRAM.get_or_init(find).as_deref()
}

/// Lets it be where the builder has found it: an init has no PATH.
pub fn let_it_be(program: Option<&Path>) {
    // Only the first word counts, and an init hears one.
    let _ = PROGRAM.set(program.map(Path::to_owned));
}

fn find() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .filter(|directory| directory.is_absolute())
        .map(|directory| directory.join(NAME))
        .find(|program| program.is_file())
}

/// A merged file system that hangs nowhere, and what serves it, if that is not the kernel. When this is dropped, so are both.
#[derive(Debug)]
pub struct Merged {
    // The order matters: what is served goes before who serves it.
    root: OwnedFd,
    merger: Option<Merger>,
}

impl Merged {
    /// One that the kernel serves.
    pub fn by_kernel(root: OwnedFd) -> Self {
        Self { root, merger: None }
    }

    /// One that a program serves.
    pub fn by_program(root: OwnedFd, merger: Merger) -> Self {
        Self { root, merger: Some(merger) }
    }

    /// Who serves it.
    pub fn merger(&self) -> Option<&Merger> {
        self.merger.as_ref()
    }

    /// Who serves it, to be changed.
    pub fn merger_mut(&mut self) -> Option<&mut Merger> {
        self.merger.as_mut()
    }

    /// Leaves who serves it to the parent, in a child.
    pub fn disown(self) {
        self.merger.into_iter().for_each(Merger::disown);
    }

    /// The root, and who serves it.
    pub fn into_parts(self) -> (OwnedFd, Option<Merger>) {
        (self.root, self.merger)
    }
}

impl AsFd for Merged {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }
}

/// What merging takes: the program, and a connection to the kernel.
///
/// # Errors
/// One of them is not here, or not for us.
pub fn reach() -> Result<(&'static Path, OwnedFd), MountError> {
    let program = program().ok_or(Errno::NOENT).map_err(failed("fuse find", Path::new(NAME)))?;
    let (device, flags) = (Path::new(DEVICE), OFlags::RDWR | OFlags::CLOEXEC);
    let connection = open(device, flags, Mode::empty()).map_err(failed("fuse open", device))?;
    Ok((program, connection))
}

fn failed(step: &'static str, path: &Path) -> impl FnOnce(Errno) -> MountError {
    let path = path.to_path_buf();
    move |errno| MountError::new(step, &path, errno)
}

/// Merges by program. What is named by the paths must be below one directory, and have no `,`, `:` or `\` in the rest.
///
/// # Errors
/// The step that failed, with its errno and what the program has said.
pub fn mount(overlay: &Overlay<'_>) -> Result<Merged, MountError> {
    let (program, connection) = reach()?;
    let device = Path::new(DEVICE);
    let (base, options) = options(overlay).map_err(failed("fuse name layers", Path::new("")))?;
    let root = attachable(&connection, overlay.writable.is_some()).map_err(failed("fuse mount", device))?;
    let words = memfd_create("words", MemfdFlags::CLOEXEC).map_err(failed("fuse start", program))?;
    let words = File::from(words);
    let merger = start(program, &base, &options, connection, &words).map_err(|error| {
        failed("fuse start", program)(error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error))
    })?;
    // Answered by the program once it has opened everything, and not at all when it has ended before.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match retry_on_intr(|| openat(&root, ".", flags, Mode::empty())) {
        Ok(_) => Ok(Merged::by_program(root, merger)),
        Err(errno) => {
            let said = merger.end_at_once();
            Err(MountError { said, ..failed("fuse serve", program)(errno) })
        }
    }
}

/// A file system that whoever has the other end of the connection serves. Its rights are checked by the kernel, by the ids of
/// our own namespace, and everybody in that may use it.
fn attachable(connection: &OwnedFd, is_writable: bool) -> Result<OwnedFd, Errno> {
    let context = fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let descriptor = connection.as_raw_fd().to_string();
    let settings =
        [("source", NAME), ("fd", &descriptor), ("rootmode", "40000"), ("user_id", "0"), ("group_id", "0")];
    settings.into_iter().try_for_each(|(key, value)| fsconfig_set_string(&context, key, value))?;
    ["allow_other", "default_permissions"]
        .into_iter()
        .try_for_each(|flag| fsconfig_set_flag(&context, flag))?;
    fsconfig_create(&context)?;
    let read_only = if is_writable { MountAttrFlags::empty() } else { MountAttrFlags::MOUNT_ATTR_RDONLY };
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_NODEV | read_only)
}

fn start(
    program: &Path,
    base: &Path,
    options: &str,
    connection: OwnedFd,
    words: &File,
) -> std::io::Result<Merger> {
    let mut command = Command::new(program);
    command.args(["-f", "-o", options, "/dev/fd/0"]).env_clear().current_dir(base).process_group(0);
    command.stdin(connection).stdout(Stdio::null()).stderr(words.try_clone()?);
    // To copy a device up it would open it, and read what the machine has there.
    sys::start_without_devices(&mut command, base)?;
    let child = command.spawn()?;
    // With the command goes our end of the connection.
    Ok(Merger::new(&child, words.try_clone()?))
}

/// The directory that everything is in, and the options by which the program finds it from there.
fn options(overlay: &Overlay<'_>) -> Result<(PathBuf, String), Errno> {
    let (upper, work) = overlay.writable.unzip();
    let all: Vec<&Path> = overlay.lowers.iter().copied().chain(upper).chain(work).collect();
    let base = common(&all).ok_or(Errno::INVAL)?;
    let named = |path: &Path| -> Result<String, Errno> {
        let rest = path.strip_prefix(&base).map_err(|_| Errno::INVAL)?;
        let rest = rest.to_str().ok_or(Errno::ILSEQ)?;
        let is_plain = !rest.contains([',', ':', '\\']);
        if is_plain { Ok(format!("./{rest}")) } else { Err(Errno::INVAL) }
    };
    let lowers: Vec<String> = overlay.lowers.iter().map(|lower| named(lower)).collect::<Result<_, _>>()?;
    let mut options = format!("static_nlink,volatile,lowerdir={}", lowers.join(":"));
    if let Some((upper, work)) = overlay.writable {
        options += &format!(",upperdir={},workdir={}", named(upper)?, named(work)?);
    }
    match options.len() < LONGEST_ARGUMENT {
        true => Ok((base, options)),
        false => Err(Errno::TOOBIG),
    }
}

/// `MAX_ARG_STRLEN` of the kernel.
const LONGEST_ARGUMENT: usize = 128 << 10;

/// The deepest directory that is above all of these, or one of them.
fn common(paths: &[&Path]) -> Option<PathBuf> {
    let (first, others) = paths.split_first()?;
    let mut common: Vec<Component<'_>> = first.components().collect();
    for path in others {
        let same = common.iter().zip(path.components()).take_while(|(a, b)| **a == *b).count();
        common.truncate(same);
    }
    let common: PathBuf = common.iter().collect();
    (!common.as_os_str().as_bytes().is_empty()).then_some(common)
}

#[cfg(test)]
mod tests;
