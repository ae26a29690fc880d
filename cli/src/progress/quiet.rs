//! Nothing but warnings: the digest on standard output is all that is wanted.

use std::{io::Write, time::Duration};

use solver::Event;

use super::{Board, End, View};

/// Shows warnings only.
pub struct Quiet<W> {
    out: W,
}

impl<W: Write + Send> Quiet<W> {
    /// Writes to `out`.
    pub fn new(out: W) -> Self {
        Self { out }
    }
}

impl<W: Write + Send> View for Quiet<W> {
    fn event(&mut self, board: &Board, _at: Duration, event: &Event) {
        if let (Event::Warning(_), Some(text)) = (event, board.warnings().last()) {
            let _ = writeln!(self.out, "warning: {text}");
        }
    }

    fn tick(&mut self, _board: &Board, _at: Duration) {}

    fn end(&mut self, _board: &Board, _at: Duration, _end: &End) {}
}
