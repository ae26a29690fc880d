//! Subordinate ids: what `/etc/subuid` and `/etc/subgid` grant, or a container has, and the id map made of it. Pure functions
//! over text.

use std::fmt::Write as _;

/// A grant in subuid(5): ids of the host from `start` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// First id.
    pub start: u32,
    /// How many.
    pub count: u32,
}

/// Fewer ids than this cannot hold a distribution's users: `nobody` is 65534.
pub const ENOUGH: u32 = 65_535;

/// Where grants begin, as a rule, and how many ids each has.
const FIRST_FREE: u32 = 100_000;
const OF_A_USER: u32 = 65_536;

/// The ranges that a subuid(5) file grants a user, named by name or by number, in the file's order. Lines that are not
/// `owner:start:count` grant nothing.
pub fn ranges(file: &str, name: Option<&str>, uid: u32) -> Vec<Range> {
    let number = uid.to_string();
    let granted = |line: &str| {
        let mut fields = line.trim().split(':');
        let owner = fields.next()?;
        let range = Range { start: fields.next()?.parse().ok()?, count: fields.next()?.parse().ok()? };
        let ours = (Some(owner) == name || owner == number) && fields.next().is_none();
        let fits = range.count > 0 && range.start.checked_add(range.count).is_some();
        (ours && fits).then_some(range)
    };
    file.lines().filter_map(granted).collect()
}

/// The first ids for a user of a distribution, from where usermod(8) begins, that these subuid(5) files grant to nobody.
pub fn free(files: &[&str]) -> Option<Range> {
    let granted = |line: &str| {
        let mut fields = line.trim().split(':').skip(1);
        let start: u32 = fields.next()?.parse().ok()?;
        Some((start, start.saturating_add(fields.next()?.parse().ok()?)))
    };
    let mut taken: Vec<(u32, u32)> = files.iter().flat_map(|file| file.lines().filter_map(granted)).collect();
    taken.sort_unstable();
    let start = taken.into_iter().fold(FIRST_FREE, |free, (start, end)| {
        if end > free && start < free.saturating_add(OF_A_USER) { end } else { free }
    });
    start.checked_add(OF_A_USER).map(|_| Range { start, count: OF_A_USER })
}

/// The name of a user in a passwd(5) file.
pub fn user_name(passwd: &str, uid: u32) -> Option<&str> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then_some(name)
    })
}

/// The arguments for newuidmap(1) after the process id: the caller's own id becomes 0, the ranges follow from 1 on.
pub fn map_arguments(own: u32, ranges: &[Range]) -> Vec<String> {
    let mut arguments = vec!["0".to_owned(), own.to_string(), "1".to_owned()];
    let mut next = 1_u32;
    for range in ranges {
        let count = range.count.min(u32::MAX - next);
        arguments.extend([next, range.start, count].map(|number| number.to_string()));
        next += count;
    }
    arguments
}

/// The ids that root of a namespace with such a map has there besides itself, as many of them as a distribution's users need.
pub fn beside_root(map: &str) -> Option<Range> {
    let mut lines: Vec<(u32, u32)> = map
        .lines()
        .filter_map(|line| {
            let mut fields = line.split_whitespace();
            Some((fields.next()?.parse().ok()?, fields.nth(1)?.parse().ok()?))
        })
        .collect();
    lines.sort_unstable();
    let end = lines
        .iter()
        .fold(0, |end, (first, count)| if *first == end { end.saturating_add(*count) } else { end });
    let count = end.checked_sub(1)?.min(ENOUGH);
    (count > 0).then_some(Range { start: 1, count })
}

/// How many ids a map in the form of `/proc/self/uid_map` holds.
pub fn mapped(map: &str) -> u64 {
    map.lines().filter_map(|line| line.split_whitespace().nth(2)?.parse::<u64>().ok()).sum()
}

/// Who a namespace's root is outside of it, by such a map.
pub fn outside_root(map: &str) -> Option<u32> {
    let outside = |line: &str| line.trim_start().strip_prefix("0 ")?.split_whitespace().next()?.parse().ok();
    map.lines().find_map(outside)
}

/// Whether it is the map of a machine's first user namespace.
pub fn is_initial(map: &str) -> bool {
    map.split_whitespace().eq(["0", "0", "4294967295"])
}

/// Both maps in one line.
pub fn describe(uid_map: &str, gid_map: &str) -> String {
    let mut description = String::new();
    for (kind, map) in [("uid", uid_map), (" gid", gid_map)] {
        let lines: Vec<String> =
            map.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        write!(description, "{kind} {}", lines.join(",")).expect("writing to a string cannot fail");
    }
    description
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_found_by_name_and_by_number() {
        let range = |start, count| Range { start, count };
        let file = "root:1:1\nann:100000:65536\n\n# note\n1000:200000:10\nann:7\nann:x:1\nann:5:0\nann:4294967295:9\n";
        let cases: [(Option<&str>, u32, &[Range]); 4] = [
            (Some("ann"), 1000, &[range(100_000, 65_536), range(200_000, 10)]),
            (Some("ann"), 1, &[range(100_000, 65_536)]),
            (None, 1000, &[range(200_000, 10)]),
            (Some("bob"), 7, &[]),
        ];
        for (name, uid, expected) in cases {
            assert_eq!(ranges(file, name, uid), expected, "{name:?} {uid}");
        }
    }

    #[test]
    fn what_is_free_is_granted_to_nobody() {
        let start = |files: &[&str]| free(files).map(|range| range.start);
        assert_eq!(start(&[]), Some(100_000));
        assert_eq!(start(&["ann:100000:65536\n"]), Some(165_536));
        assert_eq!(start(&["ann:100000:65536\n", "bob:165536:65536\nx\n:::\n"]), Some(231_072));
        // A gap that is too narrow; one that is wide enough; what lies below.
        assert_eq!(start(&["bob:200000:10\nann:100000:65536\n"]), Some(200_010));
        assert_eq!(start(&["ann:231072:65536\nbob:100000:65536\n"]), Some(165_536));
        assert_eq!(start(&["ann:1000:98999\n", "bob:500:99501\n"]), Some(100_001));
        assert_eq!(start(&["ann:100000:4294867295\n"]), None);
    }

    #[test]
    fn names_are_found_by_number() {
        let passwd = "root:x:0:0::/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\n";
        assert_eq!(user_name(passwd, 1000), Some("ann"));
        assert_eq!(user_name(passwd, 10), None);
    }

    #[test]
    fn maps_begin_with_the_callers_own_id() {
        let ranges = [Range { start: 100_000, count: 65_536 }, Range { start: 5, count: 2 }];
        assert_eq!(map_arguments(1000, &ranges).join(" "), "0 1000 1 1 100000 65536 65537 5 2");
        assert_eq!(map_arguments(1000, &[]).join(" "), "0 1000 1");
    }

    #[test]
    fn a_containers_own_ids_are_those_without_a_gap_behind_root() {
        let cases = [
            ("         0          0 4294967295\n", Some(65_535)),
            ("0 327680 65536\n", Some(65_535)),
            ("0 1000 1\n1 100000 1000\n", Some(1000)),
            ("1 100000 10\n0 1000 1\n500 7 9\n", Some(10)),
            ("0 1000 1\n", None),
            ("5 0 10\n", None),
            ("", None),
        ];
        for (map, count) in cases {
            assert_eq!(beside_root(map), count.map(|count| Range { start: 1, count }), "{map:?}");
        }
    }

    #[test]
    fn maps_are_read_back() {
        let map = "         0       1000          1\n         1     100000      65536\n";
        assert_eq!(mapped(map), 65_537);
        assert_eq!((outside_root(map), outside_root("  1 5 1\n")), (Some(1000), None));
        assert!(!is_initial(map) && is_initial("         0          0 4294967295\n"));
        assert_eq!(describe(map, "0 0 1\n"), "uid 0 1000 1,1 100000 65536 gid 0 0 1");
    }
}
