//! `--dns`, `--dns-search`, `--dns-option`: another resolver configuration than the builder's own.

use std::net::IpAddr;

/// What is asked for; a list that is empty leaves what the builder's configuration says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dns {
    /// Name servers.
    pub servers: Vec<IpAddr>,
    /// Domains in which names without a dot are looked for; `.` alone is none at all.
    pub search: Vec<String>,
    /// Options of resolv.conf(5).
    pub options: Vec<String>,
}

impl Dns {
    /// The builder's configuration with these in place of its own; unchanged where nothing is asked for.
    pub fn applied_to(&self, resolv_conf: &str) -> String {
        if *self == Self::default() {
            return resolv_conf.to_owned();
        }
        let or_own = |asked: Vec<String>, keywords: &[&str]| match asked.is_empty() {
            true => own(resolv_conf, keywords),
            false => asked,
        };
        let servers = or_own(self.servers.iter().map(IpAddr::to_string).collect(), &["nameserver"]);
        // Of several lines the last one counts, whichever of the two words it begins with.
        let search = or_own(self.search.clone(), &["search", "domain"]);
        let options = or_own(self.options.clone(), &["options"]);
        let mut text = String::new();
        if !search.is_empty() && search != ["."] {
            text += &format!("search {}\n", search.join(" "));
        }
        servers.iter().for_each(|server| text += &format!("nameserver {server}\n"));
        if !options.is_empty() {
            text += &format!("options {}\n", options.join(" "));
        }
        text
    }
}

/// The words after these keywords: of all lines for name servers and options, of the last line for domains.
fn own(resolv_conf: &str, keywords: &[&str]) -> Vec<String> {
    let mut lines = resolv_conf.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        keywords.contains(&words.next()?).then(|| words.map(str::to_owned).collect::<Vec<_>>())
    });
    match keywords {
        ["search", ..] => lines.next_back().unwrap_or_default(),
        _ => lines.flatten().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_takes_the_place_of_what_there_is() {
        const OWN: &str =
            "# ours\ndomain old\nsearch a b\nnameserver 192.0.2.1\noptions edns0\nnameserver ::1\n";
        let list = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let dns = |servers: &str, search: &str, options: &str| Dns {
            servers: list(servers).iter().map(|server| server.parse().expect("an address")).collect(),
            search: list(search),
            options: list(options),
        };
        let all = "search a b\nnameserver 192.0.2.1\nnameserver ::1\noptions edns0\n";
        let cases = [
            (dns("", "", ""), OWN.to_owned()),
            (dns("192.0.2.9", "", ""), "search a b\nnameserver 192.0.2.9\noptions edns0\n".to_owned()),
            (dns("", "example.org", ""), all.replace("a b", "example.org")),
            (dns("", ".", ""), all.replace("search a b\n", "")),
            (dns("", "", "ndots:2 rotate"), all.replace("edns0", "ndots:2 rotate")),
        ];
        for (dns, expected) in cases {
            assert_eq!(dns.applied_to(OWN), expected, "{dns:?}");
        }
        assert_eq!(dns("192.0.2.9", "", "").applied_to(""), "nameserver 192.0.2.9\n");
    }
}
