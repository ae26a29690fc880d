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
#[error("invalid platform {0:?}: expected os/arch or os/arch/variant, for example linux/amd64")]
pub struct PlatformError(pub String);

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
        let bad = || PlatformError(text.to_owned());
        let valid = |part: &&str| {
            !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'))
        };
        let parts: Vec<&str> = text.split('/').collect();
        if !parts.iter().all(valid) {
            return Err(bad());
        }
        match parts[..] {
            ["local"] => Ok(Self::host()),
            [os @ ("linux" | "windows" | "darwin" | "freebsd")] => {
                Ok(Self { os: os.to_owned(), ..Self::host() })
            }
            [architecture] => Ok(Self::new("linux", architecture, None)),
            [os, architecture] => Ok(Self::new(os, architecture, None)),
            [os, architecture, variant] => Ok(Self::new(os, architecture, Some(variant))),
            _ => Err(bad()),
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
        ] {
            assert_eq!(text.parse::<Platform>().map(|platform| platform.to_string()), Ok(want.to_owned()));
        }
        for text in ["", "linux/", "linux/amd64/v1/x", "linux/../amd64"] {
            assert!(text.parse::<Platform>().is_err(), "{text}");
        }
    }
}
