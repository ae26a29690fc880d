//! Sizes as Docker's flags write them: `64m`, `1.5GiB`, `2 t`.

/// Bytes: a number with an optional unit of 1024's powers. `None` where the text is none.
pub fn parse(value: &str) -> Option<u64> {
    let number_end = value.rfind(|c: char| c.is_ascii_digit() || c == '.' || c == ' ').map_or(0, |at| at + 1);
    let (number, unit) = value.split_at(number_end);
    let number = number.strip_suffix(' ').unwrap_or(number);
    let power = unit_power(&unit.to_ascii_lowercase())?;
    let plain = number.chars().all(|c| c.is_ascii_digit() || c == '.');
    let number: f64 = if plain { number.parse().ok()? } else { return None };
    let bytes = number * 1024_f64.powi(power);
    // Beyond this the number is no longer what was written.
    (bytes < 9.2e18).then_some(bytes as u64)
}

fn unit_power(unit: &str) -> Option<i32> {
    if matches!(unit, "" | "b") {
        return Some(0);
    }
    let prefix = unit.strip_suffix("ib").or_else(|| unit.strip_suffix('b')).unwrap_or(unit);
    ["k", "m", "g", "t", "p"].iter().zip(1..).find(|(known, _)| **known == prefix).map(|(_, power)| power)
}
