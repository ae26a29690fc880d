//! The platform of an image: operating system, architecture and variant (image-spec, image-index.md).
//!
//! Text form is `os[/arch[/variant]]` or an architecture alone, normalised as containerd does: `x86_64` is `amd64`,
//! `aarch64` and `arm64/v8` are `arm64`, `armhf` is `arm/v7`.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::canonical::{Canonical, Encoder};

/// What an image runs on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// CPU architecture by its Go name: `amd64`, `arm64`, `arm`, ...
    pub architecture: String,
    /// Operating system by its Go name: `linux`.
    pub os: String,
    /// Version of the operating system; only Windows images have one.
    #[serde(rename = "os.version", default, skip_serializing_if = "Option::is_none")]
    pub os_version: Option<String>,
    /// Variant of the CPU: `v7` for 32-bit ARM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// A platform's text that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlatformError {
    /// No text of a platform.
    #[error("invalid platform {0:?}: expected os/arch or os/arch/variant, for example linux/amd64")]
    Form(String),
    /// A lone word that is neither a system nor an architecture.
    #[error(
        "invalid platform {0:?}: no operating system or architecture has that name; the architectures are {arches}",
        arches = ARCHITECTURES.join(", ")
    )]
    Word(String),
    /// A system that Go knows nothing of.
    #[error("invalid platform {0:?}: its operating system is unknown; there are {systems}", systems = SYSTEMS.join(", "))]
    System(String),
    /// An architecture that Go knows nothing of.
    #[error("invalid platform {0:?}: its architecture is unknown; there are {arches}", arches = ARCHITECTURES.join(", "))]
    Architecture(String),
}

/// The operating systems that image-spec takes from Go (its `GOOS`), as containerd's parser knows them.
const SYSTEMS: [&str; 18] = [
    "aix",
    "android",
    "darwin",
    "dragonfly",
    "freebsd",
    "hurd",
    "illumos",
    "ios",
    "js",
    "linux",
    "nacl",
    "netbsd",
    "openbsd",
    "plan9",
    "solaris",
    "wasip1",
    "windows",
    "zos",
];

/// The architectures that image-spec takes from Go (its `GOARCH`), as containerd's parser knows them.
const ARCHITECTURES: [&str; 24] = [
    "386",
    "amd64",
    "amd64p32",
    "arm",
    "arm64",
    "arm64be",
    "armbe",
    "loong64",
    "mips",
    "mips64",
    "mips64le",
    "mips64p32",
    "mips64p32le",
    "mipsle",
    "ppc",
    "ppc64",
    "ppc64le",
    "riscv",
    "riscv64",
    "s390",
    "s390x",
    "sparc",
    "sparc64",
    "wasm",
];

impl Platform {
    /// The platform this binary was compiled for: what a build makes when nothing else is asked for.
    pub fn host() -> Self {
        Self::new("linux", std::env::consts::ARCH, None)
    }

    /// A platform with architecture and variant normalised.
    pub fn new(os: &str, architecture: &str, variant: Option<&str>) -> Self {
        let os = if os == "macos" { "darwin" } else { os };
        let (architecture, variant) = normalise(&architecture.to_ascii_lowercase(), variant.unwrap_or(""));
        Self { architecture, os: os.to_ascii_lowercase(), os_version: None, variant }
    }

    /// Whether an image of platform `self` satisfies a request for `wanted`: same system and architecture, and same
    /// variant once defaults are filled in.
    pub fn satisfies(&self, wanted: &Platform) -> bool {
        let own = Self::new(&self.os, &self.architecture, self.variant.as_deref());
        let wanted = Self::new(&wanted.os, &wanted.architecture, wanted.variant.as_deref());
        own.os == wanted.os && own.architecture == wanted.architecture && own.variant == wanted.variant
    }
}

fn normalise(architecture: &str, variant: &str) -> (String, Option<String>) {
    let variant = variant.to_ascii_lowercase();
    let (architecture, variant) = match (architecture, variant.as_str()) {
        ("x86_64" | "x86-64" | "amd64", "v1") => ("amd64", ""),
        ("x86_64" | "x86-64", other) => ("amd64", other),
        ("aarch64" | "arm64", "8" | "v8") => ("arm64", ""),
        ("aarch64", other) => ("arm64", other),
        ("armhf", _) => ("arm", "v7"),
        ("armel", _) => ("arm", "v6"),
        ("arm", "" | "7") => ("arm", "v7"),
        ("arm", "5") => ("arm", "v5"),
        ("arm", "6") => ("arm", "v6"),
        ("arm", "8") => ("arm", "v8"),
        ("i386" | "i486" | "i586" | "i686" | "x86", _) => ("386", ""),
        (architecture, other) => (architecture, other),
    };
    (architecture.to_owned(), (!variant.is_empty()).then(|| variant.to_owned()))
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let bad = || PlatformError::Form(text.to_owned());
        let valid = |part: &&str| {
            !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'))
        };
        let parts: Vec<&str> = text.split('/').collect();
        if !parts.iter().all(valid) {
            return Err(bad());
        }
        let platform = match parts[..] {
            ["local"] => return Ok(Self::host()),
            [word] => {
                let system = Self { architecture: Self::host().architecture, ..Self::new(word, "", None) };
                let known = SYSTEMS.contains(&system.os.as_str());
                if known { system } else { Self::new("linux", word, None) }
            }
            [os, architecture] => Self::new(os, architecture, None),
            [os, architecture, variant] => Self::new(os, architecture, Some(variant)),
            _ => return Err(bad()),
        };
        // BuildKit takes any word in a pair. An image of a mistyped platform runs nowhere, so it is refused here.
        let known_architecture = ARCHITECTURES.contains(&platform.architecture.as_str());
        match parts.len() {
            1 if !known_architecture => Err(PlatformError::Word(text.to_owned())),
            _ if !SYSTEMS.contains(&platform.os.as_str()) => Err(PlatformError::System(text.to_owned())),
            _ if !known_architecture => Err(PlatformError::Architecture(text.to_owned())),
            _ => Ok(platform),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

impl Canonical for Platform {
    fn encode(&self, out: &mut Encoder) {
        let Self { architecture, os, os_version, variant } = self;
        out.field(1, architecture).field(2, os).field(3, os_version).field(4, variant);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_normalised() {
        for (text, want) in [
            ("linux/x86_64", "linux/amd64"),
            ("arm64", "linux/arm64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/armhf", "linux/arm/v7"),
            ("linux/386", "linux/386"),
            ("X86_64", "linux/amd64"),
            ("windows/amd64", "windows/amd64"),
            ("macos/arm64", "darwin/arm64"),
        ] {
            assert_eq!(text.parse::<Platform>().map(|platform| platform.to_string()), Ok(want.to_owned()));
        }
        for text in ["", "linux/", "linux/amd64/v1/x", "linux/../amd64"] {
            assert!(text.parse::<Platform>().is_err(), "{text}");
        }
        assert_eq!("linux".parse(), Ok(Platform { os: "linux".to_owned(), ..Platform::host() }));
    }

    #[test]
    fn names_that_nothing_has_are_refused() {
        for (text, error, listed) in [
            ("foo", PlatformError::Word("foo".to_owned()), "riscv64"),
            ("linux/amd46", PlatformError::Architecture("linux/amd46".to_owned()), "amd64"),
            ("linus/amd64/v2", PlatformError::System("linus/amd64/v2".to_owned()), "linux"),
        ] {
            assert!(error.to_string().contains(listed), "{error}");
            assert_eq!(text.parse::<Platform>(), Err(error), "{text}");
        }
    }
}
