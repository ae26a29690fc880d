//! The header of one tar entry: ustar where a value fits, PAX records where it does not (POSIX.1-2008, `pax`,
//! "ustar Interchange Format" and "pax Interchange Format").
//!
//! Equal entries have equal bytes: ids are numbers only, there is no access or change time, records stand in the order
//! of their keywords, and a record is written only when ustar has no room for its value. No GNU extension is used.
//! Values of PAX records are raw bytes, also where they are not UTF-8: that is what Go's `archive/tar`, and with it
//! every container engine, writes and reads.

use std::collections::BTreeMap;

use tar::EntryType;

/// Entries begin at multiples of this many bytes.
pub const BLOCK: usize = 512;
/// The largest number that eight digits of base 8 with a NUL hold: ids and device numbers.
const MAX_SHORT: u64 = 0o7_777_777;
/// The same for twelve: sizes and times.
const MAX_LONG: u64 = 0o77_777_777_777;
const NAME_LENGTH: usize = 100;
const PREFIX_LENGTH: usize = 155;

/// What a tar entry is, with what only that kind has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind<'a> {
    /// A regular file of this many bytes.
    File(u64),
    /// Another name of an entry that came before.
    HardLink(&'a [u8]),
    /// A symbolic link and where it points.
    Symlink(&'a [u8]),
    /// A character device: major and minor number.
    CharDevice(u32, u32),
    /// A block device: major and minor number.
    BlockDevice(u32, u32),
    /// A directory; the path gets its trailing slash here.
    Directory,
    /// A named pipe.
    Fifo,
}

/// Everything a header says.
#[derive(Debug, Clone)]
pub struct Header<'a> {
    /// Path without a leading or trailing slash.
    pub path: &'a [u8],
    /// What the entry is.
    pub kind: Kind<'a>,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time in Unix seconds.
    pub time: i64,
    /// Extended attributes by full name.
    pub xattrs: &'a BTreeMap<Vec<u8>, Vec<u8>>,
}

/// A value that no tar can hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// PAX has no record for device numbers.
    #[error("device number {0} is too large for a tar")]
    Device(u32),
    /// A `=` ends the keyword of a PAX record.
    #[error("extended attribute {:?} cannot be written to a tar", String::from_utf8_lossy(.0))]
    Attribute(Vec<u8>),
}

impl Header<'_> {
    /// The blocks that stand before the entry's content.
    ///
    /// # Errors
    /// [`HeaderError`] for what neither ustar nor PAX can say.
    pub fn to_blocks(&self) -> Result<Vec<u8>, HeaderError> {
        let path = self.archive_path();
        let records = self.records(&path)?;
        let mut blocks = Vec::with_capacity(BLOCK);
        if !records.is_empty() {
            let body =
                records.iter().flat_map(|(keyword, value)| record(keyword, value)).collect::<Vec<u8>>();
            blocks.extend_from_slice(extension_header(&path, body.len()).as_bytes());
            blocks.extend_from_slice(&body);
            blocks.resize(blocks.len().next_multiple_of(BLOCK), 0);
        }
        blocks.extend_from_slice(self.ustar(&path).as_bytes());
        Ok(blocks)
    }

    fn archive_path(&self) -> Vec<u8> {
        let mut path = self.path.to_vec();
        if self.kind == Kind::Directory {
            path.push(b'/');
        }
        path
    }

    /// What ustar has no room for, by PAX keyword.
    fn records(&self, path: &[u8]) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, HeaderError> {
        let mut records = BTreeMap::new();
        let mut add =
            |keyword: &str, value: &[u8]| records.insert(keyword.as_bytes().to_vec(), value.to_vec());
        if split_path(path).is_none() {
            add("path", path);
        }
        let target = self.kind.link_target();
        if !target.is_ascii() || target.len() > NAME_LENGTH {
            add("linkpath", target);
        }
        for (keyword, value, limit) in [
            ("size", self.kind.size(), MAX_LONG),
            ("uid", self.uid.into(), MAX_SHORT),
            ("gid", self.gid.into(), MAX_SHORT),
        ] {
            if value > limit {
                add(keyword, value.to_string().as_bytes());
            }
        }
        if short_time(self.time).is_none() {
            add("mtime", self.time.to_string().as_bytes());
        }
        if let Some(number) = self.kind.device().into_iter().find(|number| u64::from(*number) > MAX_SHORT) {
            return Err(HeaderError::Device(number));
        }
        for (name, value) in self.xattrs {
            if name.is_empty() || name.iter().any(|byte| matches!(byte, b'=' | 0)) {
                return Err(HeaderError::Attribute(name.clone()));
            }
            records.insert([b"SCHILY.xattr.", name.as_slice()].concat(), value.clone());
        }
        Ok(records)
    }

    /// The ustar block; values that have a PAX record are cut or 0 here.
    fn ustar(&self, path: &[u8]) -> tar::Header {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(self.kind.entry_type());
        header.set_mode(self.mode & 0o7777);
        header.set_uid(fitting(self.uid.into(), MAX_SHORT));
        header.set_gid(fitting(self.gid.into(), MAX_SHORT));
        header.set_size(fitting(self.kind.size(), MAX_LONG));
        header.set_mtime(short_time(self.time).unwrap_or(0));
        let [major, minor] = self.kind.device();
        let fields = header.as_ustar_mut().expect("made as ustar above");
        fields.set_device_major(major);
        fields.set_device_minor(minor);
        copy_cut(&mut fields.linkname, self.kind.link_target());
        match split_path(path) {
            Some((prefix, name)) => {
                copy_cut(&mut fields.prefix, prefix);
                copy_cut(&mut fields.name, name);
            }
            None => copy_cut(&mut fields.name, path),
        }
        header.set_cksum();
        header
    }
}

impl<'a> Kind<'a> {
    fn entry_type(self) -> EntryType {
        match self {
            Self::File(_) => EntryType::Regular,
            Self::HardLink(_) => EntryType::Link,
            Self::Symlink(_) => EntryType::Symlink,
            Self::CharDevice(..) => EntryType::Char,
            Self::BlockDevice(..) => EntryType::Block,
            Self::Directory => EntryType::Directory,
            Self::Fifo => EntryType::Fifo,
        }
    }

    fn size(self) -> u64 {
        match self {
            Self::File(size) => size,
            _ => 0,
        }
    }

    fn link_target(self) -> &'a [u8] {
        match self {
            Self::HardLink(target) | Self::Symlink(target) => target,
            _ => b"",
        }
    }

    fn device(self) -> [u32; 2] {
        match self {
            Self::CharDevice(major, minor) | Self::BlockDevice(major, minor) => [major, minor],
            _ => [0, 0],
        }
    }
}

/// The header of the records that belong to the entry after it. Readers that know PAX never show its name.
fn extension_header(path: &[u8], length: usize) -> tar::Header {
    let trimmed = path.strip_suffix(b"/").unwrap_or(path);
    let base = trimmed.rsplit(|byte| *byte == b'/').next().unwrap_or(trimmed);
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(EntryType::XHeader);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(length as u64);
    let fields = header.as_ustar_mut().expect("made as ustar above");
    fields.set_device_major(0);
    fields.set_device_minor(0);
    copy_cut(&mut fields.name, &[b"PaxHeaders.0/", base].concat());
    header.set_cksum();
    header
}

/// `LENGTH KEYWORD=VALUE\n`, where the length counts itself.
fn record(keyword: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = keyword.len() + value.len() + " =\n".len();
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    [length.to_string().as_bytes(), b" ", keyword, b"=", value, b"\n"].concat()
}

/// Prefix and name of a path that ustar has room for. Of several ways to cut it, the longest prefix is taken.
fn split_path(path: &[u8]) -> Option<(&[u8], &[u8])> {
    if !path.is_ascii() {
        return None;
    }
    if path.len() <= NAME_LENGTH {
        return Some((b"", path));
    }
    let longest_prefix = PREFIX_LENGTH.min(path.len() - 2);
    let cut = path[..=longest_prefix].iter().rposition(|byte| *byte == b'/')?;
    let (prefix, name) = (&path[..cut], &path[cut + 1..]);
    (!prefix.is_empty() && name.len() <= NAME_LENGTH).then_some((prefix, name))
}

fn short_time(time: i64) -> Option<u64> {
    u64::try_from(time).ok().filter(|time| *time <= MAX_LONG)
}

fn fitting(value: u64, limit: u64) -> u64 {
    if value > limit { 0 } else { value }
}

/// Fills a field with what fits of a text, without its bytes beyond ASCII.
fn copy_cut(field: &mut [u8], text: &[u8]) {
    let ascii = text.iter().copied().filter(u8::is_ascii);
    field.iter_mut().zip(ascii).for_each(|(to, from)| *to = from);
}

#[cfg(test)]
mod tests {
    use super::*;

    static NONE: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();

    fn header<'a>(path: &'a [u8], kind: Kind<'a>) -> Header<'a> {
        Header { path, kind, mode: 0o644, uid: 0, gid: 0, time: 0, xattrs: &NONE }
    }

    fn keywords(header: &Header<'_>) -> Vec<String> {
        let records = header.records(&header.archive_path()).expect("representable");
        records.into_keys().map(|keyword| String::from_utf8(keyword).expect("text")).collect()
    }

    #[test]
    fn records_appear_only_where_ustar_has_no_room() {
        let (name, deep) = ("n".repeat(100), format!("{}/{}", "d".repeat(155), "n".repeat(100)));
        for (header, want) in [
            (header(b"a", Kind::File(MAX_LONG)), vec![]),
            (header(b"a", Kind::File(MAX_LONG + 1)), vec!["size"]),
            (header(name.as_bytes(), Kind::File(0)), vec![]),
            (header(name.as_bytes(), Kind::Directory), vec!["path"]),
            (header(deep.as_bytes(), Kind::File(0)), vec![]),
            (header("\u{e4}".as_bytes(), Kind::File(0)), vec!["path"]),
            (header(b"\xff", Kind::Symlink(b"\xff")), vec!["linkpath", "path"]),
            (header(b"a", Kind::Symlink(&[b't'; 101])), vec!["linkpath"]),
            (Header { uid: 2_097_152, gid: u32::MAX, ..header(b"a", Kind::Fifo) }, vec!["gid", "uid"]),
            (Header { uid: 2_097_151, ..header(b"a", Kind::Fifo) }, vec![]),
            (Header { time: -1, ..header(b"a", Kind::Fifo) }, vec!["mtime"]),
            (Header { time: 8_589_934_592, ..header(b"a", Kind::Fifo) }, vec!["mtime"]),
        ] {
            assert_eq!(keywords(&header), want, "{header:?}");
        }
    }

    #[test]
    fn the_length_of_a_record_counts_itself() {
        for (value, want) in
            [("x", "8 abc=x\n"), ("xx", "9 abc=xx\n"), ("xxx", "11 abc=xxx\n"), ("", "7 abc=\n")]
        {
            assert_eq!(record(b"abc", value.as_bytes()), want.as_bytes());
        }
        for length in 0..2000 {
            let record = record(b"k", &vec![b'v'; length]);
            let text = String::from_utf8(record.clone()).expect("text");
            assert_eq!(text.split_once(' ').map(|(number, _)| number.parse()), Some(Ok(record.len())));
        }
    }

    #[test]
    fn a_path_is_cut_at_a_slash_or_not_at_all() {
        let long = [b"d/".as_slice(), &[b'n'; 101]].concat();
        assert_eq!(split_path(&long), None);
        let trailing = [&[b'd'; 100] as &[u8], b"/"].concat();
        assert_eq!(split_path(&trailing), None);
        let rooted = [b"/".as_slice(), &[b'n'; 100]].concat();
        assert_eq!(split_path(&rooted), None);
    }

    #[test]
    fn what_no_reader_would_understand_is_refused() {
        let device = header(b"a", Kind::CharDevice(1 << 21, 0));
        assert_eq!(device.to_blocks(), Err(HeaderError::Device(1 << 21)));
        let xattrs = BTreeMap::from([(b"user.a=b".to_vec(), vec![])]);
        let header = Header { xattrs: &xattrs, ..header(b"a", Kind::Fifo) };
        assert_eq!(header.to_blocks(), Err(HeaderError::Attribute(b"user.a=b".to_vec())));
    }
}
