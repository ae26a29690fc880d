//! Our own terminal while another process has the say on it: every key goes there, and nothing is done to what it shows.
//!
//! Whatever ends this process gives the terminal back as it was, but for SIGKILL.

use std::{
    io,
    sync::{Mutex, PoisonError},
};

use executor::sandbox::Stdio;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// How it was before.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// The terminal of standard input, given away until this is dropped.
pub struct Raw(());

impl Raw {
    /// Gives it away.
    ///
    /// # Errors
    /// It is none, or gone.
    pub fn begin() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
        tcsetattr(io::stdin(), OptionalActions::Drain, &raw)?;
        Ok(Self(()))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        restore();
    }
}

/// Gives back what was taken; for those who end the process without more ado.
pub fn restore() {
    if let Some(before) = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take() {
        // Where this fails the terminal is gone.
        let _ = tcsetattr(io::stdin(), OptionalActions::Drain, &before);
    }
}

/// A terminal of the size of ours.
pub fn like_ours() -> Stdio {
    let size = tcgetwinsize(io::stdout()).or_else(|_| tcgetwinsize(io::stderr()));
    size.map_or(Stdio::Terminal { rows: 0, columns: 0 }, |size| Stdio::Terminal {
        rows: size.ws_row,
        columns: size.ws_col,
    })
}
