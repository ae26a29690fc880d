//! Which control group a step can be put into.
//!
//! Limits of a whole step need the unified hierarchy (version 2), and there a group of ours: one that this process may
//! make groups in and move processes to. Below version 1, or in a group that nobody has delegated, there is none: what was
//! asked for is refused by its flag, with the one setting that would lift it, and never ignored.

mod group;
mod lease;

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Access, AtFlags, CWD, accessat},
    io::Errno,
};

pub use group::StepGroup;
pub use lease::GroupLease;
use lease::Made;

use crate::sandbox::{
    SandboxError,
    plan::{Amount, Group, GroupLimits, PROCESSES},
};

/// How the machine's control groups are set up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cgroups {
    /// None are mounted.
    None,
    /// Version 1, perhaps with version 2 beside it for naming only; the controllers that are mounted.
    Version1(BTreeSet<String>),
    /// Version 2: the directory of this process's group and the controllers it may hand on.
    Version2 {
        /// Below `/sys/fs/cgroup`.
        group: String,
        /// `cpu`, `memory`, `pids` and so on.
        controllers: BTreeSet<String>,
    },
}

/// From `/proc/self/cgroup`: lines `number:controllers:group`, where number 0 without controllers is version 2.
/// `controllers_of` reads `cgroup.controllers` of a version 2 group.
pub fn parse(membership: &str, controllers_of: impl Fn(&str) -> String) -> Cgroups {
    let (mut version1, mut version2) = (BTreeSet::new(), None);
    for line in membership.lines() {
        let mut fields = line.splitn(3, ':');
        match (fields.next(), fields.next(), fields.next()) {
            (Some("0"), Some(""), Some(group)) => version2 = Some(group.to_owned()),
            (Some(_), Some(controllers), Some(_)) if !controllers.starts_with("name=") => {
                version1.extend(controllers.split(',').map(str::to_owned));
            }
            _ => {}
        }
    }
    match version2 {
        Some(group) if version1.is_empty() => {
            let controllers = controllers_of(&group).split_whitespace().map(str::to_owned).collect();
            Cgroups::Version2 { group, controllers }
        }
        _ if version1.is_empty() => Cgroups::None,
        _ => Cgroups::Version1(version1),
    }
}

/// Those of this process.
pub fn of_this_process() -> Cgroups {
    let membership = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    parse(&membership, |group| {
        fs::read_to_string(format!("/sys/fs/cgroup{group}/cgroup.controllers")).unwrap_or_default()
    })
}

/// Whether this process may make groups below its own and move processes there.
pub fn is_delegated(group: &str) -> bool {
    is_ours(Path::new(&format!("/sys/fs/cgroup{group}")))
}

fn is_ours(directory: &Path) -> bool {
    let files = ["", "cgroup.procs", "cgroup.subtree_control"].map(|file| directory.join(file));
    files.iter().all(|file| accessat(CWD, file, Access::WRITE_OK, AtFlags::EACCESS).is_ok())
}

/// Finds the group in which steps get theirs: the one that is named, else the nearest above this process that lets us.
/// With `parent`, the groups on the way to it are made, and controllers handed down to it; what was made goes with the answer.
///
/// # Errors
/// There is none; the error begins with the flags that need one.
pub fn find(limits: &GroupLimits, parent: Option<&Path>) -> Result<GroupLease, SandboxError> {
    let found = Hierarchy::of_this_process().and_then(|hierarchy| match parent {
        Some(parent) => hierarchy.leased(parent, &controllers(limits)),
        None => hierarchy.nearest(&controllers(limits)).map(|directory| (directory, None)),
    });
    match found {
        Ok((parent, made)) => Ok(GroupLease::new(Group { parent, limits: limits.clone() }, made)),
        Err(lack) => {
            Err(SandboxError::step(&flags(limits, parent), &lack.to_string(), Some(lack.hint().to_owned())))
        }
    }
}

/// The group in which steps get theirs where nobody has asked for limits, so that a fork bomb is nobody else's matter:
/// only where all is there already. Nothing is changed for it, and it is nobody's lack that there is none.
pub fn find_usual() -> Option<GroupLease> {
    let limits = GroupLimits { processes: Some(Amount::AtMost(PROCESSES)), ..GroupLimits::default() };
    let hierarchy = Hierarchy::of_this_process().ok()?;
    let hands_down = |directory: &PathBuf| {
        let handed = fs::read_to_string(directory.join("cgroup.subtree_control")).unwrap_or_default();
        is_ours(directory) && handed.split_whitespace().any(|name| name == "pids")
    };
    let parent = hierarchy.own.ancestors().map(|group| hierarchy.mount.join(group)).find(hands_down)?;
    Some(GroupLease::new(Group { parent, limits }, None))
}

/// How often a group is made that others take away at the same moment.
const ATTEMPTS: u32 = 10;

/// Why there is no group.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum Lack {
    #[error("no control groups are mounted here")]
    NotMounted,
    #[error(
        "this machine's {controllers} controller is in version 1 of control groups; limits need version 2"
    )]
    Version1 { controllers: String },
    #[error("the control group {group} is not handed the {controllers} controller")]
    NotHanded { group: String, controllers: String },
    #[error("this process's control group {group} is not this user's to divide")]
    NotDelegated { group: String },
    #[error(
        "the control group {group} has processes of its own, and can have limits below it only without them"
    )]
    Occupied { group: String },
    #[error("cannot {what} of the control group {group}: {errno}")]
    Refused { what: &'static str, group: String, errno: Errno },
}

impl Lack {
    fn hint(&self) -> &'static str {
        match self {
            Lack::NotMounted => "mount them: mount -t cgroup2 none /sys/fs/cgroup",
            Lack::Version1 { .. } => {
                "boot with version 2 alone: systemd.unified_cgroup_hierarchy=1 on the kernel's command line"
            }
            Lack::NotHanded { .. } => {
                "have it handed down: Delegate=yes in the systemd unit (user@.service for ordinary users), or + and \
                 its name into cgroup.subtree_control of each group above"
            }
            Lack::NotDelegated { .. } => {
                "start the build in a group of its own: systemd-run --user --scope -p Delegate=yes layerwright build"
            }
            Lack::Occupied { .. } => "name a group without processes with --cgroup-parent",
            Lack::Refused { .. } => "name a group of yours with --cgroup-parent",
        }
    }
}

/// The controllers that keep these limits.
fn controllers(limits: &GroupLimits) -> BTreeSet<&'static str> {
    flags_and_controllers(limits).into_iter().map(|(_, controller)| controller).collect()
}

/// The flags behind limits, as they are typed.
fn flags(limits: &GroupLimits, parent: Option<&Path>) -> String {
    let parent = parent.map(|_| "--cgroup-parent");
    let flags = flags_and_controllers(limits).into_iter().map(|(flag, _)| flag).chain(parent);
    flags.collect::<Vec<_>>().join(", ")
}

fn flags_and_controllers(limits: &GroupLimits) -> Vec<(&'static str, &'static str)> {
    let GroupLimits {
        memory,
        memory_and_swap,
        processor_time,
        processor_shares,
        processors,
        memory_nodes,
        processes,
    } = limits;
    let all = [
        (memory.is_some(), "--memory", "memory"),
        (memory_and_swap.is_some(), "--memory-swap", "memory"),
        (processor_time.is_some(), "--cpus or --cpu-quota", "cpu"),
        (processor_shares.is_some(), "--cpu-shares", "cpu"),
        (processors.is_some(), "--cpuset-cpus", "cpuset"),
        (memory_nodes.is_some(), "--cpuset-mems", "cpuset"),
        (processes.is_some(), "--pids-limit", "pids"),
    ];
    let asked = all.into_iter().filter(|(is_asked, ..)| *is_asked);
    asked.map(|(_, flag, controller)| (flag, controller)).collect()
}

/// The unified hierarchy, as this process sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Hierarchy {
    /// Where its topmost group is mounted.
    mount: PathBuf,
    /// This process's group, below that.
    own: PathBuf,
    /// The controllers of version 1, which are not in this one.
    version1: BTreeSet<String>,
}

impl Hierarchy {
    fn of_this_process() -> Result<Self, Lack> {
        let read = |file| fs::read_to_string(file).unwrap_or_default();
        Self::parse(&read("/proc/self/mountinfo"), &read("/proc/self/cgroup"))
    }

    fn parse(mountinfo: &str, membership: &str) -> Result<Self, Lack> {
        let version1 = match parse(membership, |_| String::new()) {
            Cgroups::Version1(controllers) => controllers,
            _ => BTreeSet::new(),
        };
        let absent = || match version1.is_empty() {
            true => Lack::NotMounted,
            false => Lack::Version1 { controllers: joined(version1.iter().map(String::as_str)) },
        };
        let (root, mount) = mountinfo.lines().find_map(unified_mount).ok_or_else(absent)?;
        let group = membership.lines().find_map(|line| line.strip_prefix("0::")).ok_or_else(absent)?;
        // A group beside the root of our own namespace begins with dots.
        let own = Path::new(group).strip_prefix(root).unwrap_or(Path::new("")).to_owned();
        Ok(Self { mount: PathBuf::from(mount), own, version1 })
    }

    /// The first of this process's group and those above it that can have such a group below it.
    fn nearest(&self, wanted: &BTreeSet<&str>) -> Result<PathBuf, Lack> {
        self.check_version(wanted)?;
        let mut first = None;
        for group in self.own.ancestors() {
            match self.try_group(group, wanted) {
                Ok(directory) => return Ok(directory),
                Err(lack) => first = first.or(Some(lack)),
            }
        }
        Err(first.unwrap_or(Lack::NotMounted))
    }

    /// The group of that name, made where it is missing, with controllers handed down to it.
    fn leased(&self, parent: &Path, wanted: &BTreeSet<&str>) -> Result<(PathBuf, Option<Made>), Lack> {
        self.check_version(wanted)?;
        let parent = parent.strip_prefix("/").unwrap_or(parent);
        let mut attempt = 0;
        loop {
            attempt += 1;
            match self.named(parent, wanted) {
                // Another build has just taken away what it had made.
                Err(Lack::Refused { errno: Errno::NOENT, .. }) if attempt < ATTEMPTS => {}
                found => return found.map(|(directory, made)| (directory, Some(made))),
            }
        }
    }

    fn named(&self, parent: &Path, wanted: &BTreeSet<&str>) -> Result<(PathBuf, Made), Lack> {
        let mut made = Made::default();
        let groups: Vec<&Path> = parent.ancestors().collect();
        for group in groups.into_iter().rev() {
            let failed = |error: io::Error| refused("make a group", group, &error);
            made.make(&self.mount.join(group)).map_err(failed)?;
            self.hand_down(group, wanted)?;
        }
        let directory = self.try_group(parent, wanted)?;
        made.hold(&directory).map_err(|error| refused("use a group", parent, &error))?;
        Ok((directory, made))
    }

    fn check_version(&self, wanted: &BTreeSet<&str>) -> Result<(), Lack> {
        let there: Vec<&str> = wanted.iter().copied().filter(|name| self.version1.contains(*name)).collect();
        match there.is_empty() {
            true => Ok(()),
            false => Err(Lack::Version1 { controllers: joined(there) }),
        }
    }

    fn try_group(&self, group: &Path, wanted: &BTreeSet<&str>) -> Result<PathBuf, Lack> {
        let directory = self.mount.join(group);
        if !is_ours(&directory) {
            return Err(Lack::NotDelegated { group: shown(group) });
        }
        self.hand_down(group, wanted)?;
        Ok(directory)
    }

    /// Lets the groups below have these controllers.
    fn hand_down(&self, group: &Path, wanted: &BTreeSet<&str>) -> Result<(), Lack> {
        let directory = self.mount.join(group);
        let read = |file| fs::read_to_string(directory.join(file)).unwrap_or_default();
        let lacking = |file| {
            let there = read(file);
            let there: BTreeSet<&str> = there.split_whitespace().collect();
            wanted.iter().copied().filter(|name| !there.contains(name)).collect::<Vec<_>>()
        };
        let controllers = lacking("cgroup.controllers");
        if !controllers.is_empty() {
            return Err(Lack::NotHanded { group: shown(group), controllers: joined(controllers) });
        }
        let missing: Vec<String> =
            lacking("cgroup.subtree_control").into_iter().map(|name| format!("+{name}")).collect();
        if missing.is_empty() {
            return Ok(());
        }
        fs::write(directory.join("cgroup.subtree_control"), missing.join(" ")).map_err(|error| {
            match error.raw_os_error().map(Errno::from_raw_os_error) {
                Some(Errno::BUSY) => Lack::Occupied { group: shown(group) },
                _ => refused("write cgroup.subtree_control", group, &error),
            }
        })
    }
}

fn refused(what: &'static str, group: &Path, error: &io::Error) -> Lack {
    let unknown = || match error.kind() {
        io::ErrorKind::NotFound => Errno::NOENT,
        _ => Errno::IO,
    };
    let errno = error.raw_os_error().map_or_else(unknown, Errno::from_raw_os_error);
    Lack::Refused { what, group: shown(group), errno }
}

fn shown(group: &Path) -> String {
    format!("/{}", group.display())
}

fn joined<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    names.into_iter().collect::<Vec<_>>().join(" and ")
}

/// Root and mount point of a line of `/proc/self/mountinfo`, if that is the unified hierarchy.
fn unified_mount(line: &str) -> Option<(&str, &str)> {
    let (mount, file_system) = line.split_once(" - ")?;
    let mut fields = mount.split(' ').skip(3);
    let found = (fields.next()?, fields.next()?);
    (file_system.split(' ').next() == Some("cgroup2")).then_some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn membership_tells_the_version() {
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        let cases = [
            ("", Cgroups::None),
            (
                "0::/user.slice\n",
                Cgroups::Version2 { group: "/user.slice".to_owned(), controllers: set(&["cpu", "pids"]) },
            ),
            (
                "3:cpu,cpuacct:/a\n2:pids:/\n1:name=systemd:/\n0::/\n",
                Cgroups::Version1(set(&["cpu", "cpuacct", "pids"])),
            ),
            ("1:name=systemd:/\n", Cgroups::None),
        ];
        for (membership, expected) in cases {
            assert_eq!(parse(membership, |_| "cpu pids\n".to_owned()), expected, "{membership}");
        }
    }

    #[test]
    fn the_unified_hierarchy_is_where_it_is_mounted() {
        let unified = "30 24 0:26 / /sys/fs/cgroup ro,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        let hybrid = "25 24 0:22 / /sys/fs/cgroup ro - tmpfs tmpfs rw\n\
                      26 25 0:23 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let found = |mounts: &str, membership: &str| {
            Hierarchy::parse(mounts, membership)
                .map(|found| (found.mount.join(&found.own), found.version1.len()))
        };
        let at = |path: &str, version1| Ok((PathBuf::from(path), version1));
        assert_eq!(found(unified, "0::/a/b\n"), at("/sys/fs/cgroup/a/b", 0));
        assert_eq!(found(hybrid, "2:pids:/x\n0::/a\n"), at("/sys/fs/cgroup/unified/a", 1));
        assert_eq!(found(unified, "0::/../other\n"), at("/sys/fs/cgroup/../other", 0));
        assert_eq!(found("", "0::/\n"), Err(Lack::NotMounted));
        assert_eq!(
            found("", "2:pids:/x\n"),
            Err(Lack::Version1 { controllers: "pids".to_owned() }),
            "version 1 alone"
        );
    }

    #[test]
    fn a_refusal_names_the_flags_that_need_a_group() {
        let limits = GroupLimits {
            memory: Some(1),
            processes: Some(Amount::AtMost(1)),
            processors: Some("0".to_owned()),
            ..GroupLimits::default()
        };
        assert_eq!(flags(&limits, None), "--memory, --cpuset-cpus, --pids-limit");
        assert_eq!(flags(&GroupLimits::default(), Some(Path::new("a"))), "--cgroup-parent");
        assert_eq!(controllers(&limits), BTreeSet::from(["cpuset", "memory", "pids"]));
    }

    #[test]
    fn a_group_that_cannot_be_had_is_not_left_behind() {
        let place = tempfile::tempdir().expect("a directory");
        // Controllers reach the second group and not the third.
        for (group, controllers) in [("", "memory"), ("a", "memory"), ("a/b", "")] {
            let directory = place.path().join(group);
            fs::create_dir_all(&directory).expect("made");
            fs::write(directory.join("cgroup.controllers"), controllers).expect("written");
            fs::write(directory.join("cgroup.subtree_control"), controllers).expect("written");
        }
        let hierarchy =
            Hierarchy { mount: place.path().to_owned(), own: PathBuf::new(), version1: BTreeSet::new() };
        let wanted = BTreeSet::from(["memory"]);
        let lack = hierarchy.leased(Path::new("a/new"), &wanted).expect_err("no controllers");
        assert!(matches!(lack, Lack::NotHanded { group, .. } if group == "/a/new"));
        assert!(!place.path().join("a/new").exists() && place.path().join("a").exists());
    }

    #[test]
    fn controllers_of_version_1_cannot_be_handed_down() {
        let version1 = BTreeSet::from(["memory".to_owned(), "pids".to_owned()]);
        let hierarchy = Hierarchy { mount: "/nowhere".into(), own: PathBuf::new(), version1 };
        let lack = hierarchy.nearest(&BTreeSet::from(["memory"])).expect_err("version 1");
        assert_eq!(lack, Lack::Version1 { controllers: "memory".to_owned() });
    }
}
