//! The live view on a terminal: one line a step, redrawn in place at most ten times a second, that ends as a summary.
//!
//! A frame is a list of lines, each shorter than the terminal is wide, so a line never wraps and going up by their
//! number finds the first one again. Of running steps the last lines of output are shown, made harmless first. What
//! does not fit in the terminal's height is the oldest that is over; the last frame shows everything.

use std::{
    io::{self, Write},
    time::Duration,
};

use solver::Event;

use super::{
    Board, End, View, Work,
    board::{Row, State, Step, Task},
    summary,
    text::{self, Colour},
};

/// Least time between two frames.
const FRAME: Duration = Duration::from_millis(100);
/// How many lines of output a running step shows at most.
const LOG_LINES: usize = 6;

/// Columns and rows.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Columns.
    pub columns: usize,
    /// Rows.
    pub rows: usize,
}

/// The live view.
pub struct Tty<W> {
    out: W,
    work: Work,
    size: Box<dyn Fn() -> Size + Send>,
    colour: Colour,
    /// Lines of the last frame.
    drawn: usize,
    last_frame: Option<Duration>,
}

impl Tty<io::Stderr> {
    /// The view on standard error, in colour unless NO_COLOR is set.
    pub fn on_stderr(work: Work) -> Self {
        let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let colour = if no_colour { Colour::Dropped } else { Colour::Kept };
        Self { work, ..Self::new(io::stderr(), Box::new(stderr_size), colour) }
    }
}

fn stderr_size() -> Size {
    match rustix::termios::tcgetwinsize(io::stderr()) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => {
            Size { columns: size.ws_col.into(), rows: size.ws_row.into() }
        }
        _ => Size { columns: 80, rows: 24 },
    }
}

impl<W: Write + Send> Tty<W> {
    /// Draws a build on `out`, asking for its size before each frame.
    pub fn new(out: W, size: Box<dyn Fn() -> Size + Send>, colour: Colour) -> Self {
        Self { out, work: Work::Build, size, colour, drawn: 0, last_frame: None }
    }

    fn draw(&mut self, board: &Board, at: Duration) {
        let frame = Frame { board, work: self.work, at, size: (self.size)(), colour: self.colour };
        let lines = frame.live();
        self.last_frame = Some(at);
        self.replace(&lines);
    }

    /// Puts lines where the last frame was.
    fn replace(&mut self, lines: &[String]) {
        let mut bytes = String::from("\x1b[?25l");
        if self.drawn > 0 {
            bytes.push_str(&format!("\x1b[{}A", self.drawn));
        }
        for line in lines {
            bytes.push('\r');
            bytes.push_str(line);
            bytes.push_str("\x1b[K\n");
        }
        bytes.push_str("\x1b[J\x1b[?25h");
        self.drawn = lines.len();
        let _ = self.out.write_all(bytes.as_bytes());
        let _ = self.out.flush();
    }
}

impl<W: Write + Send> View for Tty<W> {
    fn event(&mut self, board: &Board, at: Duration, _event: &Event) {
        let due = self.last_frame.is_none_or(|last| at.saturating_sub(last) >= FRAME);
        if due {
            self.draw(board, at);
        }
    }

    fn tick(&mut self, board: &Board, at: Duration) {
        if !board.rows().is_empty() {
            self.draw(board, at);
        }
    }

    fn end(&mut self, board: &Board, at: Duration, end: &End) {
        // An image that is here already is not worth a word.
        if self.work != Work::Pull || self.drawn != 0 || !board.rows().is_empty() {
            let frame = Frame { board, work: self.work, at, size: (self.size)(), colour: self.colour };
            let lines = frame.last(!matches!(end, End::Failed { .. }));
            self.replace(&lines);
        }
        for warning in board.warnings() {
            let _ = writeln!(self.out, "warning: {warning}");
        }
        summary(&mut self.out, board, at, end);
    }
}

/// What is drawn at one moment.
struct Frame<'a> {
    board: &'a Board,
    work: Work,
    at: Duration,
    size: Size,
    colour: Colour,
}

/// How a line looks.
#[derive(Clone, Copy)]
enum Look {
    Plain,
    Good,
    Bad,
    Faint,
}

impl Frame<'_> {
    /// The frame of a build that runs: as high as the terminal at most.
    fn live(&self) -> Vec<String> {
        let board = self.board;
        let running = board.steps().iter().filter(|step| matches!(step.state, State::Running { .. })).count();
        let warning =
            board.warnings().last().map(|text| text::fit(&format!("warning: {text}"), self.columns()));
        let room = self.size.rows.saturating_sub(2 + usize::from(warning.is_some())).max(1);
        let active = board.rows().iter().filter(|row| !self.is_over(**row)).count();
        let log_lines = (room.saturating_sub(active) / running.max(1)).min(LOG_LINES);
        let mut blocks: Vec<(bool, Vec<String>)> = Vec::new();
        for row in board.rows() {
            blocks.push((self.is_over(*row), self.block(*row, log_lines)));
        }
        let mut excess = blocks.iter().map(|(_, lines)| lines.len()).sum::<usize>().saturating_sub(room);
        blocks.retain(|(over, lines)| {
            let goes = *over && excess > 0;
            excess -= if goes { lines.len().min(excess) } else { 0 };
            !goes
        });
        let rows = blocks.into_iter().flat_map(|(_, lines)| lines).take(room);
        std::iter::once(self.header("")).chain(rows).chain(warning).collect()
    }

    /// The frame that stays: everything that has happened.
    fn last(&self, built: bool) -> Vec<String> {
        let rows = self.board.rows().iter().flat_map(|row| self.block(*row, 0));
        std::iter::once(self.header(if built { " FINISHED" } else { " FAILED" })).chain(rows).collect()
    }

    fn header(&self, end: &str) -> String {
        let (took, finished, all) = (text::seconds(self.at), self.board.finished(), self.board.steps().len());
        let text = match self.work {
            Work::Build => format!("[+] Building {took} ({finished}/{all}){end}"),
            Work::Push => format!("[+] Pushing {took}{end}"),
            Work::Pull => format!("[+] Pulling {took}{end}"),
        };
        text::fit(&text, self.columns())
    }

    /// Columns a line may have: writing in the last one would make some terminals wrap.
    fn columns(&self) -> usize {
        self.size.columns.saturating_sub(1)
    }

    fn is_over(&self, row: Row) -> bool {
        match row {
            Row::Step(index) => {
                !matches!(self.board.steps()[index].state, State::Running { .. } | State::Waiting)
            }
            Row::Task(index) => self.board.tasks()[index].took.is_some(),
        }
    }

    fn block(&self, row: Row, log_lines: usize) -> Vec<String> {
        match row {
            Row::Step(index) => self.step(&self.board.steps()[index], log_lines),
            Row::Task(index) => vec![self.task(&self.board.tasks()[index])],
        }
    }

    fn step(&self, step: &Step, log_lines: usize) -> Vec<String> {
        let (mark, took, look) = match &step.state {
            State::Waiting => ("", Duration::ZERO, Look::Plain),
            State::Running { since } => ("", self.at.saturating_sub(*since), Look::Plain),
            State::Cached { .. } => ("CACHED ", Duration::ZERO, Look::Good),
            State::Ready(took) | State::Done(took) => ("", *took, Look::Good),
            State::Failed(took, _) => ("ERROR ", *took, Look::Bad),
            State::Cancelled(took) => ("CANCELED ", *took, Look::Faint),
        };
        let detail = match &step.state {
            // Which step it is matters more.
            State::Cached { from: Some(cache) } if 3 * text::width(cache) <= self.columns() => {
                format!("from {cache}")
            }
            _ => String::new(),
        };
        let mut lines = vec![self.line(&format!(" => {mark}{}", step.label), &detail, took, look)];
        let waits = step
            .waits_for
            .iter()
            .map(|what| self.line(&format!(" => => {what}"), "", Duration::ZERO, Look::Faint));
        lines.extend(waits);
        if matches!(step.state, State::Running { .. }) {
            let shown = step.tail.iter().skip(step.tail.len().saturating_sub(log_lines));
            let columns = self.columns().saturating_sub(8);
            let log = shown.map(|line| text::harmless(&line.text, columns, self.colour));
            lines.extend(log.map(|text| format!(" => => # {text}")).map(|line| self.limit(line)));
        }
        lines
    }

    /// On a terminal too narrow for the log prefix nothing of the line is left.
    fn limit(&self, line: String) -> String {
        if self.columns() < 8 { String::new() } else { line }
    }

    fn task(&self, task: &Task) -> String {
        let bytes = task.bytes.map(text::progress).unwrap_or_default();
        let took = task.took.unwrap_or_else(|| self.at.saturating_sub(task.since));
        let look = if task.took.is_some() { Look::Good } else { Look::Plain };
        self.line(&format!(" => {}", task.name), &bytes, took, look)
    }

    /// A title on the left, what is known about it on the right.
    fn line(&self, title: &str, detail: &str, took: Duration, look: Look) -> String {
        let right = match detail {
            "" => text::seconds(took),
            detail => format!("{detail}  {}", text::seconds(took)),
        };
        let columns = self.columns();
        let left = text::fit(title, columns.saturating_sub(text::width(&right) + 1));
        let gap = columns.saturating_sub(text::width(&left) + text::width(&right));
        let line = text::fit(&format!("{left}{:gap$}{right}", ""), columns);
        match (look, self.colour) {
            (Look::Plain, _) | (_, Colour::Dropped) => line,
            (Look::Good, Colour::Kept) => format!("\x1b[34m{line}\x1b[0m"),
            (Look::Bad, Colour::Kept) => format!("\x1b[31m{line}\x1b[0m"),
            (Look::Faint, Colour::Kept) => format!("\x1b[2m{line}\x1b[0m"),
        }
    }
}
