//! PAX records: `LENGTH KEY=VALUE\n`, where the length counts itself and the value may hold any bytes, newlines too.

use std::collections::BTreeMap;

/// Attributes of one entry, and the length of a value, as Linux bounds the latter (RELIABILITY R20).
const MAX_XATTRS: usize = 64;
const MAX_XATTR_VALUE: usize = 64 << 10;
const MAX_XATTR_NAME: usize = 255;

/// What the records of one header say. An empty value takes a record back, as POSIX has it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct PaxRecords {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    /// Whole seconds rounded down, and nanoseconds.
    pub(super) time: Option<(i64, u32)>,
    pub(super) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl PaxRecords {
    /// Reads the records of one PAX header.
    pub(super) fn parse(mut bytes: &[u8]) -> Result<Self, String> {
        let mut records = Self::default();
        while !bytes.is_empty() {
            let (key, value) = take_record(&mut bytes)?;
            records.set(key, value)?;
        }
        Ok(records)
    }

    /// Whether nothing was said that changes how an entry is understood.
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), String> {
        let bad = || format!("its PAX record {} is malformed", String::from_utf8_lossy(key));
        match key {
            b"path" => self.path = unless_empty(value, name).ok_or_else(bad)?,
            b"linkpath" => self.link = unless_empty(value, name).ok_or_else(bad)?,
            b"size" => self.size = unless_empty(value, size).ok_or_else(bad)?,
            b"uid" => self.uid = unless_empty(value, id).ok_or_else(bad)?,
            b"gid" => self.gid = unless_empty(value, id).ok_or_else(bad)?,
            b"mtime" => self.time = unless_empty(value, time).ok_or_else(bad)?,
            _ if key.starts_with(b"GNU.sparse.") => {
                return Err("it is a sparse file in GNU's PAX format, which is not supported".to_owned());
            }
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.set_xattr(name, value)?;
                }
            }
        }
        Ok(())
    }

    fn set_xattr(&mut self, name: &[u8], value: &[u8]) -> Result<(), String> {
        let fits = (1..=MAX_XATTR_NAME).contains(&name.len()) && value.len() <= MAX_XATTR_VALUE;
        if !fits || name.contains(&0) {
            return Err(format!(
                "its extended attribute {:?} is too long or unnamed",
                String::from_utf8_lossy(name)
            ));
        }
        self.xattrs.insert(name.to_vec(), value.to_vec());
        if self.xattrs.len() > MAX_XATTRS {
            return Err(format!("it has more than {MAX_XATTRS} extended attributes"));
        }
        Ok(())
    }
}

/// Cuts the first record off: its key and its value.
fn take_record<'a>(bytes: &mut &'a [u8]) -> Result<(&'a [u8], &'a [u8]), String> {
    let malformed = || "its PAX header is malformed".to_owned();
    let blank = bytes.iter().position(|byte| *byte == b' ').ok_or_else(malformed)?;
    let length =
        number(&bytes[..blank]).and_then(|length| usize::try_from(length).ok()).ok_or_else(malformed)?;
    if length > bytes.len() || length <= blank + 1 {
        return Err(malformed());
    }
    let (record, rest) = bytes.split_at(length);
    let record = record[blank + 1..].strip_suffix(b"\n").ok_or_else(malformed)?;
    let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(malformed)?;
    let (key, value) = (&record[..equals], &record[equals + 1..]);
    if key.is_empty() || key.contains(&0) {
        return Err(malformed());
    }
    *bytes = rest;
    Ok((key, value))
}

/// `None` for a value that cannot be read, `Some(None)` for an empty one, which takes the record back.
fn unless_empty<T>(value: &[u8], read: impl Fn(&[u8]) -> Option<T>) -> Option<Option<T>> {
    if value.is_empty() { Some(None) } else { read(value).map(Some) }
}

fn name(value: &[u8]) -> Option<Vec<u8>> {
    (!value.contains(&0)).then(|| value.to_vec())
}

fn size(value: &[u8]) -> Option<u64> {
    number(value).filter(|size| i64::try_from(*size).is_ok())
}

/// The highest id means "leave it alone" to chown(2) and cannot be anybody's.
fn id(value: &[u8]) -> Option<u32> {
    number(value).and_then(|id| u32::try_from(id).ok()).filter(|id| *id != u32::MAX)
}

/// `-12.5` is 12.5 seconds before the epoch: second -13 and half a second.
fn time(value: &[u8]) -> Option<(i64, u32)> {
    let (negative, value) = match value.strip_prefix(b"-") {
        Some(value) => (true, value),
        None => (false, value),
    };
    let (whole, fraction) = match value.iter().position(|byte| *byte == b'.') {
        Some(dot) => (&value[..dot], &value[dot + 1..]),
        None => (value, &b""[..]),
    };
    let seconds = i64::try_from(number(whole)?).ok()?;
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digits = fraction.iter().chain(std::iter::repeat(&b'0')).take(9);
    let nanoseconds = digits.fold(0, |number, digit| number * 10 + u32::from(digit - b'0'));
    Some(match (negative, nanoseconds) {
        (false, _) => (seconds, nanoseconds),
        (true, 0) => (-seconds, 0),
        (true, _) => (-seconds - 1, 1_000_000_000 - nanoseconds),
    })
}

/// Decimal digits and nothing else: no sign, no blanks.
fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::{super::craft::record, *};

    #[test]
    fn a_value_may_hold_any_bytes() {
        let value = b"\x01\0\n13 path=evil\n=\xff";
        let bytes = [record("SCHILY.xattr.security.capability", value), record("path", b"a\nb")].concat();
        let records = PaxRecords::parse(&bytes).expect("well-formed");
        assert_eq!(records.xattrs[&b"security.capability"[..]], value);
        assert_eq!(records.path.as_deref(), Some(&b"a\nb"[..]));
    }

    #[test]
    fn the_last_record_counts_and_an_empty_one_takes_back() {
        let bytes =
            [record("size", b"5"), record("size", b"7"), record("uid", b"1"), record("uid", b"")].concat();
        let records = PaxRecords::parse(&bytes).expect("well-formed");
        assert_eq!((records.size, records.uid), (Some(7), None));
    }

    #[test]
    fn times_are_rounded_down() {
        for (text, want) in [
            ("0", Some((0, 0))),
            ("1.5", Some((1, 500_000_000))),
            ("1.0000000019", Some((1, 1))),
            ("-1", Some((-1, 0))),
            ("-12.5", Some((-13, 500_000_000))),
            ("1.", Some((1, 0))),
            ("", None),
            (".5", None),
            ("1.x", None),
            ("+1", None),
            ("99999999999999999999", None),
        ] {
            assert_eq!(time(text.as_bytes()), want, "{text}");
        }
    }

    #[test]
    fn malformed_records_are_errors() {
        let mut many = Vec::new();
        for index in 0..=MAX_XATTRS {
            many.extend(record(&format!("SCHILY.xattr.user.{index}"), b"1"));
        }
        let cases: Vec<Vec<u8>> = vec![
            b"6 a=b".to_vec(),
            b"7 a=b\n".to_vec(),
            b"5 a=b\n".to_vec(),
            b"06 a=b".to_vec(),
            b"x a=b\n".to_vec(),
            b"-6 a=b\n".to_vec(),
            b"5 ab\n".to_vec(),
            b"5 =b\n".to_vec(),
            b"0 \n".to_vec(),
            b"99999999999999999999 a=b\n".to_vec(),
            b"\0".to_vec(),
            record("size", b"-1"),
            record("size", b"9223372036854775808"),
            record("uid", b"4294967295"),
            record("path", b"a\0b"),
            record("GNU.sparse.major", b"1"),
            record("SCHILY.xattr.", b"1"),
            record("SCHILY.xattr.user.x", &vec![0; MAX_XATTR_VALUE + 1]),
            many,
        ];
        for bytes in cases {
            assert!(PaxRecords::parse(&bytes).is_err(), "{}", String::from_utf8_lossy(&bytes));
        }
    }
}
