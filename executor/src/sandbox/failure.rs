//! How the inits fail: with the name of a step, so the builder can say what could not be done and why.

use std::io;

use rustix::io::Errno;

use crate::{
    mount::{MountError, aside},
    sandbox::{SandboxError, stubs::Unmade, wire::Report},
};

/// A named step that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    step: String,
    message: String,
    errno: Option<Errno>,
    hint: Option<String>,
    fault: Fault,
}

/// Whose fault it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// The machine's, or our own.
    Machine,
    /// The image's or the Dockerfile's: no other machine would do it.
    Image,
}

/// What the kernel says of a place in an image that cannot be what a step needs there: links that go round or out, a file for a
/// directory, `/proc` to make something in. A read-only place is [told apart](Unmade::InReadOnlyMount).
const NO_PLACE: [Errno; 6] =
    [Errno::LOOP, Errno::NOTDIR, Errno::ISDIR, Errno::NAMETOOLONG, Errno::NOENT, Errno::XDEV];

impl Failure {
    /// A step that failed for a reason of our own.
    pub fn new(step: &str, message: impl Into<String>) -> Self {
        let (step, message) = (step.to_owned(), message.into());
        Self { step, message, errno: None, hint: None, fault: Fault::Machine }
    }

    /// A step that failed by what the image has there, or what the Dockerfile wants there.
    pub fn of_image(step: &str, message: impl Into<String>) -> Self {
        Self { fault: Fault::Image, ..Self::new(step, message) }
    }

    /// The same with the one setting that would lift it, where only we know it.
    pub fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    /// The report the builder gets.
    pub fn report(&self) -> Report {
        let (step, message) = (self.step.clone(), self.message.clone());
        if self.fault == Fault::Image {
            return Report::NoPlace { step, message };
        }
        Report::Failed { step, message, errno: self.errno.map(Errno::raw_os_error), hint: self.hint.clone() }
    }
}

impl From<Failure> for SandboxError {
    fn from(Failure { step, message, errno, hint, fault }: Failure) -> Self {
        if fault == Fault::Image {
            return SandboxError::NoPlace { step, message };
        }
        SandboxError::reported(&step, message, errno.map(Errno::raw_os_error), hint)
    }
}

/// Names the step a result belongs to.
pub trait NameStep<T> {
    /// The same result, its error with a name.
    fn step(self, name: &str) -> Result<T, Failure>;
}

/// The same for what is done at a path that an image or a Dockerfile has named, and not for what is made for it elsewhere.
pub trait NamePlace<T> {
    /// The same result, its error with a name, and the image's fault where no machine could have done it.
    fn place(self, name: &str) -> Result<T, Failure>;
}

impl<T> NamePlace<T> for Result<T, Errno> {
    fn place(self, name: &str) -> Result<T, Failure> {
        self.map_err(|errno| match NO_PLACE.contains(&errno) {
            true => Failure::of_image(name, errno.to_string()),
            false => Err::<(), _>(errno).step(name).expect_err("it is an error"),
        })
    }
}

impl<T> NamePlace<T> for Result<T, Unmade> {
    fn place(self, name: &str) -> Result<T, Failure> {
        self.map_err(|unmade| match unmade {
            Unmade::InReadOnlyMount => Failure::of_image(name, Errno::ROFS.to_string()),
            Unmade::Refused(errno) => Err::<(), _>(errno).place(name).expect_err("it is an error"),
        })
    }
}

impl<T> NameStep<T> for Result<T, Errno> {
    fn step(self, name: &str) -> Result<T, Failure> {
        self.map_err(|errno| Failure { errno: Some(errno), ..Failure::new(name, errno.to_string()) })
    }
}

impl<T> NameStep<T> for io::Result<T> {
    fn step(self, name: &str) -> Result<T, Failure> {
        self.map_err(|error| {
            let errno = error.raw_os_error().map(Errno::from_raw_os_error);
            Failure { errno, ..Failure::new(name, error.to_string()) }
        })
    }
}

impl<T> NameStep<T> for Result<T, MountError> {
    fn step(self, name: &str) -> Result<T, Failure> {
        self.map_err(|error| {
            let message = format!("{}: {}{}", error.path.display(), error.errno, aside(&error.said));
            Failure { errno: Some(error.errno), ..Failure::new(&format!("{name} {}", error.step), message) }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_image_leaves_no_place_for_is_its_own_fault() {
        let place = |errno: Errno| Err::<(), _>(errno).place("make /m").expect_err("it is an error");
        for errno in NO_PLACE {
            assert!(matches!(place(errno).report(), Report::NoPlace { .. }), "{errno}");
            assert!(matches!(place(errno).into(), SandboxError::NoPlace { .. }), "{errno}");
            let step = Err::<(), _>(errno).step("open /x").expect_err("it is an error");
            assert!(matches!(step.into(), SandboxError::Step { .. }), "{errno}");
        }
        let read_only = Err::<(), _>(Unmade::InReadOnlyMount).place("make /m").expect_err("it is an error");
        assert!(matches!(read_only.report(), Report::NoPlace { .. }));
        for errno in
            [Errno::ROFS, Errno::NOSPC, Errno::IO, Errno::PERM, Errno::ACCESS, Errno::NOMEM, Errno::MFILE]
        {
            assert!(matches!(place(errno).report(), Report::Failed { errno: Some(_), .. }), "{errno}");
            let refused = Err::<(), _>(Unmade::from(errno)).place("make /m").expect_err("it is an error");
            assert!(matches!(refused.report(), Report::Failed { errno: Some(_), .. }), "{errno}");
        }
    }
}
