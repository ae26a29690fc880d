//! What EXPOSE takes: `[[ip:]host:]port[-port][/protocol]`, of which only ports and protocol mean something.

/// `port/protocol` for every port of one word of EXPOSE.
///
/// # Errors
/// What is wrong with the word.
pub(super) fn parse(word: &str) -> Result<Vec<String>, String> {
    let mut parts = word.rsplitn(3, ':');
    let (port, host_port, address) = (parts.next().unwrap_or(""), parts.next(), parts.next());
    let (range, protocol) = port.split_once('/').unwrap_or((port, "tcp"));
    if range.is_empty() {
        return Err(format!("no port specified: {word}<empty>"));
    }
    let protocol = match protocol.to_ascii_lowercase() {
        protocol if protocol.is_empty() => "tcp".to_owned(),
        protocol if matches!(protocol.as_str(), "tcp" | "udp" | "sctp") => protocol,
        other => return Err(format!("invalid proto: {other}")),
    };
    if let Some(address) = address.map(|text| text.trim_start_matches('[').trim_end_matches(']'))
        && !address.is_empty()
        && address.parse::<std::net::IpAddr>().is_err()
    {
        return Err(format!("invalid IP address: {address}"));
    }
    let (first, last) = numbers(range).ok_or_else(|| format!("invalid containerPort: {range}"))?;
    if let Some(host) = host_port.filter(|text| !text.is_empty()) {
        let (from, to) = numbers(host).ok_or_else(|| format!("invalid hostPort: {host}"))?;
        if to - from != last - first && first != last {
            return Err(format!("invalid ranges specified for container and host Ports: {range} and {host}"));
        }
    }
    Ok((first..=last).map(|port| format!("{port}/{protocol}")).collect())
}

fn numbers(range: &str) -> Option<(u16, u16)> {
    let number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?;
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    let (first, last) = (number(first)?, number(last)?);
    (first <= last).then_some((first, last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_ranges_and_protocols() {
        for (word, want) in [
            ("80", vec!["80/tcp"]),
            ("53/UDP", vec!["53/udp"]),
            ("7/", vec!["7/tcp"]),
            ("9000-9002/sctp", vec!["9000/sctp", "9001/sctp", "9002/sctp"]),
            ("127.0.0.1:8080:80", vec!["80/tcp"]),
            ("[::1]:8080:80", vec!["80/tcp"]),
        ] {
            assert_eq!(parse(word), Ok(want.into_iter().map(str::to_owned).collect()), "{word}");
        }
        for word in ["", "x", "80/http", "70000", "90-80", "-1", "1.2.3:1:80", "1-2:80-82", "+80"] {
            assert!(parse(word).is_err(), "{word}");
        }
    }
}
