//! `/dev` of a step: a small tmpfs that holds the devices every program expects, and none of a machine's own.
//!
//! The tmpfs itself opens no devices, so a node that a step makes there is as dead as one in its root file system; each
//! node of ours is a mount of its own. Root makes them; in a user namespace nobody can, so the host's are lent,
//! after a look at their numbers, read-only as far as their metadata goes.

use std::{fs, os::fd::OwnedFd, path::Path};

use rustix::{
    fs::{CWD, FileType, Mode, OFlags, fstat, major, makedev, minor, mkdirat, mknodat, openat, symlinkat},
    io::Errno,
    mount::MountAttrFlags,
};

use crate::sandbox::{
    failure::{Failure, NameStep},
    filesystem::{NODE, Staging, attach_inside, clone_mount, new_file_system},
    plan::{Rung, SandboxPlan, Security},
    sys,
};

/// Name, major and minor number, as in Documentation/admin-guide/devices.txt of Linux.
pub const NODES: &[(&str, u32, u32)] =
    &[("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

pub const LINKS: &[(&str, &str)] = &[
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// The group `tty` of every distribution; not there when the namespace has one id.
const TTY_GROUP: &str = "5";

/// Mounts `/dev` and what belongs into it.
pub fn mount_dev(root: &OwnedFd, staging: &Staging, plan: &SandboxPlan) -> Result<(), Failure> {
    let secure = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let no_devices = secure | MountAttrFlags::MOUNT_ATTR_NODEV;
    let flags = if plan.security == Security::Insecure { secure } else { no_devices };
    let dev = new_file_system("tmpfs", &[("mode", "755"), ("size", "1m")], flags).step("mount /dev")?;
    populate(&dev).step("populate /dev")?;
    if plan.security == Security::Insecure && plan.rung == Rung::Root {
        make_loop_devices(&dev).step("make loop devices")?;
    }
    attach_inside(&dev, root, "/dev").step("mount /dev")?;
    for node in NODES {
        let step = format!("mount /dev/{}", node.0);
        let mount = device_node(staging, plan.rung, *node).step(&step)?;
        attach_inside(&mount, root, &format!("/dev/{}", node.0)).step(&step)?;
    }
    let mut terminal_options = vec![("ptmxmode", "0666"), ("mode", "0620")];
    if plan.rung != Rung::SingleId {
        terminal_options.push(("gid", TTY_GROUP));
    }
    mount_new(root, "/dev/pts", "devpts", &terminal_options, secure)?;
    let size = plan.limits.shared_memory.to_string();
    mount_new(root, "/dev/shm", "tmpfs", &[("mode", "1777"), ("size", &size)], no_devices)?;
    mount_new(root, "/dev/mqueue", "mqueue", &[], no_devices)
}

fn mount_new(
    root: &OwnedFd,
    path: &str,
    kind: &str,
    options: &[(&str, &str)],
    flags: MountAttrFlags,
) -> Result<(), Failure> {
    new_file_system(kind, options, flags)
        .and_then(|mount| attach_inside(&mount, root, path))
        .step(&format!("mount {path}"))
}

fn populate(dev: &OwnedFd) -> Result<(), Errno> {
    for (name, ..) in NODES {
        make_file(dev, name)?;
    }
    for directory in ["pts", "shm", "mqueue"] {
        mkdirat(dev, directory, Mode::from_raw_mode(0o755))?;
    }
    for (name, target) in LINKS {
        symlinkat(*target, dev, *name)?;
    }
    Ok(())
}

/// What turns files into disks, as BuildKit gives it to insecure steps: the host's devices, and as many again as a few
/// steps need, since no new one shows up in a `/dev` of ours. Nothing where the kernel has none.
fn make_loop_devices(dev: &OwnedFd) -> Result<(), Errno> {
    const CONTROL: &str = "loop-control";
    const SPARE: u32 = 8;
    if !Path::new("/dev").join(CONTROL).exists() {
        return Ok(());
    }
    let mode = Mode::from_raw_mode(0o660);
    mknodat(dev, CONTROL, FileType::CharacterDevice, mode, makedev(10, 237))?;
    let names = fs::read_dir("/sys/block").into_iter().flatten().flatten().map(|entry| entry.file_name());
    let numbers = names.filter_map(|name| name.to_str()?.strip_prefix("loop")?.parse::<u32>().ok());
    let there = numbers.max().map_or(0, |highest| highest + 1);
    for number in 0..there + SPARE {
        let name = format!("loop{number}");
        mknodat(dev, name.as_str(), FileType::BlockDevice, mode, makedev(7, number))?;
    }
    Ok(())
}

fn make_file(directory: &OwnedFd, name: &str) -> Result<(), Errno> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    openat(directory, name, flags, Mode::from_raw_mode(0o644)).map(drop)
}

/// A detached mount of one device node.
fn device_node(
    staging: &Staging,
    rung: Rung,
    (name, major, minor): (&str, u32, u32),
) -> Result<OwnedFd, Errno> {
    if rung == Rung::Root {
        let mode = Mode::from_raw_mode(0o666);
        mknodat(staging.directory(), name, FileType::CharacterDevice, mode, makedev(major, minor))?;
        let mount = staging.clone_out(name)?;
        sys::restrict_mount(&mount, MountAttrFlags::MOUNT_ATTR_NOEXEC)?;
        return Ok(mount);
    }
    let mount = clone_mount(CWD, &format!("/dev/{name}"))?;
    check_node(&mount, major, minor)?;
    sys::restrict_mount(&mount, NODE)?;
    Ok(mount)
}

fn check_node(node: &OwnedFd, wanted_major: u32, wanted_minor: u32) -> Result<(), Errno> {
    let stat = fstat(node)?;
    let is_device = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice;
    let number = (major(stat.st_rdev), minor(stat.st_rdev));
    if is_device && number == (wanted_major, wanted_minor) { Ok(()) } else { Err(Errno::NODEV) }
}
