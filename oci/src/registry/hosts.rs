//! Where each registry is reached, and whom to trust there: what the user says, and the files people already have.
//!
//! - What the user says goes before what a file says; the files are read when a registry is first spoken to, and one that
//!   is broken is an error, not a shrug.
//! - An image is pulled from an ordered list of [`sources`](Hosts::sources), the registry itself being the last; a push
//!   goes to the registry that was named.
//! - A mirror is a repository of another host, with that host's credentials and certificates.

use std::{ffi::OsString, path::PathBuf, str::FromStr, sync::Arc};

use crate::reference::{self, ReferenceError};

/// What the user says about registries, by flags and variables. Registries are `host` or `host:port`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostOptions {
    /// May be spoken to with an unverified certificate, or by plain HTTP.
    pub insecure: Vec<String>,
    /// May be spoken to with an unverified certificate, and never by plain HTTP.
    pub skip_verify: Vec<String>,
    /// Where images are looked for before their registry is asked: the first part of their name (a registry, or a
    /// registry and the beginning of a repository) and what takes its place. In the order in which they are asked.
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
}

impl Hosts {
    /// With these options, and the files in the places that the environment names. Nothing is read yet; the default knows
    /// of no file.
    pub fn new(options: HostOptions, environment: &dyn Fn(&str) -> Option<OsString>) -> Self {
        let _ = environment;
        Self { shared: Arc::new(Shared { options, ..Shared::default() }) }
    }

    pub(super) fn auth_files(&self) -> &[PathBuf] {
        &self.shared.options.auth_files
    }

    pub(super) fn trusted_realms(&self) -> &[String] {
        &self.shared.options.trusted_realms
    }

    pub(super) fn insecure(&self) -> &[String] {
        &self.shared.options.insecure
    }
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
