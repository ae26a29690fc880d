//! What a machine's limits leave too little of: threads, open files and the length of files. Who may have no further one is
//! told which limit it is, wherever that came up: by an error, or by the panic of a library that knows no other way.

use std::{error::Error, io};

use executor::sandbox::{FEW_FILES, FEW_PROCESSES, SHORT_FILES};
use rustix::io::Errno;

use crate::failure::cause;

/// What cannot go on.
pub const NO_THREAD: &str = "no further thread can be made";

/// How those panic that need a thread and get none: the standard library's scopes, tokio's and rayon's pools.
const PANICS: [&str; 3] = [
    "failed to spawn thread: ",
    "OS can't spawn worker thread: ",
    "The global thread pool has not been initialized.: ThreadPoolBuildError { kind: IOError(",
];

/// Why a thread could not be made, if that is what a panic says.
pub fn no_thread(panic: &str) -> Option<io::Error> {
    let reason = PANICS.iter().find_map(|begin| panic.strip_prefix(begin))?;
    let number = ["code: ", "os error "].iter().find_map(|before| reason.split_once(before))?.1;
    let end = number.find(|c: char| !c.is_ascii_digit()).unwrap_or(number.len());
    Some(io::Error::from_raw_os_error(number[..end].parse().ok()?))
}

/// The limit that is in the way, if an error comes of one. The kernel says EAGAIN of much; where an error of ours ends with
/// it, it is of a process or thread, for what can wait has been waited for.
pub fn hint(error: &(dyn Error + 'static)) -> Option<&'static str> {
    let mut errors = std::iter::successors(Some(error), |error| cause(*error));
    errors.find_map(|error| {
        let told = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
        match told.or_else(|| error.downcast_ref::<Errno>().map(|errno| errno.raw_os_error()))? {
            code if code == Errno::AGAIN.raw_os_error() => Some(FEW_PROCESSES),
            code if code == Errno::MFILE.raw_os_error() => Some(FEW_FILES),
            code if code == Errno::FBIG.raw_os_error() => Some(SHORT_FILES),
            _ => None,
        }
    })
}

/// Whether no further file may be opened: what fails by that is neither a registry's fault nor the user's.
pub fn lacks_files(error: &(dyn Error + 'static)) -> bool {
    hint(error) == Some(FEW_FILES)
}

#[cfg(test)]
mod tests {
    use std::{env, panic, process, process::Command, thread};

    use super::*;

    /// Tells the child who is to want a thread.
    const WHO: &str = "LAYERWRIGHT_TEST_WANTS_A_THREAD";

    #[test]
    fn a_panic_for_want_of_a_thread_is_known() {
        if let Ok(who) = env::var(WHO) {
            return want_a_thread(&who);
        }
        for who in ["a scope", "tokio", "rayon"] {
            let child = Command::new(env::current_exe().expect("a test knows its program"))
                .args(["--exact", "scarce::tests::a_panic_for_want_of_a_thread_is_known", "--nocapture"])
                .env(WHO, who)
                // No machine has room for such a stack.
                .env("RUST_MIN_STACK", (1_u64 << 50).to_string())
                .output()
                .expect("the test can start itself");
            let said = String::from_utf8_lossy(&child.stdout);
            let panic = said.split_once("<panic>").and_then(|(_, rest)| rest.split_once("</panic>"));
            let (panic, _) =
                panic.unwrap_or_else(|| panic!("{who} gets a thread, or does not panic: {said}"));
            let found = no_thread(panic).and_then(|reason| reason.raw_os_error());
            assert_eq!(found, Some(Errno::AGAIN.raw_os_error()), "{who} says it otherwise: {panic}");
        }
        assert!(no_thread("called `Option::unwrap()` on a `None` value").is_none());
    }

    /// In the child: says how one of those panics that a build gets threads from.
    fn want_a_thread(who: &str) {
        panic::set_hook(Box::new(|panic| {
            println!("<panic>{}</panic>", panic.payload_as_str().unwrap_or_default());
            process::exit(0);
        }));
        match who {
            "a scope" => thread::scope(|scope| drop(scope.spawn(|| {}))),
            "tokio" => drop(tokio::runtime::Builder::new_multi_thread().build()),
            "rayon" => rayon::scope(|scope| scope.spawn(|_| {})),
            who => unreachable!("nobody is called {who}"),
        }
    }

    #[test]
    fn the_limit_is_found_below_what_came_of_it() {
        let inner = io::Error::from_raw_os_error(Errno::MFILE.raw_os_error());
        let outer = io::Error::other(inner);
        assert_eq!(hint(&outer), Some(FEW_FILES));
        assert_eq!(hint(&io::Error::from_raw_os_error(Errno::AGAIN.raw_os_error())), Some(FEW_PROCESSES));
        assert_eq!(hint(&io::Error::from_raw_os_error(Errno::FBIG.raw_os_error())), Some(SHORT_FILES));
        assert_eq!(hint(&io::Error::from_raw_os_error(Errno::NOENT.raw_os_error())), None);
    }
}
