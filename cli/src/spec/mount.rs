//! `-v SRC:DST[:OPTIONS]` and `--tmpfs DST[:OPTIONS]` of `layerwright run`, in docker's words.

use std::{path::PathBuf, str::FromStr};

use executor::sandbox::Access;
use solver::clean_path;

/// One `-v`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VolumeSpec {
    /// A file or directory of this machine.
    Host {
        /// Where it is.
        source: PathBuf,
        /// Absolute clean path inside.
        target: String,
        /// Whether it can be written.
        access: Access,
    },
    /// A directory that begins with what the image has there, and goes in the end.
    Scratch(String),
}

/// One `--tmpfs`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TmpfsSpec {
    /// Absolute clean path inside.
    pub target: String,
    /// At most this many bytes; `None` is half of the memory.
    pub size: Option<u64>,
}

/// Why something is no mount.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MountSpecError {
    /// Too many parts, or an empty one.
    #[error("invalid volume {0:?}: expected SRC:DST[:ro]")]
    Volume(String),
    /// What docker would keep under a name.
    #[error("there are no named volumes: write {0:?} as a path, /{0} or ./{0}")]
    Named(String),
    /// Nothing can be mounted there.
    #[error("invalid mount target {0:?}: expected an absolute path, and not /")]
    Target(String),
    /// An option that means nothing here.
    #[error("the option {0:?} is not supported; {1} are")]
    Option(String, &'static str),
    /// More than one of them.
    #[error("invalid mode: {0}: expected one of ro and rw")]
    Mode(String),
    /// A size that is none.
    #[error("invalid size {0:?}: expected bytes, or with k, m or g")]
    Size(String),
}

impl FromStr for VolumeSpec {
    type Err = MountSpecError;

    fn from_str(text: &str) -> Result<Self, MountSpecError> {
        let parts: Vec<&str> = text.split(':').collect();
        let (source, at, options) = match parts.as_slice() {
            [at] => return target(at).map(Self::Scratch),
            [source, at] => (*source, *at, ""),
            [source, at, options] => (*source, *at, *options),
            _ => return Err(MountSpecError::Volume(text.to_owned())),
        };
        if source.is_empty() || at.is_empty() {
            return Err(MountSpecError::Volume(text.to_owned()));
        }
        if !source.starts_with(['/', '.']) {
            return Err(MountSpecError::Named(source.to_owned()));
        }
        Ok(Self::Host { source: source.into(), target: target(at)?, access: access(options)? })
    }
}

/// Read and write, if nothing is said; said once at most.
fn access(options: &str) -> Result<Access, MountSpecError> {
    let mut said = None;
    for option in options.split(',').filter(|option| !option.is_empty()) {
        let access = match option {
            "ro" | "readonly" => Access::Read,
            "rw" => Access::Write,
            other => return Err(MountSpecError::Option(other.to_owned(), "ro and rw")),
        };
        if said.replace(access).is_some() {
            return Err(MountSpecError::Mode(options.to_owned()));
        }
    }
    Ok(said.unwrap_or(Access::Write))
}

impl FromStr for TmpfsSpec {
    type Err = MountSpecError;

    fn from_str(text: &str) -> Result<Self, MountSpecError> {
        let (at, options) = text.split_once(':').unwrap_or((text, ""));
        let mut size = None;
        for option in options.split(',').filter(|option| !option.is_empty()) {
            match option.split_once('=') {
                Some(("size", value)) => size = Some(bytes(value)?),
                None if ["rw", "nosuid", "nodev", "exec"].contains(&option) => {}
                _ => {
                    return Err(MountSpecError::Option(
                        option.to_owned(),
                        "size=, rw, nosuid, nodev and exec",
                    ));
                }
            }
        }
        Ok(Self { target: target(at)?, size })
    }
}

/// As tmpfs(5) reads it.
fn bytes(text: &str) -> Result<u64, MountSpecError> {
    let wrong = || MountSpecError::Size(text.to_owned());
    let lower = text.to_ascii_lowercase();
    let number = lower.trim_end_matches(['k', 'm', 'g']);
    let shift = match &lower[number.len()..] {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        _ => return Err(wrong()),
    };
    let count: u64 = number.parse().map_err(|_| wrong())?;
    count.checked_mul(1 << shift).filter(|bytes| *bytes > 0).ok_or_else(wrong)
}

/// A path inside, without `.` and `..`.
fn target(path: &str) -> Result<String, MountSpecError> {
    let clean = clean_path(path);
    match path.starts_with('/') && clean != "/" {
        true => Ok(clean),
        false => Err(MountSpecError::Target(path.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_are_read_as_docker_reads_them() {
        let host = |source: &str, target: &str, access| VolumeSpec::Host {
            source: source.into(),
            target: target.to_owned(),
            access,
        };
        for (text, expected) in [
            ("/a:/b", host("/a", "/b", Access::Write)),
            ("./a:/b:ro", host("./a", "/b", Access::Read)),
            (".:/w/../w//x/", host(".", "/w/x", Access::Write)),
            ("/a:/../../b:rw", host("/a", "/b", Access::Write)),
            ("/data", VolumeSpec::Scratch("/data".to_owned())),
        ] {
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
        for text in [
            "",
            "a",
            "a:/b",
            "/a:b",
            "/a:/",
            "/a:/b:z",
            "/a:/b:ro:x",
            "/a:/b:ro,rw",
            "/a:/b:rw,rw",
            ":/b",
            "/a:",
            "/a:/..",
            "/",
        ] {
            assert!(text.parse::<VolumeSpec>().is_err(), "{text}");
        }
    }

    #[test]
    fn memory_has_a_size() {
        for (text, target, size) in
            [("/t", "/t", None), ("/t:size=64k", "/t", Some(65536)), ("/t:rw,size=2G", "/t", Some(2 << 30))]
        {
            assert_eq!(text.parse(), Ok(TmpfsSpec { target: target.to_owned(), size }), "{text}");
        }
        for text in
            ["t", "/", "/t:size=", "/t:size=x", "/t:size=0", "/t:size=1kk", "/t:noexec", "/t:mode=1777"]
        {
            assert!(text.parse::<TmpfsSpec>().is_err(), "{text}");
        }
    }
}
