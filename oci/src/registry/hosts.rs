//! Where each registry is reached, and whom to trust there: what the user says, and the files people already have.
//!
//! - What the user says goes before what a file says; the files are read when a registry is first spoken to, and one that
//!   is broken is an error, not a shrug.
//! - An image is pulled from an ordered list of places, the registry itself being the last; a push goes to the registry
//!   that was named.
//! - A mirror is a repository of another host: its credentials and certificates are those of that host.
//! - HTTPS is the rule, and what is spoken instead is said for a host, or for the beginning of its repositories.

mod certs;
mod conf;
mod document;
mod rules;

use std::{
    collections::HashMap,
    ffi::OsString,
    path::{Path, PathBuf},
    str::FromStr,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use reqwest::Url;

pub use self::document::HostsError;
pub(super) use self::rules::{Sources, Wanted};
use self::{
    certs::Certificates,
    conf::ConfFiles,
    rules::{Mirror, Pattern, PullFrom, Rule, best, rewritten},
};
use super::error::RegistryError;
use crate::reference::{self, Reference, ReferenceError};

/// What the user says about registries, by flags and variables. Registries are `host` or `host:port`; a host alone stands
/// for all of its ports.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostOptions {
    /// May be spoken to with an unverified certificate, or by plain HTTP.
    pub insecure: Vec<String>,
    /// May be spoken to with an unverified certificate, and never by plain HTTP.
    pub skip_verify: Vec<String>,
    /// Where images are looked for before their registry is asked: the first part of their name (a registry, or a
    /// registry and the beginning of a repository) and what takes its place. In the order in which they are asked; they
    /// go before the mirrors that files name.
    pub mirrors: Vec<(String, Location)>,
    /// PEM files of certificate authorities, each for one registry.
    pub ca_files: Vec<(String, PathBuf)>,
    /// What proves to a registry who we are.
    pub client_certificates: Vec<(String, Identity)>,
    /// Credential files (Docker's `config.json` format), looked at before the usual places. They must exist.
    pub auth_files: Vec<PathBuf>,
    /// Hosts of token services that may see credentials though they are not below the registry's own domain.
    pub trusted_realms: Vec<String>,
}

/// A place that takes the place of the first part of an image's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// `host[:port][/path]`, where the path is the beginning of a repository.
    pub name: String,
    /// Spoken to by plain HTTP, and nothing else.
    pub is_plain: bool,
}

impl FromStr for Location {
    type Err = ReferenceError;

    /// `[http://|https://]host[:port][/path]`
    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let (bare, is_plain) = match (text.strip_prefix("https://"), text.strip_prefix("http://")) {
            (Some(bare), _) => (bare.strip_suffix('/').unwrap_or(bare), false),
            (_, Some(bare)) => (bare.strip_suffix('/').unwrap_or(bare), true),
            _ => (text, false),
        };
        Ok(Self { name: reference::prefix(bare)?, is_plain })
    }
}

/// A client certificate: PEM files of the chain and its key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The certificate, and those between it and its authority.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// Where registries are reached. Cheap to clone; clones read the files once.
#[derive(Debug, Clone, Default)]
pub struct Hosts {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    options: HostOptions,
    conf: ConfFiles,
    certs: Vec<PathBuf>,
    settings: OnceLock<Settings>,
    /// What the directories hold for a host, by its name.
    certificates: Mutex<HashMap<String, Certificates>>,
}

/// What options and files come to.
#[derive(Debug)]
struct Settings {
    /// The tables of the files.
    rules: Vec<Rule>,
    /// Mirrors that the user names, by what they are mirrors of.
    mirrors: Vec<(Pattern, Mirror)>,
    /// What need not be verified.
    leniences: Vec<(Pattern, Lenience)>,
}

/// What a host need not do. The later ones allow more.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Lenience {
    /// It proves who it is, in HTTPS.
    #[default]
    None,
    /// HTTPS with any certificate.
    SkipVerify,
    /// Any certificate, or plain HTTP where HTTPS is not spoken.
    Insecure,
    /// Plain HTTP.
    Plain,
}

/// How a host is spoken to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Trust {
    pub lenience: Lenience,
    /// Authorities for this host beside those for all.
    pub ca_files: Vec<PathBuf>,
    /// What we show it.
    pub identity: Option<Identity>,
}

impl Trust {
    /// Whether a certificate is configured, which means nothing without TLS.
    pub fn needs_tls(&self) -> bool {
        self.lenience == Lenience::SkipVerify || !self.ca_files.is_empty() || self.identity.is_some()
    }
}

impl Hosts {
    /// With these options, and the files in the places that the environment names. Nothing is read yet; the default knows
    /// of no file.
    pub fn new(options: HostOptions, environment: &dyn Fn(&str) -> Option<OsString>) -> Self {
        Self::below(Path::new("/etc"), options, environment)
    }

    /// The same with another directory for the system's settings.
    fn below(system: &Path, options: HostOptions, environment: &dyn Fn(&str) -> Option<OsString>) -> Self {
        let variable = |name: &str| environment(name).filter(|value| !value.is_empty());
        let user = variable("XDG_CONFIG_HOME").map(PathBuf::from);
        let user = user.or_else(|| Some(PathBuf::from(variable("HOME")?).join(".config")));
        let conf = ConfFiles::find(variable("CONTAINERS_REGISTRIES_CONF"), user.as_deref(), system);
        let certs = ["containers/certs.d", "docker/certs.d"]
            .into_iter()
            .flat_map(|name| [user.as_ref().map(|user| user.join(name)), Some(system.join(name))])
            .flatten()
            .collect();
        Self { shared: Arc::new(Shared { options, conf, certs, ..Shared::default() }) }
    }

    pub(super) fn auth_files(&self) -> &[PathBuf] {
        &self.shared.options.auth_files
    }

    pub(super) fn trusted_realms(&self) -> &[String] {
        &self.shared.options.trusted_realms
    }

    /// Where to look for an image, or why it may not be used.
    pub(super) fn sources(&self, reference: &Reference, wanted: Wanted) -> Result<Sources, RegistryError> {
        let settings = self.settings()?;
        let name = reference.to_string();
        let rule = best(&settings.rules, &name, |rule| &rule.prefix);
        let own = rule.map_or_else(|| Ok(reference.clone()), |rule| rule.own(reference))?;
        let named = best(&settings.mirrors, &name, |(prefix, _)| prefix);
        let mirrors: Vec<(&Pattern, &Mirror)> = match (named, rule) {
            (Some((named, _)), _) => {
                let same = settings.mirrors.iter().filter(|(prefix, _)| prefix == named);
                same.map(|(prefix, mirror)| (prefix, mirror)).collect()
            }
            (None, Some(rule)) => rule.mirrors.iter().map(|mirror| (&rule.prefix, mirror)).collect(),
            (None, None) => Vec::new(),
        };
        let asked = mirrors.into_iter().filter(|(_, mirror)| mirror.is_for(reference, wanted));
        let mirrors = asked.map(|(prefix, mirror)| rewritten(reference, prefix, &mirror.location.name));
        Ok(Sources { mirrors: mirrors.collect::<Result<_, _>>()?, own })
    }

    /// Refuses images that a file blocks, for those who do not ask where to look for them.
    pub(super) fn permit(&self, reference: &Reference) -> Result<(), RegistryError> {
        let settings = self.settings()?;
        let rule = best(&settings.rules, &reference.to_string(), |rule| &rule.prefix);
        rule.map_or(Ok(()), |rule| rule.permit(reference))
    }

    /// How the host of a URL is spoken to; below `/v2/` its path is the beginning of a repository.
    pub(super) fn trust(&self, url: &Url) -> Result<Trust, RegistryError> {
        let options = &self.shared.options;
        let names = names(url);
        let found = self.certificates(&names)?;
        let authorities = options.ca_files.iter().filter(|(host, _)| covers(host, &names));
        let own = options.client_certificates.iter().find(|(host, _)| covers(host, &names));
        Ok(Trust {
            lenience: self.lenience(url)?,
            ca_files: authorities.map(|(_, path)| path.clone()).chain(found.ca_files).collect(),
            identity: own.map(|(_, identity)| identity.clone()).or(found.identity),
        })
    }

    /// What the host of a URL need not do.
    pub(super) fn lenience(&self, url: &Url) -> Result<Lenience, RegistryError> {
        let options = &self.shared.options;
        let names = names(url);
        if options.insecure.iter().any(|host| covers(host, &names)) {
            return Ok(Lenience::Insecure);
        }
        if options.skip_verify.iter().any(|host| covers(host, &names)) {
            return Ok(Lenience::SkipVerify);
        }
        let path = url.path().strip_prefix("/v2/").unwrap_or_default().trim_end_matches('/');
        let settings = self.settings()?;
        let of_name = |name: &String| {
            let full = if path.is_empty() { name.clone() } else { format!("{name}/{path}") };
            best(&settings.leniences, &full, |(pattern, _)| pattern).map(|(_, lenience)| *lenience)
        };
        Ok(names.iter().filter_map(of_name).max().unwrap_or_default())
    }

    fn certificates(&self, names: &[String]) -> Result<Certificates, RegistryError> {
        let Some(name) = names.last() else { return Ok(Certificates::default()) };
        let lock = || self.shared.certificates.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = lock().get(name) {
            return Ok(known.clone());
        }
        let found = certs::find(&self.shared.certs, names)?;
        Ok(lock().entry(name.clone()).or_insert(found).clone())
    }

    fn settings(&self) -> Result<&Settings, RegistryError> {
        if let Some(settings) = self.shared.settings.get() {
            return Ok(settings);
        }
        let settings = Settings::new(&self.shared.options, self.shared.conf.read()?)?;
        Ok(self.shared.settings.get_or_init(|| settings))
    }
}

impl Settings {
    fn new(options: &HostOptions, rules: Vec<Rule>) -> Result<Self, HostsError> {
        let mirror = |(prefix, location): &(String, Location)| {
            let mirror = Mirror { location: location.clone(), is_insecure: false, pull: PullFrom::All };
            (Pattern::Name(prefix.clone()), mirror)
        };
        let mirrors: Vec<(Pattern, Mirror)> = options.mirrors.iter().map(mirror).collect();
        let leniences = leniences(&mirrors, &rules);
        Ok(Self { rules, mirrors, leniences })
    }
}

/// What is said of places, each once: where two tables disagree about one, it is lenience that somebody has asked for.
fn leniences(mirrors: &[(Pattern, Mirror)], rules: &[Rule]) -> Vec<(Pattern, Lenience)> {
    let insecure = |is_insecure| if is_insecure { Lenience::Insecure } else { Lenience::None };
    let of_mirror = |mirror: &Mirror| {
        let lenience = if mirror.location.is_plain { Lenience::Plain } else { insecure(mirror.is_insecure) };
        (Pattern::Name(mirror.location.name.clone()), lenience)
    };
    let of_rule = |rule: &Rule| {
        let place = rule.location.clone().map_or_else(|| rule.prefix.clone(), Pattern::Name);
        (place, insecure(rule.is_insecure))
    };
    let own = mirrors.iter().map(|(_, mirror)| of_mirror(mirror));
    let theirs = rules
        .iter()
        .flat_map(|rule| std::iter::once(of_rule(rule)).chain(rule.mirrors.iter().map(of_mirror)));
    let mut all: Vec<(Pattern, Lenience)> = Vec::new();
    for (pattern, lenience) in own.chain(theirs) {
        match all.iter_mut().find(|(known, _)| *known == pattern) {
            Some((_, known)) => *known = lenience.max(*known),
            None => all.push((pattern, lenience)),
        }
    }
    all
}

/// What the host of a URL is called in settings: without a port where it is the usual one, and with it. Docker Hub has the
/// name that references have.
fn names(url: &Url) -> Vec<String> {
    let host = url.host_str().unwrap_or_default();
    let port = url.port_or_known_default().unwrap_or_default();
    let name = reference::canonical_registry(host);
    let with_port = format!("{host}:{port}");
    match url.port() {
        Some(_) => vec![with_port],
        None if name == host => vec![name.to_owned(), with_port],
        None => vec![name.to_owned(), host.to_owned(), with_port],
    }
}

/// Whether what the user calls a host is one of its names, or the same without its port.
fn covers(host: &str, names: &[String]) -> bool {
    let is_same = |name: &String| {
        name.eq_ignore_ascii_case(host)
            || name.rsplit_once(':').is_some_and(|(bare, _)| bare.eq_ignore_ascii_case(host))
    };
    names.iter().any(is_same)
}

#[cfg(test)]
mod tests;
