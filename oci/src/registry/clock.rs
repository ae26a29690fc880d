//! Clocks that disagree. Nothing here decides by the time of day; but whoever checks tokens and certificates does, and what
//! comes of a wrong clock looks like anything else (RELIABILITY, rule 21).

use std::time::{SystemTime, UNIX_EPOCH};

use reqwest::header::{AGE, DATE, HeaderMap};

use super::retry::http_date;

/// So many seconds are the network's, and nobody's fault.
const TOLERATED: i64 = 60;

/// How many seconds a server's clock is ahead of ours, by the `Date` of its answer.
pub(super) fn ahead(headers: &HeaderMap) -> Option<i64> {
    let text = |name| headers.get(name).and_then(|value: &reqwest::header::HeaderValue| value.to_str().ok());
    // A cache keeps the date, and says for how long it has had it.
    let age: u64 = text(AGE).and_then(|age| age.trim().parse().ok()).unwrap_or(0);
    Some(difference(http_date(text(DATE)?)?.saturating_add(age)))
}

/// How many seconds the clock is ahead of ours that gives this time (RFC 3339).
pub(super) fn ahead_at(time: &str) -> Option<i64> {
    rfc3339(time).map(difference)
}

fn difference(theirs: u64) -> i64 {
    let ours = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
    theirs as i64 - ours as i64
}

/// What to say about the clocks of a registry and its token service, if one of the three is wrong.
pub(super) fn told(registry: &str, ahead: Option<i64>, service_ahead: Option<i64>) -> Option<String> {
    let differ = |seconds: i64| (seconds.abs() > TOLERATED).then_some(seconds);
    if let (Some(own), Some(service)) = (ahead, service_ahead)
        && let Some(seconds) = differ(service - own)
    {
        let way = way(seconds);
        return Some(format!(
            "the clock of its token service is {} s {way} that of {registry}, which may take no token from it: have it \
             set",
            seconds.abs()
        ));
    }
    let seconds = differ(ahead.or(service_ahead)?)?;
    let way = way(-seconds);
    Some(format!(
        "the clock of this machine is {} s {way} that of {registry}, and credentials are good for a time: set it",
        seconds.abs()
    ))
}

fn way(seconds: i64) -> &'static str {
    if seconds > 0 { "ahead of" } else { "behind" }
}

/// Seconds since 1970 of `2006-01-02T15:04:05[.999](Z|+07:00)`.
fn rfc3339(text: &str) -> Option<u64> {
    let (date, time) = text.trim().split_at_checked(10)?;
    let time = time.strip_prefix(['T', 't', ' '])?;
    let (time, zone) = time.split_at_checked(8)?;
    let zone = zone.trim_start_matches(|c: char| c == '.' || c.is_ascii_digit());
    let [year, month, day] = numbers(date, '-')?;
    let [hour, minute, second] = numbers(time, ':')?;
    let offset = match zone.split_at_checked(1)? {
        ("Z" | "z", "") => 0,
        ("+", zone) => minutes(zone)?,
        ("-", zone) => -minutes(zone)?,
        _ => return None,
    };
    // What has no sign is read by the same rules as an HTTP date.
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let month = MONTHS.get(month.checked_sub(1)? as usize)?;
    let local = http_date(&format!("x, {day:02} {month} {year} {hour:02}:{minute:02}:{second:02} GMT"))?;
    local.checked_add_signed(-offset * 60)
}

fn numbers<const N: usize>(text: &str, separator: char) -> Option<[u64; N]> {
    let numbers: Option<Vec<u64>> = text.split(separator).map(|number| number.parse().ok()).collect();
    numbers?.try_into().ok()
}

/// `07:00`
fn minutes(zone: &str) -> Option<i64> {
    let [hours, minutes] = numbers(zone, ':')?;
    Some((hours * 60 + minutes) as i64).filter(|minutes| *minutes <= 24 * 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read() {
        for (text, want) in [
            ("1970-01-01T00:00:00Z", Some(0)),
            ("1994-11-06T08:49:37Z", Some(784_111_777)),
            ("1994-11-06T09:49:37.123456789+01:00", Some(784_111_777)),
            ("1994-11-06T05:19:37-03:30", Some(784_111_777)),
            ("2024-02-29t12:00:00z", Some(1_709_208_000)),
            ("1970-01-01T00:00:00+01:00", None),
            ("1994-11-06", None),
            ("1994-13-06T08:49:37Z", None),
            ("1994-11-06T08:49:37", None),
            ("1994-11-06T08:49:37Zulu", None),
            ("", None),
        ] {
            assert_eq!(rfc3339(text), want, "{text}");
        }
    }

    #[test]
    fn a_clock_that_is_wrong_is_named() {
        for (own, service, want) in [
            (None, None, None),
            (Some(60), Some(-60), Some("the clock of its token service is 120 s behind that of r,")),
            (Some(60), Some(60), None),
            (Some(3600), None, Some("the clock of this machine is 3600 s behind that of r,")),
            (Some(-61), Some(-61), Some("the clock of this machine is 61 s ahead of that of r,")),
            (None, Some(-61), Some("the clock of this machine is 61 s ahead of that of r,")),
            (Some(0), Some(90), Some("the clock of its token service is 90 s ahead of that of r,")),
        ] {
            let told = told("r", own, service);
            assert_eq!(told.is_some(), want.is_some(), "{own:?} {service:?}: {told:?}");
            assert!(told.is_none_or(|told| told.starts_with(want.unwrap_or_default())), "{want:?}");
        }
    }
}
