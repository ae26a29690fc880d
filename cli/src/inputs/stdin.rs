//! Standard input that a cancelled build does not wait for: who typed `-` by mistake can leave with one Ctrl-C.

use std::{
    io::{self, Read},
    os::fd::AsFd,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};
use solver::Cancel;

/// How long is waited before the next look at whether the build still goes on.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// The bytes of a descriptor, until `cancel` asks to stop. Unbuffered: nothing may hide from the wait for it.
pub struct Stdin<'a, F> {
    input: F,
    cancel: &'a Cancel,
}

impl<'a, F: AsFd> Stdin<'a, F> {
    /// Nothing is read yet.
    pub fn new(input: F, cancel: &'a Cancel) -> Self {
        Self { input, cancel }
    }
}

impl<F: AsFd> Read for Stdin<'_, F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.cancel.is_requested() {
                return Err(io::Error::other("stopped"));
            }
            let mut ready = [PollFd::new(&self.input, PollFlags::IN)];
            match poll(&mut ready, Some(&LOOK)) {
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => return Ok(rustix::io::read(&self.input, &mut *buffer)?),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn bytes_arrive_until_the_end_or_until_cancelled() {
        let (reader, mut writer) = io::pipe().expect("a pipe");
        let cancel = Cancel::default();
        let mut input = Stdin::new(&reader, &cancel);
        writer.write_all(b"abc").expect("it holds that much");
        let mut buffer = [0; 8];
        assert_eq!(input.read(&mut buffer).expect("read"), 3);
        cancel.request();
        assert!(input.read(&mut buffer).is_err(), "nothing more comes, and nobody waits");
        drop(writer);
        let going_on = Cancel::default();
        assert_eq!(Stdin::new(&reader, &going_on).read(&mut buffer).expect("the end"), 0);
    }
}
