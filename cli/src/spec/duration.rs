//! Lengths of time, as Go's `time.ParseDuration` and systemd write them: `90s`, `12h`, `7d`, `1h30m`.

use std::time::Duration;

/// Units and their seconds, the longest first: each may come once, in this order.
const UNITS: [(&str, u64); 5] = [("w", 604_800), ("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)];

/// Reads a length of time of whole seconds.
///
/// # Errors
/// What was expected instead.
pub fn duration(text: &str) -> Result<Duration, String> {
    const EXPECTED: &str = "expected a time like 90s, 12h, 7d, 2w or 1h30m";
    let expected = || EXPECTED.to_owned();
    let (mut rest, mut units, mut seconds) = (text, &UNITS[..], 0_u64);
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(expected)?;
        let (number, unit) = rest.split_at(end);
        let number: u64 = number.parse().map_err(|_| expected())?;
        let at = units.iter().position(|(name, _)| unit.starts_with(name)).ok_or_else(expected)?;
        let (name, scale) = units[at];
        (rest, units) = (&unit[name.len()..], &units[at + 1..]);
        let part = number.checked_mul(scale).ok_or_else(expected)?;
        seconds = seconds.checked_add(part).ok_or_else(expected)?;
    }
    if text.is_empty() { Err(expected()) } else { Ok(Duration::from_secs(seconds)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        for (text, expected) in [
            ("90s", Some(90)),
            ("12h", Some(43_200)),
            ("7d", Some(604_800)),
            ("2w", Some(1_209_600)),
            ("1h30m", Some(5400)),
            ("1w2d3h4m5s", Some(604_800 + 2 * 86_400 + 3 * 3600 + 4 * 60 + 5)),
            ("0s", Some(0)),
            ("", None),
            ("7", None),
            ("d", None),
            ("-1h", None),
            ("1.5h", None),
            ("5m1h", None),
            ("1h1h", None),
            ("3 days", None),
            ("99999999999999999999s", None),
            ("18446744073709551615w", None),
        ] {
            assert_eq!(duration(text).ok(), expected.map(Duration::from_secs), "{text:?}");
        }
    }
}
