//! The log that is kept of a build: its beginning and its end, whole lines, and in between how much was cut.
//!
//! A step may write gigabytes; what people look for is how a build began and what it said last. Credentials in addresses and
//! the values of the build's secrets are taken out line by line, before anything is kept.

use std::{
    collections::VecDeque,
    io::{self, Write},
};

use executor::Secrets;

use crate::redact::redact;

/// How many bytes are kept of the beginning, and as many of the end.
const KEPT: usize = 1 << 20;
/// A longer line is cut.
const LINE_MAX: usize = 64 << 10;
/// Lines of a secret that are shorter hide nothing, but would hide words.
const SECRET_MIN: usize = 6;

/// Takes what is written to it, line by line.
#[derive(Debug)]
pub struct KeptLog {
    hidden: Vec<Vec<u8>>,
    line: Vec<u8>,
    head: Vec<u8>,
    is_head_full: bool,
    tail: VecDeque<Vec<u8>>,
    tail_bytes: usize,
    cut: Cut,
}

#[derive(Debug, Default)]
struct Cut {
    lines: u64,
    bytes: u64,
}

impl KeptLog {
    /// An empty log of a build that may use these secrets.
    pub fn new(secrets: &Secrets) -> Self {
        let (head, tail) = (Vec::new(), VecDeque::new());
        let (hidden, cut) = (hidden_lines(secrets), Cut::default());
        Self { hidden, line: Vec::new(), head, is_head_full: false, tail, tail_bytes: 0, cut }
    }

    /// A text without what nobody may read.
    pub fn clean(&self, text: &str) -> String {
        String::from_utf8_lossy(&clean(text.as_bytes(), &self.hidden)).into_owned()
    }

    /// What is kept, in the order in which it came.
    pub fn into_bytes(mut self) -> Vec<u8> {
        if !self.line.is_empty() {
            self.end_line();
        }
        let mut kept = self.head;
        if self.cut.lines > 0 {
            let Cut { lines, bytes } = self.cut;
            kept.extend_from_slice(
                format!("[... {lines} lines of {bytes} bytes are not kept ...]\n").as_bytes(),
            );
        }
        self.tail.iter().for_each(|line| kept.extend_from_slice(line));
        kept
    }

    fn end_line(&mut self) {
        let mut line = clean(&self.line, &self.hidden);
        self.line.clear();
        if line.len() > LINE_MAX {
            let more = line.len() - LINE_MAX;
            line.truncate(LINE_MAX);
            line.extend_from_slice(format!(" [... {more} bytes are not kept ...]").as_bytes());
        }
        line.push(b'\n');
        self.keep(line);
    }

    fn keep(&mut self, line: Vec<u8>) {
        self.is_head_full |= self.head.len() + line.len() > KEPT;
        if !self.is_head_full {
            return self.head.extend_from_slice(&line);
        }
        self.tail_bytes += line.len();
        self.tail.push_back(line);
        while self.tail_bytes > KEPT
            && let Some(oldest) = self.tail.pop_front()
        {
            self.tail_bytes -= oldest.len();
            self.cut.lines += 1;
            self.cut.bytes += oldest.len() as u64;
        }
    }
}

impl Write for KeptLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            match part.strip_suffix(b"\n") {
                Some(rest) => {
                    self.line.extend_from_slice(rest);
                    self.end_line();
                }
                None => self.line.extend_from_slice(part),
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The lines of all secrets, longest first, so that none is left in part because another is the beginning of it. A
/// secret that cannot be read now is none that a step was given.
fn hidden_lines(secrets: &Secrets) -> Vec<Vec<u8>> {
    let mut lines: Vec<Vec<u8>> = Vec::new();
    for id in secrets.ids() {
        let value = secrets.get(id).ok().flatten().unwrap_or_default();
        let long = |line: &&[u8]| line.len() >= SECRET_MIN;
        lines.extend(
            value.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).filter(long).map(<[u8]>::to_vec),
        );
    }
    lines.sort_unstable_by_key(|line| std::cmp::Reverse(line.len()));
    lines.dedup();
    lines
}

fn clean(line: &[u8], hidden: &[Vec<u8>]) -> Vec<u8> {
    let mut line = line.to_vec();
    for secret in hidden {
        line = without(&line, secret);
    }
    match line.contains(&b'@') {
        true => redact(&String::from_utf8_lossy(&line)).into_owned().into_bytes(),
        false => line,
    }
}

fn without(line: &[u8], secret: &[u8]) -> Vec<u8> {
    let mut clean = Vec::with_capacity(line.len());
    let mut rest = line;
    while let Some(at) = rest.windows(secret.len()).position(|window| window == secret) {
        clean.extend_from_slice(&rest[..at]);
        clean.extend_from_slice(b"***");
        rest = &rest[at + secret.len()..];
    }
    clean.extend_from_slice(rest);
    clean
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use executor::SecretSource;

    use super::*;

    fn log_of(secrets: &[(&str, &str)]) -> KeptLog {
        let source = |(id, value): &(&str, &str)| ((*id).to_owned(), SecretSource::Env((*value).to_owned()));
        let secrets = Secrets::new(secrets.iter().map(source).collect::<BTreeMap<_, _>>());
        KeptLog::new(&secrets.expect("no files"))
    }

    #[test]
    fn beginning_and_end_are_kept_and_what_is_cut_is_counted() {
        let mut log = log_of(&[]);
        for number in 0..400_000 {
            writeln!(log, "line {number:06}").expect("memory");
        }
        let text = String::from_utf8(log.into_bytes()).expect("text");
        assert!(text.len() < 2 * KEPT + 100, "{}", text.len());
        let lines: Vec<&str> = text.lines().collect();
        let cut = lines.iter().position(|line| line.starts_with("[...")).expect("a note of what is cut");
        assert_eq!((lines[0], lines[cut - 1]), ("line 000000", format!("line {:06}", cut - 1).as_str()));
        let missing = 400_000 - (lines.len() - 1);
        assert_eq!(lines[cut], format!("[... {missing} lines of {} bytes are not kept ...]", missing * 12));
        assert_eq!(lines.last(), Some(&"line 399999"));
    }

    #[test]
    fn a_line_without_end_is_cut_and_the_last_one_needs_none() {
        let mut log = log_of(&[]);
        log.write_all(&vec![b'x'; LINE_MAX + 5]).expect("memory");
        log.write_all(b"\nlast").expect("memory");
        let text = String::from_utf8(log.into_bytes()).expect("text");
        assert!(text.ends_with(" [... 5 bytes are not kept ...]\nlast\n"));
    }

    #[test]
    fn neither_secrets_nor_credentials_are_kept() {
        let mut log =
            log_of(&[("token", "hunter22"), ("key", "-----BEGIN\nhunter22hunter22\nabc\n"), ("x", "")]);
        log.write_all(b"got hunter22hunter22 and hunt").expect("memory");
        log.write_all(b"er22, abc\nfrom https://me:pass@host/x\n").expect("memory");
        assert_eq!(log.clean("no hunter22!"), "no ***!");
        let text = String::from_utf8(log.into_bytes()).expect("text");
        assert_eq!(text, "got *** and ***, abc\nfrom https://***@host/x\n");
    }
}
