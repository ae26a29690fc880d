//! Go's durations (`1h2m3.5s`), in which HEALTHCHECK states its times.

use nom::bytes::complete::take_while1;
use nom::character::complete::{char, digit0, one_of};
use nom::combinator::{opt, verify};
use nom::{IResult, Parser};

use crate::grammar::taken;

/// Nanoseconds of a duration in Go's syntax, or what Go says is wrong with it.
pub(crate) fn parse(text: &str) -> Result<i64, String> {
    let invalid = || format!("time: invalid duration {text:?}");
    let (mut rest, sign) =
        opt(one_of::<_, _, nom::error::Error<&str>>("+-")).parse(text).map_err(|_| invalid())?;
    if rest == "0" {
        return Ok(0);
    }
    let mut total: i128 = 0;
    if rest.is_empty() {
        return Err(invalid());
    }
    while !rest.is_empty() {
        let (after, number) = number(rest).map_err(|_| invalid())?;
        let (after, unit) = unit(after).map_err(|_| format!("time: missing unit in duration {text:?}"))?;
        let scale =
            nanoseconds(unit).ok_or_else(|| format!("time: unknown unit {unit:?} in duration {text:?}"))?;
        total = scaled(number, scale).and_then(|part| total.checked_add(part)).ok_or_else(invalid)?;
        rest = after;
    }
    let total = if sign == Some('-') { -total } else { total };
    i64::try_from(total).map_err(|_| invalid())
}

fn number(text: &str) -> IResult<&str, &str> {
    let decimal = taken((digit0, opt((char('.'), digit0))));
    verify(decimal, |number: &str| number.contains(|c: char| c.is_ascii_digit())).parse(text)
}

fn unit(text: &str) -> IResult<&str, &str> {
    take_while1(|c: char| c != '.' && !c.is_ascii_digit()).parse(text)
}

fn nanoseconds(unit: &str) -> Option<i128> {
    Some(match unit {
        "ns" => 1,
        "us" | "µs" | "μs" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        _ => return None,
    })
}

/// Fractions are cut off below a nanosecond; `None` when it is more than a duration can hold.
fn scaled(number: &str, scale: i128) -> Option<i128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    // Eighteen digits are more than a nanosecond's share of an hour, and fit with the scale.
    let fraction = &fraction[..fraction.len().min(18)];
    let part: i128 = if fraction.is_empty() { 0 } else { fraction.parse().ok()? };
    let part = part * scale / 10_i128.pow(u32::try_from(fraction.len()).ok()?);
    whole.checked_mul(scale)?.checked_add(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_in_go() {
        let cases = [
            ("0", Ok(0)),
            ("5s", Ok(5_000_000_000)),
            ("1h2m3s", Ok(3_723_000_000_000)),
            ("1.5h", Ok(5_400_000_000_000)),
            (".5s", Ok(500_000_000)),
            ("-1s", Ok(-1_000_000_000)),
            ("+10ms", Ok(10_000_000)),
            ("1µs2us3ns", Ok(3_003)),
            ("9223372036854775807ns", Ok(i64::MAX)),
            ("", Err("time: invalid duration \"\"")),
            ("5", Err("time: missing unit in duration \"5\"")),
            ("s", Err("time: invalid duration \"s\"")),
            (".s", Err("time: invalid duration \".s\"")),
            ("5x", Err("time: unknown unit \"x\" in duration \"5x\"")),
            ("10000000000000h", Err("time: invalid duration \"10000000000000h\"")),
        ];
        for (text, expected) in cases {
            assert_eq!(parse(text), expected.map_err(str::to_owned), "{text}");
        }
    }
}
