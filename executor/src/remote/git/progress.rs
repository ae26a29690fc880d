//! How far a fetch has come, read from what git tells people.

use std::sync::atomic::{AtomicU64, Ordering};

use solver::Event;

use super::remote::Remote;
use crate::remote::RemoteOptions;

/// Tells how far a fetch has come.
pub struct Progress<'a> {
    options: &'a RemoteOptions,
    task: String,
    received: AtomicU64,
}

impl<'a> Progress<'a> {
    /// Nothing was received yet.
    pub fn new(options: &'a RemoteOptions, remote: &Remote) -> Self {
        Self { options, task: format!("git {}", remote.shown), received: AtomicU64::new(0) }
    }

    /// `Receiving objects: 42% (21/50), 1.20 MiB | 3.00 MiB/s`
    pub fn heard(&self, line: &str) {
        let Some(bytes) = received(line) else { return };
        self.received.fetch_max(bytes, Ordering::Relaxed);
        (self.options.events)(Event::Transfer { task: self.task.clone(), done: bytes, total: 0 });
    }

    /// All was received.
    pub fn end(&self) {
        let done = self.received.load(Ordering::Relaxed);
        if done > 0 {
            (self.options.events)(Event::Transfer { task: self.task.clone(), done, total: done });
        }
    }
}

fn received(line: &str) -> Option<u64> {
    let rest =
        ["Receiving objects:", "Unpacking objects:"].iter().find_map(|start| line.strip_prefix(start))?;
    let (_, amount) = rest.split_once("), ")?;
    let mut words = amount.split([' ', ',']);
    let (number, unit) = (words.next()?.parse::<f64>().ok()?, words.next()?);
    let scale = match unit {
        "bytes" => 1.0,
        "KiB" => 1024.0,
        "MiB" => 1048576.0,
        "GiB" => 1073741824.0,
        _ => return None,
    };
    Some((number * scale) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_read_in_bytes() {
        for (line, expected) in [
            ("Receiving objects:  42% (21/50), 1.50 KiB | 3.00 MiB/s", Some(1536)),
            ("Unpacking objects: 100% (3/3), 218 bytes | 218.00 KiB/s, done.", Some(218)),
            ("Receiving objects: 100% (3/3), done.", None),
            ("Resolving deltas: 100% (3/3), done.", None),
        ] {
            assert_eq!(received(line), expected, "{line}");
        }
    }
}
