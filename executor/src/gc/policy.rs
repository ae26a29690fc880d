//! How large a store may grow by itself, and how sizes are written.
//!
//! Without a word from the user it is what BuildKit's daemon does by default: at most 80 % of the disk or 100 GB, whichever is
//! less; less than that where under 20 % of the disk is free; but always at least 10 % of the disk or 10 GB, whichever
//! is less.

use std::str::FromStr;

use oci::store::Store;
use rustix::fs::statvfs;

use super::GcError;

/// How large a store may grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cap {
    /// As the disk allows.
    Default,
    /// So many bytes.
    Bytes(u64),
    /// So many hundredths of the disk.
    Percent(u8),
    /// As large as it likes.
    None,
}

/// A size that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no size: expected one like 10GB, 512MiB, 20% or off")]
pub struct CapError(String);

impl FromStr for Cap {
    type Err = CapError;

    fn from_str(text: &str) -> Result<Self, CapError> {
        let wrong = || CapError(text.to_owned());
        if text == "off" {
            return Ok(Self::None);
        }
        match text.strip_suffix('%') {
            Some(number) => match number.parse() {
                Ok(percent @ 0..=100) => Ok(Self::Percent(percent)),
                _ => Err(wrong()),
            },
            None => parse_size(text).map(Self::Bytes).ok_or_else(wrong),
        }
    }
}

/// A disk, in bytes.
#[derive(Debug, Clone, Copy)]
struct Disk {
    total: u64,
    free: u64,
}

impl Cap {
    /// The limit for a store of this many bytes; `None` for none.
    ///
    /// # Errors
    /// The disk cannot be asked.
    pub fn limit(self, store: &Store, used: u64) -> Result<Option<u64>, GcError> {
        if let Self::Bytes(bytes) = self {
            return Ok(Some(bytes));
        }
        let stat = statvfs(store.root())
            .map_err(|errno| GcError::io("ask for the disk of", store.root())(errno.into()))?;
        let disk = Disk {
            total: stat.f_blocks.saturating_mul(stat.f_frsize),
            free: stat.f_bavail.saturating_mul(stat.f_frsize),
        };
        Ok(self.limit_on(disk, used))
    }

    fn limit_on(self, disk: Disk, used: u64) -> Option<u64> {
        const GB: u64 = 1_000_000_000;
        let share = |percent: u64| disk.total / 100 * percent;
        match self {
            Self::None => None,
            Self::Bytes(bytes) => Some(bytes),
            Self::Percent(percent) => Some(share(percent.into())),
            Self::Default => {
                let most = share(80).min(100 * GB);
                let reserved = share(10).min(10 * GB);
                let affordable = match share(20).saturating_sub(disk.free) {
                    0 => most,
                    lacking => used.saturating_sub(lacking),
                };
                Some(most.min(affordable).max(reserved))
            }
        }
    }
}

/// A size as docker's flags take it: a number, with a unit or without, which means bytes. `10GB` is decimal, `10GiB` and
/// `10g` are not: docker reads `g` and `gb` alike as powers of 1024; here what is written is what is meant.
pub fn parse_size(text: &str) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let scale: u64 = match unit.trim_start_matches(' ').to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        _ => return None,
    };
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(scale);
    }
    let number: f64 = number.parse().ok().filter(|number: &f64| number.is_finite())?;
    let bytes = number * scale as f64;
    (bytes < u64::MAX as f64).then_some(bytes as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_they_are_written() {
        for (text, expected) in [
            ("0", Some(0)),
            ("512", Some(512)),
            ("10GB", Some(10_000_000_000)),
            ("10gb", Some(10_000_000_000)),
            ("512MiB", Some(512 << 20)),
            ("1.5 KiB", Some(1536)),
            ("2g", Some(2 << 30)),
            ("", None),
            ("GB", None),
            ("-1", None),
            ("10 parsecs", None),
            ("1.2.3GB", None),
            ("99999999999TB", None),
        ] {
            assert_eq!(parse_size(text), expected, "{text:?}");
        }
        for (text, expected) in [
            ("off", Some(Cap::None)),
            ("20%", Some(Cap::Percent(20))),
            ("101%", None),
            ("x%", None),
            ("1kb", Some(Cap::Bytes(1000))),
        ] {
            assert_eq!(text.parse::<Cap>().ok(), expected, "{text:?}");
        }
    }

    #[test]
    fn the_default_is_a_share_of_the_disk_within_bounds() {
        const GB: u64 = 1_000_000_000;
        for (total, free, used, expected) in [
            // Room enough: 80 % or 100 GB.
            (1000 * GB, 900 * GB, GB, 100 * GB),
            (50 * GB, 40 * GB, GB, 40 * GB),
            // Little is free: what lacks of 20 % is given back, but 10 % or 10 GB are kept.
            (50 * GB, 4 * GB, 30 * GB, 24 * GB),
            (50 * GB, 0, 12 * GB, 5 * GB),
            (1000 * GB, 0, 150 * GB, 10 * GB),
        ] {
            let limit = Cap::Default.limit_on(Disk { total, free }, used);
            assert_eq!(limit, Some(expected), "{total} {free} {used}");
        }
    }
}
