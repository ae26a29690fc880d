//! Where two files begin to differ, and what stands there.
//!
//! Files are read a second time, since only then is known which ones are worth it; bytes beyond a bound are not looked at.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Read},
};

use super::clean;
use crate::tarball::{TarError, TarKind, TarReader};

/// Bytes of a text line that are shown, around the place where it begins to differ.
const TEXT: usize = 60;
/// Bytes before that place.
const BEFORE: usize = 20;
/// Bytes of something else that are shown.
const BINARY: usize = 8;

/// The first difference of two files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Excerpt {
    /// Bytes before it, which are the same.
    pub offset: usize,
    /// Its line, counted from 1, where both are text.
    pub line: Option<usize>,
    /// What the first file has there: quoted text, or hexadecimal digits; the end of the file as such.
    pub first: String,
    /// What the second one has.
    pub second: String,
}

/// The beginnings, of at most `limit` bytes, of some regular files of an uncompressed layer. The stream is read to its end.
///
/// # Errors
/// As [`super::LayerContents::read`].
pub fn beginnings(
    stream: impl Read,
    wanted: &BTreeSet<Vec<u8>>,
    limit: u64,
) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, TarError> {
    let mut found = BTreeMap::new();
    let mut archive = TarReader::new(stream);
    while let Some(entry) = archive.next_entry()? {
        let path = clean(&entry.path);
        if entry.kind == TarKind::File && wanted.contains(&path) {
            let mut bytes = Vec::new();
            archive.content().take(limit).read_to_end(&mut bytes).map_err(TarError::Io)?;
            found.insert(path, bytes);
        }
    }
    io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(TarError::Io)?;
    Ok(found)
}

/// Where two files differ, if they do in what is there of them.
pub fn first_difference(first: &[u8], second: &[u8]) -> Option<Excerpt> {
    let same = first.iter().zip(second).take_while(|(one, other)| one == other).count();
    if same == first.len() && same == second.len() {
        return None;
    }
    let is_text = |bytes: &[u8]| std::str::from_utf8(line_at(bytes, same)).is_ok_and(is_plain);
    Some(match is_text(first) && is_text(second) {
        true => Excerpt {
            offset: same,
            line: Some(1 + first[..same].iter().filter(|byte| **byte == b'\n').count()),
            first: text(first, same),
            second: text(second, same),
        },
        false => Excerpt { offset: same, line: None, first: hex(first, same), second: hex(second, same) },
    })
}

/// The line that a place is in, without its end.
fn line_at(bytes: &[u8], place: usize) -> &[u8] {
    let begin = bytes[..place].iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
    let rest = &bytes[begin..];
    rest.iter().position(|byte| *byte == b'\n').map_or(rest, |newline| &rest[..newline])
}

fn is_plain(text: &str) -> bool {
    text.chars().all(|character| !character.is_control() || character == '\t' || character == '\r')
}

/// The line around a place: `…09:20:01 UTC`
fn text(bytes: &[u8], place: usize) -> String {
    if place == bytes.len() {
        return END.to_owned();
    }
    let line = line_at(bytes, place);
    let begin = place - (line.as_ptr() as usize - bytes.as_ptr() as usize);
    let from = begin.saturating_sub(BEFORE);
    let to = (from + TEXT).min(line.len());
    let shown = String::from_utf8_lossy(&line[from.min(to)..to]);
    let dots = |is_cut: bool| if is_cut { "…" } else { "" };
    format!("{:?}", format!("{}{shown}{}", dots(from > 0), dots(to < line.len())))
}

fn hex(bytes: &[u8], place: usize) -> String {
    let shown: Vec<String> = bytes[place..].iter().take(BINARY).map(|byte| format!("{byte:02x}")).collect();
    if shown.is_empty() { END.to_owned() } else { shown.join(" ") }
}

const END: &str = "the end of the file";
