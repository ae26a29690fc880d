//! Where the most of a tree lies, found out while it is walked, in little memory: the totals of the directories near the top,
//! and the largest file.

use std::collections::BTreeMap;

use super::Room;

/// How deep directories have totals of their own.
const DEPTH: usize = 4;
/// How many of them: in a tree of more, what comes later counts for those above.
const MOST: usize = 10_000;

/// What was added up so far.
#[derive(Default)]
pub struct Heap {
    bytes: u64,
    /// Of directories down to [`DEPTH`], by their names from the top.
    totals: BTreeMap<Vec<Vec<u8>>, u64>,
    /// The way to where the walk is, as far as it has totals.
    way: Vec<Vec<u8>>,
    /// How much deeper it is.
    deeper: usize,
    largest: Option<(Vec<Vec<u8>>, u64)>,
}

impl Heap {
    /// Goes into a directory.
    pub fn descend(&mut self, name: &[u8]) {
        match self.deeper == 0 && self.way.len() < DEPTH {
            true => self.way.push(name.to_vec()),
            false => self.deeper += 1,
        }
    }

    /// Leaves it.
    pub fn ascend(&mut self) {
        match self.deeper {
            0 => drop(self.way.pop()),
            _ => self.deeper -= 1,
        }
    }

    /// Counts the directory itself.
    pub fn add_here(&mut self, bytes: u64) {
        self.bytes += bytes;
        for depth in 1..=self.way.len() {
            let directory = &self.way[..depth];
            if let Some(total) = self.totals.get_mut(directory) {
                *total += bytes;
            } else if self.totals.len() < MOST {
                self.totals.insert(directory.to_vec(), bytes);
            }
        }
    }

    /// Counts something in it.
    pub fn add(&mut self, name: &[u8], bytes: u64) {
        self.add_here(bytes);
        if self.deeper == 0 && self.largest.as_ref().is_none_or(|(_, largest)| bytes > *largest) {
            self.largest = Some((self.way.iter().cloned().chain([name.to_vec()]).collect(), bytes));
        }
    }

    /// What there is, and the smallest thing that has half of it: a file, else the deepest such directory; else whatever has
    /// most.
    pub fn told(self) -> Room {
        let half = self.bytes / 2;
        let file = self.largest.filter(|(_, bytes)| *bytes > half);
        let halves = self.totals.iter().filter(|(_, bytes)| **bytes > half);
        let directory = halves
            .max_by_key(|(names, _)| names.len())
            .or_else(|| self.totals.iter().max_by_key(|(_, bytes)| **bytes));
        let most = file.or_else(|| directory.map(|(names, bytes)| (names.clone(), *bytes)));
        Room { bytes: self.bytes, most: most.map(|(names, bytes)| (spelled(&names), bytes)) }
    }
}

fn spelled(names: &[Vec<u8>]) -> String {
    names.iter().map(|name| format!("/{}", String::from_utf8_lossy(name))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `a/b/c 10` adds; directories are entered and left on the way.
    fn told(lines: &[(&str, u64)]) -> Option<(String, u64)> {
        let mut heap = Heap::default();
        for (path, bytes) in lines {
            let names: Vec<&str> = path.split('/').collect();
            let (name, directories) = names.split_last().expect("a path has a name");
            directories.iter().for_each(|directory| heap.descend(directory.as_bytes()));
            heap.add(name.as_bytes(), *bytes);
            directories.iter().for_each(|_| heap.ascend());
        }
        heap.told().most
    }

    #[test]
    fn what_has_half_of_it_is_named() {
        for (lines, expected) in [
            (&[][..], None),
            (&[("a", 10), ("b/c", 3)], Some(("/a", 10))),
            (&[("a/b/x", 10), ("a/b/y", 10), ("a/c", 5)], Some(("/a/b", 20))),
            (&[("1/2/3/4/5/6/x", 10), ("1/2/3/4/5/y", 10)], Some(("/1/2/3/4", 20))),
            (&[("a/x", 3), ("b/x", 4), ("c/x", 5)], Some(("/c", 5))),
        ] {
            assert_eq!(told(lines), expected.map(|(path, bytes)| (path.to_owned(), bytes)), "{lines:?}");
        }
    }
}
