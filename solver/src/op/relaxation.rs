//! `--sandbox-allow`: lines of the sandbox that a person lets go, by name. The list is closed: what is not here, nobody can
//! let go.

use std::{fmt, str::FromStr};

use oci::canonical::{Canonical, Encoder};
use serde::{Deserialize, Serialize};

/// A line of the sandbox that a build may go without.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Relaxation {
    /// A command may make user namespaces, and in them whatever the kernel lets their root do with mounts and namespaces.
    Userns,
    /// Where the machine lets nobody load a system call filter, there is none.
    NoSeccomp,
    /// Where the kernel has no Landlock scopes, steps that see the `/proc` around them run all the same.
    NoLandlock,
    /// Where the machine lets nobody make a keyring, a step has the one of the builder.
    NoKeyring,
    /// Where there is no control group namespace to be had, a step has the one of the builder.
    NoCgroupns,
    /// Where `/proc` cannot be written, a step is no readier than others to be ended when memory runs out.
    NoOomScore,
    /// Where the kernel merges no layers, fuse-overlayfs does, though it does that otherwise.
    FuseOverlayfs,
    /// Where file systems are copies, a command may change a file of an earlier layer under all its names at once.
    HardLinks,
}

impl Relaxation {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Userns,
        Self::NoSeccomp,
        Self::NoLandlock,
        Self::NoKeyring,
        Self::NoCgroupns,
        Self::NoOomScore,
        Self::FuseOverlayfs,
        Self::HardLinks,
    ];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Userns => "userns",
            Self::NoSeccomp => "no-seccomp",
            Self::NoLandlock => "no-landlock",
            Self::NoKeyring => "no-keyring",
            Self::NoCgroupns => "no-cgroupns",
            Self::NoOomScore => "no-oom-score",
            Self::FuseOverlayfs => "fuse-overlayfs",
            Self::HardLinks => "hard-links",
        }
    }

    /// Whether a command can do something with it that it could not do without: then its result is another one. What the
    /// others let go is between the step and the machine, as the rung is.
    pub fn changes_results(self) -> bool {
        match self {
            Self::Userns | Self::NoSeccomp | Self::FuseOverlayfs | Self::HardLinks => true,
            Self::NoLandlock | Self::NoKeyring | Self::NoCgroupns | Self::NoOomScore => false,
        }
    }

    /// Whether it is a matter of how file systems are put together, whatever a step may do in them.
    pub fn is_of_files(self) -> bool {
        matches!(self, Self::FuseOverlayfs | Self::HardLinks)
    }

    /// The names of all, for whoever has given another one.
    pub fn names() -> String {
        Self::ALL.map(Self::name).join(", ")
    }
}

impl fmt::Display for Relaxation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Relaxation {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|relaxation| relaxation.name() == text);
        found.ok_or_else(|| format!("expected one of {}", Self::names()))
    }
}

/// Several of them, each once; written and hashed as their names.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<Relaxation>", into = "Vec<Relaxation>")]
pub struct Relaxations(u8);

impl Relaxations {
    /// Whether nothing is let go.
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }

    /// Whether this line is let go.
    pub fn contain(self, relaxation: Relaxation) -> bool {
        self.0 & bit(relaxation) != 0
    }

    /// All that are in it, in the order of [`Relaxation::ALL`].
    pub fn iter(self) -> impl Iterator<Item = Relaxation> {
        Relaxation::ALL.into_iter().filter(move |relaxation| self.contain(*relaxation))
    }

    /// Those that change what a command can leave.
    pub fn of_results(self) -> Self {
        self.iter().filter(|relaxation| relaxation.changes_results()).collect()
    }

    /// Those that concern file systems.
    pub fn of_files(self) -> Self {
        self.iter().filter(|relaxation| relaxation.is_of_files()).collect()
    }

    /// What is in either.
    pub fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

fn bit(relaxation: Relaxation) -> u8 {
    1 << relaxation as u8
}

impl FromIterator<Relaxation> for Relaxations {
    fn from_iter<T: IntoIterator<Item = Relaxation>>(relaxations: T) -> Self {
        Self(relaxations.into_iter().fold(0, |bits, relaxation| bits | bit(relaxation)))
    }
}

impl From<Vec<Relaxation>> for Relaxations {
    fn from(relaxations: Vec<Relaxation>) -> Self {
        relaxations.into_iter().collect()
    }
}

impl From<Relaxations> for Vec<Relaxation> {
    fn from(relaxations: Relaxations) -> Self {
        relaxations.iter().collect()
    }
}

impl fmt::Display for Relaxations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.iter().map(Relaxation::name).collect();
        f.write_str(&names.join(", "))
    }
}

impl Canonical for Relaxations {
    fn encode(&self, out: &mut Encoder) {
        self.iter().map(|relaxation| relaxation.name().to_owned()).collect::<Vec<_>>().encode(out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_relaxation_is_known_by_its_name() {
        for relaxation in Relaxation::ALL {
            assert_eq!(relaxation.name().parse(), Ok(relaxation));
            let json = serde_json::to_string(&relaxation).expect("JSON");
            assert_eq!(json, format!("{:?}", relaxation.name()));
            let alone: Relaxations = [relaxation].into_iter().collect();
            assert_eq!(alone.iter().collect::<Vec<_>>(), [relaxation]);
        }
        assert!("seccomp".parse::<Relaxation>().is_err_and(|error| error.contains("userns, no-seccomp,")));
    }

    #[test]
    fn several_are_one_set() {
        let set: Relaxations =
            [Relaxation::NoKeyring, Relaxation::Userns, Relaxation::NoKeyring].into_iter().collect();
        assert_eq!(set.to_string(), "userns, no-keyring");
        assert_eq!(set.of_results().to_string(), "userns");
        assert_eq!(set.of_results().and([Relaxation::NoKeyring].into_iter().collect()), set);
        assert!(!set.is_empty() && Relaxations::default().is_empty());
    }
}
