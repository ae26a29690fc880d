//! Which cgroups this process could limit a step with. Steps do without them today; `doctor` says what is there.

use std::{collections::BTreeSet, fs, path::Path};

use rustix::fs::{Access, access};

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
    let directory = format!("/sys/fs/cgroup{group}");
    let files = [
        directory.clone(),
        format!("{directory}/cgroup.procs"),
        format!("{directory}/cgroup.subtree_control"),
    ];
    files.iter().all(|file| access(Path::new(file), Access::WRITE_OK).is_ok())
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
}
