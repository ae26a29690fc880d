//! How registries are reached: the flags of every command that talks to them, and their variables.

use std::{ffi::OsStr, fmt::Display, path::PathBuf, str::FromStr};

use clap::Args;
use oci::registry::{HostOptions, Hosts};

use crate::{
    request::{Environment, RequestError},
    spec::registry::{CertificateSpec, ClientCertificateSpec, HostName, MirrorSpec},
};

const HEADING: &str = "Registries";

/// The flags. What is not given is taken from the variable of the same name: `LAYERWRIGHT_REGISTRY_MIRROR`, and so on,
/// whose values are separated by blanks.
#[derive(Debug, Clone, Default, Args)]
pub struct RegistryArgs {
    /// HOST[:PORT] to reach by HTTP or unverified (repeatable)
    #[arg(long = "insecure-registry", value_name = "HOST", help_heading = HEADING)]
    pub insecure: Vec<HostName>,

    /// HOST[:PORT] whose certificate may be bad (repeatable)
    #[arg(long = "skip-tls-verify-registry", value_name = "HOST", help_heading = HEADING)]
    pub skip_verify: Vec<HostName>,

    /// Pull from here first: [REGISTRY=]MIRROR (repeatable)
    #[arg(long = "registry-mirror", value_name = "MIRROR", help_heading = HEADING)]
    pub mirrors: Vec<MirrorSpec>,

    /// Trust an authority there: HOST[:PORT]=CA.pem
    #[arg(long = "registry-certificate", value_name = "HOST=FILE", help_heading = HEADING)]
    pub certificates: Vec<CertificateSpec>,

    /// Show who we are there: HOST[:PORT]=CERT.pem,KEY.pem
    #[arg(long = "registry-client-cert", value_name = "HOST=FILES", help_heading = HEADING)]
    pub client_certificates: Vec<ClientCertificateSpec>,

    /// Credentials that go before the usual ones
    #[arg(long = "authfile", value_name = "FILE", help_heading = HEADING)]
    pub auth_file: Option<PathBuf>,

    /// Token service to show credentials to
    #[arg(long = "trusted-realm", value_name = "HOST", help_heading = HEADING)]
    pub trusted_realms: Vec<HostName>,
}

impl RegistryArgs {
    /// What the flags and the environment say; the files that the environment leads to are read when they are needed.
    ///
    /// # Errors
    /// [`RequestError::Value`] where a variable means nothing.
    pub fn hosts(&self, environment: &Environment) -> Result<Hosts, RequestError> {
        self.hosts_and_insecure(environment, Vec::new())
    }

    /// The same, with more registries that are insecure.
    ///
    /// # Errors
    /// As those of [`RegistryArgs::hosts`].
    pub fn hosts_and_insecure(
        &self,
        environment: &Environment,
        more: Vec<String>,
    ) -> Result<Hosts, RequestError> {
        let insecure = given(&self.insecure, environment, "LAYERWRIGHT_INSECURE_REGISTRY")?;
        let skip_verify = given(&self.skip_verify, environment, "LAYERWRIGHT_SKIP_TLS_VERIFY_REGISTRY")?;
        let mirrors = given(&self.mirrors, environment, "LAYERWRIGHT_REGISTRY_MIRROR")?;
        let certificates = given(&self.certificates, environment, "LAYERWRIGHT_REGISTRY_CERTIFICATE")?;
        let clients = given(&self.client_certificates, environment, "LAYERWRIGHT_REGISTRY_CLIENT_CERT")?;
        let realms = given(&self.trusted_realms, environment, "LAYERWRIGHT_TRUSTED_REALM")?;
        let options = HostOptions {
            insecure: insecure.into_iter().map(|host| host.0).chain(more).collect(),
            skip_verify: skip_verify.into_iter().map(|host| host.0).collect(),
            mirrors: mirrors.into_iter().map(|spec| (spec.prefix, spec.location)).collect(),
            ca_files: certificates.into_iter().map(|spec| (spec.registry, spec.file)).collect(),
            client_certificates: clients.into_iter().map(|spec| (spec.registry, spec.identity)).collect(),
            auth_files: self.auth_file.iter().cloned().collect(),
            trusted_realms: realms.into_iter().map(|host| host.0).collect(),
        };
        Ok(Hosts::new(options, &|name| environment.get(name).map(OsStr::to_os_string)))
    }
}

/// The values of a flag, else those of its variable.
fn given<T>(flags: &[T], environment: &Environment, name: &'static str) -> Result<Vec<T>, RequestError>
where
    T: Clone + FromStr<Err: Display>,
{
    if !flags.is_empty() {
        return Ok(flags.to_vec());
    }
    let parse = |value: &str| {
        value.parse().map_err(|error: T::Err| RequestError::Value {
            name,
            value: value.to_owned(),
            expected: error.to_string(),
        })
    };
    environment.text(name).unwrap_or_default().split_whitespace().map(parse).collect()
}
