//! Whom a step asks for names: the builder's resolver configuration, what the command line says instead (`--dns`,
//! `--dns-search`, `--dns-option`), and what of it a step in a network of its own can reach. Nothing is invented: where
//! the builder has no name server, a step has none.

use std::{
    fs::OpenOptions,
    io::{self, Read},
    net::IpAddr,
    os::unix::fs::{FileTypeExt, OpenOptionsExt},
};

use crate::sandbox::{
    SandboxError,
    isolated::{STEP, is_forbidden},
};

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
    /// A configuration with these in place of its own; unchanged where nothing is asked for.
    pub fn applied_to(&self, resolv_conf: &str) -> String {
        if *self == Self::default() {
            return resolv_conf.to_owned();
        }
        let or_own = |asked: Vec<String>, keywords: &[&str]| match asked.is_empty() {
            true => own_words(resolv_conf, keywords),
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

/// A resolver configuration of more bytes than this is none.
const MAX: u64 = 1 << 20;

const OWN: &str = "/etc/resolv.conf";

/// What stands behind the stub resolver of systemd-resolved(8).
const BEHIND_STUB: &str = "/run/systemd/resolve/resolv.conf";

/// Where that stub listens.
const STUBS: [&str; 2] = ["127.0.0.53", "127.0.0.54"];

/// A resolver configuration of this machine, and the file that it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The file, which need not be there.
    pub path: String,
    /// What it says.
    pub text: String,
}

/// What a step gets that shares the builder's network: the builder's own as it is, since a stub resolver on loopback can
/// be reached there.
///
/// # Errors
/// There is one and it cannot be read.
pub fn own() -> Result<Source, SandboxError> {
    own_at(OWN)
}

fn own_at(path: &str) -> Result<Source, SandboxError> {
    Ok(Source { path: path.to_owned(), text: read(path)?.unwrap_or_default() })
}

/// What a step gets that has a network of its own, and whence.
///
/// # Errors
/// A file cannot be read, or no server can be reached from there.
pub fn for_isolated(asked: &Dns) -> Result<Source, SandboxError> {
    let Source { path, text } = upstream(OWN, BEHIND_STUB)?;
    let text = reachable(&asked.applied_to(&text)).map_err(|servers| {
        let message = format!("an isolated step cannot reach the name server of this machine ({servers})");
        let hint = "name one that can be reached from outside of this machine: --dns ADDRESS";
        SandboxError::step(STEP, &message, Some(hint.to_owned()))
    })?;
    Ok(Source { path, text })
}

/// The builder's own, or what stands behind it where that is a stub.
fn upstream(own: &str, behind_stub: &str) -> Result<Source, SandboxError> {
    let own = own_at(own)?;
    let behind = if is_stub(&own.text) { read(behind_stub)? } else { None };
    Ok(behind.map_or(own, |text| Source { path: behind_stub.to_owned(), text }))
}

/// What a person should know of the resolver configuration that a step gets, where it names no server: whom a step asks then
/// is its own loopback, on which an isolated one has nobody. On the builder's own that is what its own programs do; a pipe,
/// though, may have held servers for those. `path` is the file that it comes from.
pub fn doubt(path: &str, resolv_conf: &str, is_isolated: bool) -> Option<String> {
    if own_words(resolv_conf, &["nameserver"]).iter().any(|server| is_address(server)) {
        return None;
    }
    let what = match std::fs::metadata(path) {
        Ok(found) if found.file_type().is_fifo() => "is a pipe, which is not read",
        _ if !is_isolated => return None,
        Ok(_) => "names no server",
        Err(_) => "is not there",
    };
    let steps = if is_isolated { "isolated steps" } else { "steps" };
    Some(format!(
        "{steps} know nobody to ask for names: {path} of this machine {what}; name a server with --dns ADDRESS"
    ))
}

/// Resolvers pass over what is none.
fn is_address(server: &str) -> bool {
    without_scope(server).parse::<IpAddr>().is_ok()
}

/// `fe80::1` of `fe80::1%eth0`.
fn without_scope(server: &str) -> &str {
    server.split_once('%').map_or(server, |(address, _)| address)
}

/// `None` where there is none: also at the end of a link that leads nowhere. Of a pipe nothing is read: what is in it is for
/// somebody else.
fn read(path: &str) -> Result<Option<String>, SandboxError> {
    let failed = |error: io::Error| SandboxError::io(&format!("read {path}"), &error);
    // What never answers must not be waited for.
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    let file = match opened {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(failed)?,
    };
    if file.metadata().map_err(failed)?.file_type().is_fifo() {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    file.take(MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX {
        return Err(failed(io::Error::other("it is larger than 1 MiB")));
    }
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

fn is_stub(resolv_conf: &str) -> bool {
    own_words(resolv_conf, &["nameserver"]).iter().any(|server| STUBS.contains(&server.as_str()))
}

/// The same without the name servers that cannot be reached; those, where no other is left.
fn reachable(resolv_conf: &str) -> Result<String, String> {
    let is_lost = |line: &&str| server(line).is_some_and(is_out_of_reach);
    let lost: Vec<&str> = resolv_conf.lines().filter(is_lost).filter_map(server).collect();
    let is_left = resolv_conf.lines().any(|line| server(line).is_some_and(|server| !is_out_of_reach(server)));
    if !lost.is_empty() && !is_left {
        return Err(lost.join(", "));
    }
    let kept = resolv_conf.lines().filter(|line| !is_lost(line));
    Ok(kept.map(|line| format!("{line}\n")).collect())
}

fn server(line: &str) -> Option<&str> {
    let mut words = line.split_whitespace();
    (words.next()? == "nameserver").then(|| words.next())?
}

/// Loopback, link-local (also with a scope, as `fe80::1%eth0`), no address in particular, which is loopback, or one that a
/// metadata service shares.
fn is_out_of_reach(server: &str) -> bool {
    without_scope(server)
        .parse()
        .is_ok_and(|address: IpAddr| address.is_unspecified() || is_forbidden(address.to_canonical()))
}

/// The words after these keywords: of all lines for name servers and options, of the last line for domains.
fn own_words(resolv_conf: &str, keywords: &[&str]) -> Vec<String> {
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
    use std::io::Write;

    use super::*;

    #[test]
    fn a_network_of_its_own_keeps_what_it_can_reach() {
        let rest = "search a b\noptions ndots:2 edns0\n";
        let cases = [
            ("nameserver 192.0.2.1\n", Ok("nameserver 192.0.2.1\n")),
            // IPv6 alone, and one that does not answer from there.
            ("nameserver 2001:db8::53\n", Ok("nameserver 2001:db8::53\n")),
            ("nameserver 127.0.0.1\nnameserver 192.0.2.1\n", Ok("nameserver 192.0.2.1\n")),
            ("nameserver fe80::1%eth0\nnameserver 2001:db8::53\n", Ok("nameserver 2001:db8::53\n")),
            ("nameserver fe80::1%eth0\n", Err("fe80::1%eth0")),
            ("nameserver 127.0.0.53\n", Err("127.0.0.53")),
            ("nameserver 169.254.169.253\nnameserver ::1\n", Err("169.254.169.253, ::1")),
            ("nameserver ::ffff:127.0.0.1\n", Err("::ffff:127.0.0.1")),
            ("nameserver 0.0.0.0\n", Err("0.0.0.0")),
            ("nameserver ::\n", Err("::")),
            ("nameserver 168.63.129.16\n", Err("168.63.129.16")),
            ("nameserver 64:ff9b::169.254.169.254\n", Err("64:ff9b::169.254.169.254")),
            ("nameserver 64:ff9b::8.8.8.8\n", Ok("nameserver 64:ff9b::8.8.8.8\n")),
            // None is none, and what is no address is passed over by resolvers.
            ("", Ok("")),
            ("# nameserver 127.0.0.1\n", Ok("# nameserver 127.0.0.1\n")),
            ("nameserver\nnameserver x\n", Ok("nameserver\nnameserver x\n")),
        ];
        for (servers, expected) in cases {
            let expected = expected.map(|text| format!("{rest}{text}")).map_err(str::to_owned);
            assert_eq!(reachable(&format!("{rest}{servers}")), expected, "{servers}");
        }
    }

    #[test]
    fn whoever_knows_nobody_to_ask_is_told() {
        let directory = tempfile::tempdir().expect("a directory");
        let at = |name: &str| directory.path().join(name).display().to_string();
        std::fs::write(at("file"), b"").expect("written");
        rustix::fs::mkfifoat(rustix::fs::CWD, at("pipe"), rustix::fs::Mode::RWXU).expect("made");
        let cases = [
            ("file", "search a\nnameserver x\n", None, Some("names no server")),
            ("file", "", None, Some("names no server")),
            ("nothing", "", None, Some("is not there")),
            ("pipe", "", Some("is a pipe"), Some("is a pipe")),
            ("pipe", "nameserver 192.0.2.1\n", None, None),
            ("file", "nameserver fe80::1%eth0\n", None, None),
        ];
        for (name, text, shared, isolated) in cases {
            for (is_isolated, expected) in [(false, shared), (true, isolated)] {
                let told = doubt(&at(name), text, is_isolated);
                assert_eq!(told.is_some(), expected.is_some(), "{name} {text:?}: {told:?}");
                assert!(told.unwrap_or_default().contains(expected.unwrap_or_default()));
            }
        }
    }

    #[test]
    fn the_file_that_is_to_blame_is_the_one_that_was_taken() {
        let directory = tempfile::tempdir().expect("a directory");
        let at = |name: &str| directory.path().join(name).display().to_string();
        std::fs::write(at("own"), "nameserver 192.0.2.1\n").expect("written");
        std::fs::write(at("stub"), "nameserver 127.0.0.53\n").expect("written");
        std::fs::write(at("behind"), "# no link is up\n").expect("written");
        for (own, behind, taken) in [
            ("own", "behind", "own"),
            ("stub", "behind", "behind"),
            ("stub", "nothing", "stub"),
            ("nothing", "behind", "nothing"),
        ] {
            assert_eq!(
                upstream(&at(own), &at(behind)).expect("can be read").path,
                at(taken),
                "{own} {behind}"
            );
        }
        let Source { path, text } = upstream(&at("stub"), &at("behind")).expect("can be read");
        let told = doubt(&path, &text, true).expect("nobody can be asked");
        assert!(told.contains(&format!("{} of this machine names no server", at("behind"))), "{told}");
    }

    #[test]
    fn files_are_read_as_resolvers_do() {
        let directory = tempfile::tempdir().expect("a directory");
        let at = |name: &str| directory.path().join(name).display().to_string();
        std::fs::write(at("file"), b"# \xff\nnameserver ::1\n").expect("written");
        std::fs::write(at("large"), vec![b'#'; MAX as usize + 1]).expect("written");
        let link = |target: &str, name: &str| std::os::unix::fs::symlink(target, at(name)).expect("linked");
        link("file", "link");
        link("nowhere", "dangling");
        link("/dev/null", "null");
        rustix::fs::mkfifoat(rustix::fs::CWD, at("pipe"), rustix::fs::Mode::RWXU).expect("made");
        let mut writer = OpenOptions::new().read(true).write(true).open(at("pipe")).expect("opened");
        writer.write_all(b"nameserver ::1\n").expect("written");
        let text = |name: &str| read(&at(name)).expect("can be read");
        assert_eq!(text("pipe"), None, "and nobody is waited for");
        assert!(text("file").expect("there").contains("nameserver ::1"));
        assert_eq!(text("link"), text("file"));
        assert_eq!((text("nothing"), text("dangling"), text("null")), (None, None, Some(String::new())));
        for name in ["large", "."] {
            let error = read(&at(name)).expect_err("cannot be read").to_string();
            assert!(error.contains("sandbox: read ") && error.contains(name), "{error}");
        }
    }

    #[test]
    fn the_stub_of_systemd_is_known_among_others() {
        for (servers, expected) in
            [("127.0.0.53", true), ("127.0.0.54", true), ("127.0.0.1", false), ("192.0.2.53", false)]
        {
            assert_eq!(is_stub(&format!("nameserver 192.0.2.9\nnameserver {servers}\n")), expected);
        }
    }

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
