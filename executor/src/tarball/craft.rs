//! Writes archives for tests byte by byte, also such as no archiver would write.

use super::header::BLOCK;

/// An archive in the making.
#[derive(Debug, Clone, Default)]
pub(crate) struct Archive(Vec<u8>);

/// A header block; the fields that tests turn.
#[derive(Debug, Clone)]
pub(crate) struct Fields<'a> {
    pub(crate) path: &'a [u8],
    pub(crate) link: &'a [u8],
    pub(crate) typeflag: u8,
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    pub(crate) size: u64,
    pub(crate) time: u64,
    pub(crate) device: (u32, u32),
}

impl Default for Fields<'_> {
    fn default() -> Self {
        let (path, link) = (&b"file"[..], &b""[..]);
        Self {
            path,
            link,
            typeflag: b'0',
            mode: 0o644,
            owner: (0, 0),
            size: 0,
            time: 1_000_000_000,
            device: (0, 0),
        }
    }
}

impl Archive {
    /// Adds an entry: its header, with the size of the content, and the content.
    pub(crate) fn entry(self, fields: Fields<'_>, content: &[u8]) -> Self {
        self.raw(&block(&Fields { size: content.len() as u64, ..fields })).raw(content).pad()
    }

    pub(crate) fn file(self, path: &str, content: &[u8]) -> Self {
        self.entry(Fields { path: path.as_bytes(), ..Fields::default() }, content)
    }

    pub(crate) fn directory(self, path: &str) -> Self {
        self.entry(Fields { path: path.as_bytes(), typeflag: b'5', mode: 0o755, ..Fields::default() }, b"")
    }

    pub(crate) fn symlink(self, path: &str, target: &str) -> Self {
        let fields =
            Fields { path: path.as_bytes(), link: target.as_bytes(), typeflag: b'2', ..Fields::default() };
        self.entry(fields, b"")
    }

    pub(crate) fn hard_link(self, path: &str, target: &str) -> Self {
        let fields =
            Fields { path: path.as_bytes(), link: target.as_bytes(), typeflag: b'1', ..Fields::default() };
        self.entry(fields, b"")
    }

    /// Adds a PAX header for the next entry.
    pub(crate) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let bytes: Vec<u8> = records.iter().flat_map(|(key, value)| record(key, value)).collect();
        self.entry(Fields { path: b"PaxHeaders/x", typeflag: b'x', ..Fields::default() }, &bytes)
    }

    pub(crate) fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    pub(crate) fn pad(mut self) -> Self {
        self.0.resize(self.0.len().next_multiple_of(BLOCK), 0);
        self
    }

    /// The archive with its end mark.
    pub(crate) fn finish(self) -> Vec<u8> {
        self.raw(&[0; 2 * BLOCK]).0
    }

    /// The bytes so far.
    pub(crate) fn bytes(self) -> Vec<u8> {
        self.0
    }
}

/// A ustar header block with a right checksum.
pub(crate) fn block(fields: &Fields<'_>) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, fields.path);
    put(100, format!("{:07o}", fields.mode).as_bytes());
    put(108, format!("{:07o}", fields.owner.0).as_bytes());
    put(116, format!("{:07o}", fields.owner.1).as_bytes());
    put(124, format!("{:011o}", fields.size).as_bytes());
    put(136, format!("{:011o}", fields.time).as_bytes());
    put(156, &[fields.typeflag]);
    put(157, fields.link);
    put(257, b"ustar\x0000");
    put(329, format!("{:07o}", fields.device.0).as_bytes());
    put(337, format!("{:07o}", fields.device.1).as_bytes());
    seal(block)
}

/// Puts the right checksum into a block.
pub(crate) fn seal(mut block: [u8; BLOCK]) -> [u8; BLOCK] {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

/// A PAX record.
pub(crate) fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let body = [b" ", key.as_bytes(), b"=", value, b"\n"].concat();
    let length =
        (1..).find(|length| length.to_string().len() + body.len() == *length).expect("some length fits");
    [length.to_string().as_bytes(), &body].concat()
}
