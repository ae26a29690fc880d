//! Brings the tar of a layer to where it is encoded, several files at the same time.
//!
//! What comes out is what [`crate::write_tar`] writes. Small files are read, verified and put behind their headers by
//! the pipeline's threads, a segment of consecutive entries each, some segments ahead; the segments are taken in order.
//! Large files are read where they are wanted. What an old blob shares with this layer comes from there: its chunks as
//! they were compressed where a chunk begins in both tars, and its bytes until that is so.

use std::{
    collections::VecDeque,
    io::{self, Write},
    ops::Range,
    sync::mpsc::Receiver,
};

use oci::FileSource;

use crate::{
    archive::{ArchiveError, ArchiveWriter, ZEROS},
    layer::{LayerError, LayerTar},
    old::OldBlob,
    pipeline::{Buffer, SEGMENT, Sink},
    places::{Run, content_length},
};

/// Files from here on are not read ahead.
const LARGE: u64 = SEGMENT as u64;
/// Bytes of an old tar that are read at once.
const BLOCK: usize = 256 * 1024;

/// What a layer's tar is made of.
#[derive(Clone, Copy)]
pub(crate) struct Production<'s> {
    /// Its entries.
    pub(crate) tar: LayerTar<'s>,
    /// Its files.
    pub(crate) files: &'s (dyn FileSource + 's),
    /// Where shared runs are.
    pub(crate) old: Option<&'s OldBlob>,
}

/// What is written in one go.
enum Piece {
    /// Entries that are read by another thread.
    Segment(Range<usize>),
    /// An entry that is read here, or the end of the tar.
    Entry(usize),
    /// Bytes of the old tar.
    Shared(Range<u64>),
}

/// A piece that has been begun.
enum Begun {
    Segment(Receiver<Result<Buffer, ArchiveError>>),
    Other(Piece),
}

impl<'s> Production<'s> {
    /// Writes a whole tar that consists of these runs.
    ///
    /// # Errors
    /// As those of [`crate::write_tar`].
    pub(crate) fn write(self, runs: &[Run], sink: &mut Sink<'_, 's>) -> Result<(), LayerError> {
        let mut pieces = self.pieces(runs).into_iter();
        let mut begun = VecDeque::new();
        loop {
            while begun.len() < Sink::ahead()
                && let Some(piece) = pieces.next()
            {
                begun.push_back(self.begin(piece, sink));
            }
            match begun.pop_front() {
                None => return Ok(()),
                Some(Begun::Other(Piece::Shared(bytes))) => self.copy(bytes, sink)?,
                Some(Begun::Other(Piece::Entry(entry))) => self.write_entry(entry, sink)?,
                Some(Begun::Other(Piece::Segment(_))) => unreachable!("segments are begun as such"),
                Some(Begun::Segment(segment)) => {
                    let gone = || ArchiveError::Write(io::Error::other("a reading thread is gone"));
                    let segment = segment.recv().map_err(|_| gone())??;
                    sink.take(segment).map_err(ArchiveError::Write)?;
                }
            }
        }
    }

    fn pieces(&self, runs: &[Run]) -> Vec<Piece> {
        let mut pieces = Vec::new();
        for run in runs {
            match run {
                Run::Shared(bytes) => pieces.push(Piece::Shared(bytes.clone())),
                Run::New(entries) => self.split(entries.clone(), &mut pieces),
            }
        }
        pieces
    }

    fn split(&self, entries: Range<usize>, pieces: &mut Vec<Piece>) {
        let (mut from, mut length) = (entries.start, 0);
        for index in entries.clone() {
            let entry = self.tar.entries().get(index);
            let is_read_here = entry.is_none_or(|entry| content_length(entry) > LARGE);
            if (is_read_here || length > SEGMENT as u64) && from < index {
                pieces.push(Piece::Segment(from..index));
                (from, length) = (index, 0);
            }
            if is_read_here {
                pieces.push(Piece::Entry(index));
                from = index + 1;
            }
            length += entry.map_or(0, content_length) + crate::pax::BLOCK as u64;
        }
        if from < entries.end {
            pieces.push(Piece::Segment(from..entries.end));
        }
    }

    fn begin(self, piece: Piece, sink: &Sink<'_, 's>) -> Begun {
        let Piece::Segment(entries) = piece else { return Begun::Other(piece) };
        let entries = &self.tar.entries()[entries];
        Begun::Segment(sink.prepare(move |segment| {
            let mut archive = ArchiveWriter::new(segment);
            entries.iter().try_for_each(|entry| self.tar.write(entry, self.files, &mut archive))
        }))
    }

    fn write_entry(&self, index: usize, sink: &mut Sink<'_, 's>) -> Result<(), ArchiveError> {
        match self.tar.entries().get(index) {
            Some(entry) => self.tar.write(entry, self.files, &mut ArchiveWriter::new(sink)),
            None => sink.write_all(&ZEROS).map_err(ArchiveError::Write),
        }
    }

    /// Writes a part of the old tar.
    fn copy(&self, bytes: Range<u64>, sink: &mut Sink<'_, 's>) -> Result<(), ArchiveError> {
        let old = self.old.expect("what is shared is shared with it");
        let mut buffer = vec![0; BLOCK];
        let mut at = bytes.start;
        while at < bytes.end {
            if let Some(length) = sink.copy_chunk(at, bytes.end).map_err(ArchiveError::Write)? {
                at += length;
                continue;
            }
            let room = usize::try_from(bytes.end - at).map_or(BLOCK, |rest| rest.min(BLOCK));
            let count = old.read_at(at, &mut buffer[..room]).map_err(ArchiveError::Write)?;
            // Ends where a chunk does, from where on chunks may be copied.
            at += sink.write(&buffer[..count]).map_err(ArchiveError::Write)? as u64;
        }
        Ok(())
    }
}
