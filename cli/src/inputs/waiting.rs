//! What takes long before there are steps is shown: a server that does not answer must not look like a builder that
//! hangs. What is over at once, as most of it is, is not worth a line in every log.

use std::{
    sync::mpsc::{RecvTimeoutError, channel},
    thread,
    time::Duration,
};

use executor::ImageResolver;
use oci::Platform;
use solver::{BaseImage, Event, ImageName, Resolver, StepFailure};

use crate::build::Events;

/// After so long, people begin to wonder.
const MOMENT: Duration = Duration::from_secs(1);

/// Works; where it takes longer than a moment, progress shows it under this name until it has ended. What fails stays
/// open, as stages that fail do.
pub fn announced<T, E>(events: &Events, name: &str, work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    thread::scope(|scope| {
        let (done, ended) = channel::<()>();
        let announcer = scope.spawn(move || {
            let is_long = ended.recv_timeout(MOMENT) == Err(RecvTimeoutError::Timeout);
            if is_long {
                events(Event::Stage(name.to_owned()));
            }
            is_long
        });
        let worked = work();
        drop(done);
        let was_shown = announcer.join().unwrap_or(false);
        if was_shown && worked.is_ok() {
            events(Event::StageDone(name.to_owned()));
        }
        worked
    })
}

/// A resolver that says which image it waits for.
pub struct Announcing<'a> {
    pub resolver: ImageResolver,
    pub events: &'a Events,
}

impl Resolver for Announcing<'_> {
    fn image(&self, image: &ImageName, platform: &Platform) -> Result<BaseImage, StepFailure> {
        let find = || self.resolver.image(image, platform);
        match image {
            ImageName::Registry(reference) => {
                let name = format!("[internal] load metadata for {}", reference.with_default_tag());
                announced(self.events, &name, find)
            }
            ImageName::OciLayout { .. } => find(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[test]
    fn only_what_takes_long_is_announced() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&told);
        let (shown, is_shown) = channel();
        let events: Events = Arc::new(move |event| {
            sink.lock().expect("no test panics in it").push(format!("{event:?}"));
            shown.send(()).expect("the test listens");
        });
        let quick: Result<u8, ()> = announced(&events, "quick", || Ok(1));
        let long: Result<u8, ()> = announced(&events, "long", || is_shown.recv().map(|()| 2).map_err(|_| ()));
        let failed: Result<(), u8> = announced(&events, "failed", || {
            // The end of the one before, and the beginning of this one.
            for _ in 0..2 {
                is_shown.recv().expect("it is shown");
            }
            Err(3)
        });
        assert_eq!((quick, long, failed), (Ok(1), Ok(2), Err(3)));
        let told = told.lock().expect("no test panics in it").clone();
        assert_eq!(told, [r#"Stage("long")"#, r#"StageDone("long")"#, r#"Stage("failed")"#]);
    }
}
