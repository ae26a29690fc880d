//! Limits of RUN steps, each value as `docker build` and `docker run` read it.

use std::{
    path::{Component, Path, PathBuf},
    str::FromStr,
};

use executor::sandbox::{Amount, ProcessorTime};
use solver::op::{Resource, Ulimit};

/// One `--ulimit NAME=SOFT[:HARD]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UlimitSpec {
    /// Of what.
    pub resource: Resource,
    /// How much.
    pub limit: Ulimit,
}

impl FromStr for UlimitSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || "expected NAME=SOFT[:HARD], like nofile=1024:4096; -1 is unlimited".to_owned();
        let (name, limits) = text.split_once('=').ok_or_else(expected)?;
        let resource = name.parse().map_err(|()| {
            let known = Resource::ALL.map(|resource| resource.to_string()).join(", ");
            format!("unknown limit {name:?}: expected one of {known}")
        })?;
        let amount = |text: &str| match text {
            "-1" => Ok(None),
            text => number(text).map(Some).ok_or_else(expected),
        };
        let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
        let limit = Ulimit { soft: amount(soft)?, hard: amount(hard)? };
        let is_above = limit.hard.is_some_and(|hard| limit.soft.is_none_or(|soft| soft > hard));
        match is_above {
            true => Err(format!("the soft limit {soft} is above the hard limit {hard}")),
            false => Ok(Self { resource, limit }),
        }
    }
}

/// One `--resource NAME=VALUE`, as in buildx: what a flag of that name says as well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResourceSpec {
    /// `memory`
    Memory(u64),
    /// `memory-swap`
    MemorySwap(Amount),
    /// `cpu-shares`
    CpuShares(u64),
    /// `cpu-period`
    CpuPeriod(u64),
    /// `cpu-quota`
    CpuQuota(Amount),
    /// `cpuset-cpus`
    CpusetCpus(String),
    /// `cpuset-mems`
    CpusetMems(String),
}

impl FromStr for ResourceSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || format!("invalid resource {text:?}: expected NAME=VALUE");
        let (name, value) = text.split_once('=').ok_or_else(expected)?;
        Ok(match name {
            "memory" => Self::Memory(size(value)?),
            "memory-swap" => Self::MemorySwap(size_or_all(value)?),
            "cpu-shares" => Self::CpuShares(shares(value)?),
            "cpu-period" => Self::CpuPeriod(period(value)?),
            "cpu-quota" => Self::CpuQuota(quota(value)?),
            "cpuset-cpus" => Self::CpusetCpus(list(value)?),
            "cpuset-mems" => Self::CpusetMems(list(value)?),
            _ => {
                const KNOWN: &str =
                    "memory, memory-swap, cpu-shares, cpu-period, cpu-quota, cpuset-cpus, cpuset-mems";
                return Err(format!("unknown resource {name:?}: expected NAME=VALUE, NAME one of {KNOWN}"));
            }
        })
    }
}

/// Bytes.
///
/// # Errors
/// What was expected instead; so everywhere here.
pub fn size(text: &str) -> Result<u64, String> {
    let bytes = parser::size::parse(text).filter(|bytes| *bytes > 0);
    bytes.ok_or_else(|| "expected a size like 64m or 1.5g".to_owned())
}

/// Bytes, or -1 for any number of them.
pub fn size_or_all(text: &str) -> Result<Amount, String> {
    match text {
        "-1" => Ok(Amount::Unlimited),
        text => size(text).map(Amount::AtMost).map_err(|expected| format!("{expected}, or -1")),
    }
}

/// Processors as microseconds of processor time in a usual period.
pub fn processors(text: &str) -> Result<u64, String> {
    let expected = || "expected a number of processors like 2 or 1.5, from 0.01 on".to_owned();
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let count: f64 = text.parse().ok().filter(|_| is_plain).ok_or_else(expected)?;
    let time = (count * ProcessorTime::USUAL_PERIOD as f64).round();
    if (1000.0..1e12).contains(&time) { Ok(time as u64) } else { Err(expected()) }
}

/// Microseconds in a period, or -1 for all there are.
pub fn quota(text: &str) -> Result<Amount, String> {
    let expected = || "expected at least 1000 microseconds, or -1".to_owned();
    if text == "-1" {
        return Ok(Amount::Unlimited);
    }
    number(text).filter(|time| *time >= 1000).map(Amount::AtMost).ok_or_else(expected)
}

/// Microseconds of a period.
pub fn period(text: &str) -> Result<u64, String> {
    let expected = || "expected 1000 to 1000000 microseconds".to_owned();
    number(text).filter(|time| (1000..=1_000_000).contains(time)).ok_or_else(expected)
}

/// A share of the processors.
pub fn shares(text: &str) -> Result<u64, String> {
    let expected = || "expected a number from 2 to 262144".to_owned();
    number(text).filter(|shares| (2..=262_144).contains(shares)).ok_or_else(expected)
}

/// A number of processes, or -1 for any.
pub fn count(text: &str) -> Result<Amount, String> {
    if text == "-1" {
        return Ok(Amount::Unlimited);
    }
    let expected = || "expected a number of at least 1, or -1".to_owned();
    number(text).filter(|count| *count > 0).map(Amount::AtMost).ok_or_else(expected)
}

/// Numbers and ranges of them.
pub fn list(text: &str) -> Result<String, String> {
    let is_range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        number(first).zip(number(last)).is_some_and(|(first, last)| first <= last)
    };
    match text.split(',').all(is_range) {
        true => Ok(text.to_owned()),
        false => Err("expected a list like 0-3,5".to_owned()),
    }
}

/// The path of a control group, below the topmost one.
pub fn group(text: &str) -> Result<PathBuf, String> {
    let path = Path::new(text.trim_start_matches('/'));
    let is_plain = path.components().all(|component| matches!(component, Component::Normal(_)));
    match is_plain && !path.as_os_str().is_empty() && !text.contains(':') {
        true => Ok(path.to_owned()),
        false => Err("expected the path of a control group, like builds or builds/mine".to_owned()),
    }
}

/// One word of a resolver configuration.
pub fn word(text: &str) -> Result<String, String> {
    let is_word =
        !text.is_empty() && !text.contains(|c: char| c.is_whitespace() || c.is_control() || c == '#');
    if is_word { Ok(text.to_owned()) } else { Err("expected one word".to_owned()) }
}

/// A domain that names are looked for in, as docker has it: labels of letters, digits and dashes, with a letter somewhere;
/// or `.`.
pub fn domain(text: &str) -> Result<String, String> {
    let is_label = |label: &str| {
        let is_plain = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        is_plain && !label.is_empty() && !label.starts_with('-') && !label.ends_with('-')
    };
    let name = text.strip_suffix('.').unwrap_or(text);
    let has_letter = name.bytes().any(|byte| byte.is_ascii_alphabetic());
    match text == "." || has_letter && name.len() < 255 && name.split('.').all(is_label) {
        true => Ok(text.to_owned()),
        false => Err("expected a domain like example.com, or . for none".to_owned()),
    }
}

/// Decimal digits and nothing else.
fn number(text: &str) -> Option<u64> {
    text.parse().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resource_without_a_value_is_told_so() {
        let error = "memory".parse::<ResourceSpec>().expect_err("it has no value");
        assert!(error.contains("NAME=VALUE"), "{error}");
    }

    #[test]
    fn a_domain_is_what_docker_takes_for_one() {
        for text in [".", "example.com", "example.com.", "a-b.c", "1.a", "A"] {
            assert_eq!(domain(text).as_deref(), Ok(text));
        }
        for text in ["", "a..b", ".a", "a..", "-a.b", "a-.b", "a_b", "1.2", "a b", "a#", "ä"] {
            assert!(domain(text).is_err(), "{text}");
        }
        assert!(domain(&"a.".repeat(128)).is_err(), "it is too long");
    }

    #[test]
    fn limits_of_processes_are_read_as_docker_reads_them() {
        for (text, resource, soft, hard) in [
            ("nofile=1024", Resource::Nofile, Some(1024), Some(1024)),
            ("nofile=1024:4096", Resource::Nofile, Some(1024), Some(4096)),
            ("memlock=-1", Resource::Memlock, None, None),
            ("stack=1:-1", Resource::Stack, Some(1), None),
            ("core=0", Resource::Core, Some(0), Some(0)),
        ] {
            let limit = Ulimit { soft, hard };
            assert_eq!(text.parse(), Ok(UlimitSpec { resource, limit }), "{text}");
        }
        for (text, part) in [
            ("nofile", "NAME=SOFT"),
            ("nofile=", "NAME=SOFT"),
            ("nofile=1:2:3", "NAME=SOFT"),
            ("nofile=-2", "NAME=SOFT"),
            ("nofile=1k", "NAME=SOFT"),
            ("files=1", "expected one of as, core, cpu"),
            ("nofile=2:1", "soft limit 2 is above the hard limit 1"),
            ("nofile=-1:1", "soft limit -1 is above the hard limit 1"),
        ] {
            let error = text.parse::<UlimitSpec>().expect_err(text);
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn amounts_have_bounds() {
        assert_eq!(size("64m"), Ok(64 << 20));
        assert_eq!(size_or_all("-1"), Ok(Amount::Unlimited));
        assert_eq!(processors("1.5"), Ok(150_000));
        assert_eq!(processors("0.01"), Ok(1000));
        assert_eq!(quota("-1"), Ok(Amount::Unlimited));
        assert_eq!(quota("1000"), Ok(Amount::AtMost(1000)));
        assert_eq!(count("1"), Ok(Amount::AtMost(1)));
        assert_eq!(list("0-3,5"), Ok("0-3,5".to_owned()));
        assert_eq!(group("/builds/mine"), Ok(PathBuf::from("builds/mine")));
        for refused in
            [size("0"), size("-1"), size("x"), processors("0"), processors("nan"), processors("-1")]
        {
            assert!(refused.is_err(), "{refused:?}");
        }
        for refused in [quota("999"), quota("-2"), count("0"), count("-2"), size_or_all("-2")] {
            assert!(refused.is_err(), "{refused:?}");
        }
        assert!(period("999").is_err() && period("1000001").is_err());
        assert!(shares("1").is_err() && shares("262145").is_err());
        for refused in ["", "a", "3-1", "1,", "0-"] {
            assert!(list(refused).is_err(), "{refused}");
        }
        for refused in ["", "/", "../a", "a/../b", "system.slice:a:b"] {
            assert!(group(refused).is_err(), "{refused}");
        }
        assert!(word("a b").is_err() && word("").is_err());
    }

    #[test]
    fn resources_have_the_names_of_flags() {
        assert_eq!("memory=2g".parse(), Ok(ResourceSpec::Memory(2 << 30)));
        assert_eq!("cpu-quota=50000".parse(), Ok(ResourceSpec::CpuQuota(Amount::AtMost(50_000))));
        for refused in ["memory", "memory=", "disk=1g", "cpus=1"] {
            assert!(refused.parse::<ResourceSpec>().is_err(), "{refused}");
        }
    }
}
