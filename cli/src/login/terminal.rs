//! Asking a person at the terminal.

use std::io::{self, BufRead, IsTerminal, Write};

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

const INTERRUPT: u8 = 0x03;
const END: u8 = 0x04;
const BACKSPACE: [u8; 2] = [0x08, 0x7f];
const KILL: u8 = 0x15;
/// Nobody types more.
const LONGEST: usize = 4096;

/// A line that may be seen.
///
/// # Errors
/// [`io::ErrorKind::Unsupported`] where standard input is no terminal; [`io::ErrorKind::UnexpectedEof`] on Ctrl-D.
pub fn ask(prompt: &str) -> io::Result<String> {
    show(prompt)?;
    let mut line = String::new();
    match io::stdin().read_line(&mut line)? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(line.trim_end_matches(['\n', '\r']).trim().to_owned()),
    }
}

/// A line that nobody sees.
///
/// # Errors
/// As [`ask`]; [`io::ErrorKind::Interrupted`] on Ctrl-C.
pub fn ask_secretly(prompt: &str) -> io::Result<String> {
    show(prompt)?;
    let quiet = Quiet::begin()?;
    let typed = read_line(&mut io::stdin().lock());
    drop(quiet);
    let _ = writeln!(io::stderr());
    typed
}

fn show(prompt: &str) -> io::Result<()> {
    if !io::stdin().is_terminal() {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let mut err = io::stderr();
    err.write_all(prompt.as_bytes()).and_then(|()| err.flush())
}

/// The terminal without echo. Ctrl-C is read like any other key meanwhile: a process that ends by it would leave the
/// terminal mute.
struct Quiet(Termios);

impl Quiet {
    fn begin() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut quiet = before.clone();
        quiet.local_modes -= LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG;
        tcsetattr(io::stdin(), OptionalActions::Flush, &quiet)?;
        Ok(Self(before))
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        // Where this fails the terminal is gone.
        let _ = tcsetattr(io::stdin(), OptionalActions::Flush, &self.0);
    }
}

/// A line, with the keys that a terminal would obey by itself.
fn read_line(input: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    let mut pending = Vec::new();
    for byte in io::Read::bytes(input) {
        match byte? {
            b'\n' | b'\r' => return Ok(line),
            INTERRUPT => return Err(io::ErrorKind::Interrupted.into()),
            END if line.is_empty() => return Err(io::ErrorKind::UnexpectedEof.into()),
            END => return Ok(line),
            KILL => line.clear(),
            byte if BACKSPACE.contains(&byte) => drop(line.pop()),
            byte => {
                // A character may be several bytes.
                pending.push(byte);
                if let Ok(text) = std::str::from_utf8(&pending) {
                    line.push_str(text);
                    pending.clear();
                }
            }
        }
        if line.len() + pending.len() > LONGEST {
            return Err(io::Error::other(format!("longer than {LONGEST} bytes")));
        }
    }
    Err(io::ErrorKind::UnexpectedEof.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_do_what_they_do_on_a_terminal() {
        let read = |typed: &str| read_line(&mut typed.as_bytes()).map_err(|error| error.kind());
        for (typed, want) in [
            ("pass\n", "pass"),
            ("pass\r", "pass"),
            ("pass\u{4}", "pass"),
            ("pä\u{7f}ass\n", "pass"),
            ("x\u{8}\u{8}\u{8}y\n", "y"),
            ("wrong\u{15}right\n", "right"),
            ("\n", ""),
        ] {
            assert_eq!(read(typed).as_deref(), Ok(want), "{typed:?}");
        }
        assert_eq!(read("pa\u{3}"), Err(io::ErrorKind::Interrupted));
        assert_eq!(read("\u{4}"), Err(io::ErrorKind::UnexpectedEof));
        assert_eq!(read("pa"), Err(io::ErrorKind::UnexpectedEof));
        assert_eq!(read(&"x".repeat(LONGEST + 1)), Err(io::ErrorKind::Other));
    }
}
