//! When to try again: exponential pauses with jitter, and those a registry asks for.
//!
//! What counts against the budget of an operation is the time it has waited, not the time it has worked: an upload of an
//! hour that breaks is worth as many new attempts as one of a second. A pause that a registry asks for holds for all who
//! talk to it.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use reqwest::header::{DATE, HeaderMap, RETRY_AFTER};
use ring::rand::SecureRandom;

use super::error::{Patience, RegistryError};

/// Deadlines and pauses. The default is for people; tests shorten it.
#[derive(Debug, Clone)]
pub struct Limits {
    /// To establish a connection, TLS included.
    pub connect: Duration,
    /// Without a byte moving in either direction.
    pub idle: Duration,
    /// The first pause; each one after it is twice as long.
    pub first_pause: Duration,
    /// The longest pause of our own choosing.
    pub longest_pause: Duration,
    /// The longest pause a registry may ask for at a time.
    pub longest_retry_after: Duration,
    /// All pauses together after errors that servers recover from.
    pub patience: Duration,
    /// All pauses together after errors that seldom go away.
    pub short_patience: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(30),
            idle: Duration::from_secs(60),
            first_pause: Duration::from_millis(250),
            longest_pause: Duration::from_secs(20),
            longest_retry_after: Duration::from_secs(300),
            patience: Duration::from_secs(120),
            short_patience: Duration::from_secs(6),
        }
    }
}

/// Who need not answer is waited for by this part of the patience with errors that seldom go away, ...
const BRIEF: u32 = 3;
/// ... and may be silent for this part of the time.
const SILENT: u32 = 4;

impl Limits {
    /// For somebody who need not answer: others can, or nobody has to.
    pub(super) fn brief(&self) -> Self {
        let brief = self.short_patience / BRIEF;
        let idle = self.idle / SILENT;
        Self { idle, patience: brief, short_patience: brief, longest_retry_after: brief, ..self.clone() }
    }

    /// The same, so many times as quick: for tests of what takes minutes.
    pub fn hurried(self, times: u32) -> Self {
        let Self { connect, idle, first_pause, longest_pause, longest_retry_after, patience, short_patience } =
            self;
        Self {
            connect: connect / times,
            idle: idle / times,
            first_pause: first_pause / times,
            longest_pause: longest_pause / times,
            longest_retry_after: longest_retry_after / times,
            patience: patience / times,
            short_patience: short_patience / times,
        }
    }
}

/// A registry that asks for pauses is obeyed for this many of the longest ones, ...
const OBEYED_PAUSES: u32 = 4;
/// ... and not more often than this, then given up on.
const OBEYED_TIMES: u32 = 200;

/// What has been spent on further attempts.
#[derive(Debug, Default, Clone, Copy)]
struct Spent {
    count: u32,
    waited: Duration,
}

/// The attempts of one operation.
#[derive(Debug)]
pub(super) struct Attempts<'a> {
    limits: &'a Limits,
    /// After errors of short patience, ...
    short: Spent,
    /// ... of long patience, whose pauses say nothing about the others, ...
    long: Spent,
    /// ... and because the registry has asked for it.
    obeyed: Spent,
    /// Whether there is somebody else to ask, so that nobody is obeyed who asks for more than the limit.
    is_brief: bool,
}

impl<'a> Attempts<'a> {
    pub fn new(limits: &'a Limits) -> Self {
        let none = Spent::default();
        Self { limits, short: none, long: none, obeyed: none, is_brief: false }
    }

    /// For somebody who need not answer, since others can.
    pub fn brief(limits: &'a Limits) -> Self {
        Self { is_brief: true, ..Self::new(limits) }
    }

    /// Begins to count anew: there has been progress.
    pub fn reset(&mut self) {
        *self = Self { is_brief: self.is_brief, ..Self::new(self.limits) };
    }

    /// How long to wait before the next attempt, or `None` when there should be none.
    pub fn pause_after(&mut self, error: &RegistryError) -> Option<Duration> {
        let limits = self.limits;
        let (spent, budget) = match error.patience() {
            Patience::None => return None,
            Patience::Short => (&mut self.short, limits.short_patience),
            Patience::Long => (&mut self.long, limits.patience),
        };
        if let Some(asked) = error.retry_after() {
            return self.obey(asked);
        }
        spent.waited += error.waited(limits);
        let nominal = limits.first_pause.saturating_mul(1 << spent.count.min(16)).min(limits.longest_pause);
        spent.count += 1;
        if spent.waited + nominal > budget {
            return None;
        }
        spent.waited += nominal;
        Some(jittered(nominal))
    }
}

impl Attempts<'_> {
    fn obey(&mut self, asked: Duration) -> Option<Duration> {
        if self.is_brief && asked > self.limits.longest_retry_after {
            return None;
        }
        let pause = asked.clamp(self.limits.first_pause, self.limits.longest_retry_after);
        self.obeyed.count += 1;
        self.obeyed.waited += pause;
        let patient = self.obeyed.waited <= self.limits.longest_retry_after * OBEYED_PAUSES
            && self.obeyed.count <= OBEYED_TIMES;
        // Whoever waits for the same moment must not come back at the same moment.
        patient.then(|| pause + jittered(self.limits.first_pause * 4))
    }
}

/// Between half of a duration and all of it.
fn jittered(duration: Duration) -> Duration {
    let mut bytes = [0; 2];
    // Without randomness there is no jitter, which is no reason to fail.
    let _ = ring::rand::SystemRandom::new().fill(&mut bytes);
    let share = f64::from(u16::from_le_bytes(bytes)) / f64::from(u16::MAX);
    duration.mul_f64(0.5 + share / 2.0)
}

/// Until when each registry wants to be left alone.
#[derive(Debug, Default)]
pub(super) struct Pauses {
    until: Mutex<HashMap<String, Instant>>,
    /// Until when people know that somebody waits.
    told: Mutex<HashMap<String, Instant>>,
}

impl Pauses {
    /// Waits until the registry may be asked again.
    pub async fn wait(&self, registry: &str) {
        while let Some(rest) = self.remaining(registry) {
            tokio::time::sleep(rest).await;
        }
    }

    /// Whether nobody has told yet of a pause that lasts as long.
    pub fn is_news(&self, registry: &str, pause: Duration) -> bool {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        // What ends a moment later is the same pause of another transfer.
        let is_known = told.get(registry).is_some_and(|until| now + pause.mul_f64(0.5) <= *until);
        if !is_known {
            told.insert(registry.to_owned(), now + pause);
        }
        !is_known
    }

    fn remaining(&self, registry: &str) -> Option<Duration> {
        let mut until = self.until.lock().unwrap_or_else(PoisonError::into_inner);
        let rest = until.get(registry)?.saturating_duration_since(Instant::now());
        if rest.is_zero() {
            until.remove(registry);
            return None;
        }
        Some(rest)
    }

    /// Takes note of an error after which everybody should pause, not only who has met it.
    pub fn note(&self, registry: &str, error: &RegistryError, pause: Duration) {
        let overloaded = matches!(error, RegistryError::Status { status: 429, .. });
        if overloaded || error.retry_after().is_some() {
            let mut all = self.until.lock().unwrap_or_else(PoisonError::into_inner);
            let until = all.entry(registry.to_owned()).or_insert_with(Instant::now);
            *until = (*until).max(Instant::now() + pause);
        }
    }
}

/// `Retry-After` as a duration: seconds, or a date, which is taken relative to the server's own clock where it tells it.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let then = http_date(text)?;
    let server_now = headers.get(DATE).and_then(|date| date.to_str().ok()).and_then(http_date);
    let now = server_now.or_else(|| Some(SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_secs()))?;
    Some(Duration::from_secs(then.saturating_sub(now)))
}

/// Seconds since 1970 of an IMF-fixdate, `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110, section 5.6.7).
pub(super) fn http_date(text: &str) -> Option<u64> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let (_, rest) = text.split_once(", ")?;
    let [day, month, year, time, "GMT"] = rest.split(' ').collect::<Vec<_>>()[..] else { return None };
    let month = 1 + MONTHS.iter().position(|name| *name == month)? as u64;
    let (day, year): (u64, u64) = (day.parse().ok()?, year.parse().ok()?);
    let [hour, minute, second] = time.split(':').collect::<Vec<_>>()[..] else { return None };
    let (hour, minute, second): (u64, u64, u64) =
        (hour.parse().ok()?, minute.parse().ok()?, second.parse().ok()?);
    if !(1970..10_000).contains(&year) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60
    {
        return None;
    }
    // Years begin in March here, so that the leap day is their last.
    let year = if month <= 2 { year - 1 } else { year };
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = 365 * year + year / 4 - year / 100 + year / 400 + day_of_year - 719_468;
    Some(days * 86_400 + hour * 3_600 + minute * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(status: u16, retry_after: Option<u64>) -> RegistryError {
        let retry_after = retry_after.map(Duration::from_secs);
        RegistryError::Status { url: String::new(), status, codes: vec![], reason: None, retry_after }
    }

    fn pauses(error: &RegistryError) -> Vec<Duration> {
        let limits = Limits::default();
        let mut attempts = Attempts::new(&limits);
        std::iter::from_fn(|| attempts.pause_after(error)).take(1000).collect()
    }

    #[test]
    fn pauses_grow_and_end() {
        let long = pauses(&status(503, None));
        assert!((10..14).contains(&long.len()), "{long:?}");
        assert!(long[0] >= Duration::from_millis(125) && long[0] <= Duration::from_millis(250));
        assert!(long.iter().sum::<Duration>() >= Duration::from_secs(55), "{long:?}");
        assert!(long.iter().all(|pause| *pause <= Duration::from_secs(20)));
        assert_eq!(pauses(&status(400, None)), []);
        let lost = RegistryError::Status {
            url: String::new(),
            status: 404,
            codes: vec!["BLOB_UPLOAD_UNKNOWN".to_owned()],
            reason: None,
            retry_after: None,
        };
        assert!((3..6).contains(&pauses(&lost).len()));
    }

    #[test]
    fn a_hiccup_after_a_long_one_is_still_worth_an_attempt() {
        let limits = Limits::default();
        let mut attempts = Attempts::new(&limits);
        assert!((0..6).all(|_| attempts.pause_after(&status(503, None)).is_some()));
        let shifted = attempts.pause_after(&status(204, None));
        assert!(shifted.is_some_and(|pause| pause <= limits.first_pause), "{shifted:?}");
    }

    #[test]
    fn a_registry_is_obeyed_within_bounds() {
        let asked = pauses(&status(429, Some(7)));
        assert!(asked.iter().all(|pause| (7.0..8.1).contains(&pause.as_secs_f64())), "{asked:?}");
        assert_eq!(pauses(&status(429, Some(86_400))).len(), 4);
        assert_eq!(pauses(&status(429, Some(0))).len(), OBEYED_TIMES as usize, "no busy loop for ever");
        let timeout = RegistryError::Timeout { url: String::new(), waited: Duration::from_secs(60) };
        assert_eq!(pauses(&timeout).len(), 1);
    }

    #[test]
    fn a_pause_holds_for_all_who_talk_to_the_registry_and_nobody_else() {
        let pauses = Pauses::default();
        pauses.note("busy", &status(429, None), Duration::from_secs(9));
        pauses.note("busy", &status(503, Some(5)), Duration::from_secs(5));
        pauses.note("broken", &status(503, None), Duration::from_secs(9));
        assert!(pauses.remaining("busy").is_some_and(|rest| rest > Duration::from_secs(8)));
        assert_eq!((pauses.remaining("broken"), pauses.remaining("other")), (None, None));
        pauses.note("quick", &status(429, Some(0)), Duration::ZERO);
        assert_eq!(pauses.remaining("quick"), None);
    }

    #[test]
    fn a_pause_is_told_once() {
        let (pauses, pause) = (Pauses::default(), Duration::from_secs(60));
        assert!(pauses.is_news("busy", pause) && !pauses.is_news("busy", pause));
        assert!(pauses.is_news("other", pause));
        assert!(pauses.is_news("busy", pause * 5), "a much longer one");
    }

    #[test]
    fn dates_are_read_and_compared_with_the_servers_clock() {
        assert_eq!(http_date("Thu, 01 Jan 1970 00:00:00 GMT"), Some(0));
        assert_eq!(http_date("Sun, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777));
        assert_eq!(http_date("Thu, 29 Feb 2024 12:00:00 GMT"), Some(1_709_208_000));
        for bad in ["", "Sun, 06 Nov 1994", "Sunday, 06-Nov-94 08:49:37 GMT", "x, 99 Nov 1994 08:49:37 GMT"] {
            assert_eq!(http_date(bad), None, "{bad}");
        }
        let headers = |retry: &str, date: Option<&str>| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, retry.parse().expect("a header"));
            date.map(|date| headers.insert(DATE, date.parse().expect("a header")));
            retry_after(&headers)
        };
        assert_eq!(headers("120", None), Some(Duration::from_secs(120)));
        let (then, now) = ("Sun, 06 Nov 1994 08:49:37 GMT", "Sun, 06 Nov 1994 08:49:30 GMT");
        assert_eq!(headers(then, Some(now)), Some(Duration::from_secs(7)));
        assert_eq!(headers(then, None), Some(Duration::ZERO), "long ago");
        assert_eq!(headers("soon", None), None);
    }
}
