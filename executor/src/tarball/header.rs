//! One 512-byte header block: ustar, GNU and the older forms, decoded strictly.

/// Length of a block; headers and content are padded to it.
pub(super) const BLOCK: usize = 512;

/// What a header block is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// A regular file, or a directory if the name ends in a slash.
    File,
    HardLink,
    Symlink,
    CharDevice,
    BlockDevice,
    Directory,
    Fifo,
    /// PAX records for the next entry.
    Pax,
    /// PAX records for all entries that follow.
    PaxGlobal,
    /// GNU: the name of the next entry.
    LongName,
    /// GNU: the link target of the next entry.
    LongLink,
}

/// A header block whose checksum is right.
pub(super) struct Header([u8; BLOCK]);

impl Header {
    /// Takes a block over, if its checksum is right (as the sum of unsigned or, in very old archives, signed bytes).
    pub(super) fn new(block: [u8; BLOCK]) -> Result<Self, &'static str> {
        let header = Self(block);
        let stored = header.number(148..156).ok_or("its checksum is not a number")?;
        let counted = |index: usize| if (148..156).contains(&index) { b' ' } else { block[index] };
        let unsigned: i64 = (0..BLOCK).map(|index| i64::from(counted(index))).sum();
        let signed: i64 = (0..BLOCK).map(|index| i64::from(counted(index) as i8)).sum();
        if stored == unsigned || stored == signed { Ok(header) } else { Err("its checksum is wrong") }
    }

    pub(super) fn role(&self) -> Result<Role, String> {
        Ok(match self.0[156] {
            b'0' | b'\0' | b'7' => Role::File,
            b'1' => Role::HardLink,
            b'2' => Role::Symlink,
            b'3' => Role::CharDevice,
            b'4' => Role::BlockDevice,
            b'5' => Role::Directory,
            b'6' => Role::Fifo,
            b'x' => Role::Pax,
            b'g' => Role::PaxGlobal,
            b'L' => Role::LongName,
            b'K' => Role::LongLink,
            b'S' => return Err("it is a sparse file in GNU's old format, which is not supported".to_owned()),
            other => return Err(format!("its type {:?} is not supported", char::from(other))),
        })
    }

    /// The name with ustar's prefix, where there is one.
    pub(super) fn path(&self) -> Vec<u8> {
        let name = until_nul(&self.0[..100]);
        let prefix = match self.prefix_field() {
            Some(range) => until_nul(&self.0[range]),
            None => &[],
        };
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }

    pub(super) fn link(&self) -> &[u8] {
        until_nul(&self.0[157..257])
    }

    pub(super) fn mode(&self) -> Option<i64> {
        self.number(100..108)
    }

    pub(super) fn uid(&self) -> Option<i64> {
        self.number(108..116)
    }

    pub(super) fn gid(&self) -> Option<i64> {
        self.number(116..124)
    }

    pub(super) fn size(&self) -> Option<i64> {
        self.number(124..136)
    }

    pub(super) fn time(&self) -> Option<i64> {
        self.number(136..148)
    }

    pub(super) fn device(&self) -> Option<(i64, i64)> {
        Some((self.number(329..337)?, self.number(337..345)?))
    }

    /// GNU's format uses the bytes of the prefix for something else, and Schilling's for two times at its end.
    fn prefix_field(&self) -> Option<std::ops::Range<usize>> {
        match &self.0[257..263] {
            b"ustar\0" if &self.0[508..] == b"tar\0" => Some(345..476),
            b"ustar\0" => Some(345..500),
            _ => None,
        }
    }

    fn number(&self, range: std::ops::Range<usize>) -> Option<i64> {
        let field = &self.0[range];
        if field[0] & 0x80 != 0 { base_256(field) } else { octal(field) }
    }
}

fn until_nul(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or(field)
}

/// Octal digits with blanks before them and blanks or NULs behind; nothing at all is 0.
fn octal(field: &[u8]) -> Option<i64> {
    let field = field.trim_ascii_start();
    let digits = field.split(|byte| *byte == 0).next().unwrap_or(field).trim_ascii_end();
    digits.iter().try_fold(0i64, |number, digit| match digit {
        b'0'..=b'7' => number.checked_mul(8)?.checked_add(i64::from(digit - b'0')),
        _ => None,
    })
}

/// GNU's binary numbers: two's complement, big-endian, with the first bit as a mark.
fn base_256(field: &[u8]) -> Option<i64> {
    let negative = field[0] & 0x40 != 0;
    let first = if negative { i128::from(field[0] as i8) } else { i128::from(field[0] & 0x7f) };
    let wide = field[1..]
        .iter()
        .try_fold(first, |number, byte| number.checked_mul(256)?.checked_add(i128::from(*byte)))?;
    i64::try_from(wide).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_all_forms() {
        let cases: [(&[u8], Option<i64>); 11] = [
            (b"0000644\0", Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"644\0junk", Some(0o644)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"0000648\0", None),
            (b"-000001\0", None),
            (b"64 4\0\0\0\0", None),
            (b"\x80\0\0\0\0\0\x01\0", Some(256)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xfe", Some(-2)),
            (b"\x80\0\0\x02\x40\0\0\0\0\0\0\0", None),
            (b"\x80\0\0\0\0\0\0\x02\x40\0\0\0", Some(0x2_4000_0000)),
        ];
        for (field, want) in cases {
            let header = |field: &[u8]| if field[0] & 0x80 != 0 { base_256(field) } else { octal(field) };
            assert_eq!(header(field), want, "{field:?}");
        }
    }
}
