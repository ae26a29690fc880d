//! `layerwright login` and `layerwright logout`, in the words of `docker login`, and of `podman logout` for `--all`.

use std::path::PathBuf;

use clap::Args;
use oci::registry::{LoginName, Secret};

use super::registry::RegistryArgs;

/// `layerwright login`
#[derive(Debug, Args)]
#[command(after_help = LOGIN)]
pub struct LoginArgs {
    /// HOST[:PORT], or HOST[:PORT]/PATH for the repositories below it [default: docker.io]
    #[arg(value_name = "REGISTRY", value_parser = name)]
    pub registry: Option<LoginName>,

    /// User name [default: the one that is kept, else asked for]
    #[arg(short, long, value_name = "USER")]
    pub username: Option<String>,

    /// Password or token, for everybody to see: better --password-stdin
    #[arg(short, long, value_name = "PASSWORD", value_parser = secret, conflicts_with = "password_stdin")]
    pub password: Option<Secret>,

    /// Take the password or token from standard input
    #[arg(long, requires = "username")]
    pub password_stdin: bool,

    /// How the registry is reached.
    #[command(flatten)]
    pub registries: RegistryArgs,
}

/// `layerwright logout`
#[derive(Debug, Args)]
#[command(after_help = LOGOUT)]
pub struct LogoutArgs {
    /// As it was logged in to [default: docker.io]
    #[arg(value_name = "REGISTRY", value_parser = name)]
    pub registry: Option<LoginName>,

    /// Forget every login that the file and its credential helpers keep
    #[arg(short, long, conflicts_with = "registry")]
    pub all: bool,

    /// The file that keeps them [default: see below]
    #[arg(long = "authfile", value_name = "FILE")]
    pub auth_file: Option<PathBuf>,
}

const LOGIN: &str = "\
A login is tried, and kept if the registry takes it: in --authfile, else in
$REGISTRY_AUTH_FILE, else in config.json of $DOCKER_CONFIG or ~/.docker, where
docker finds it too; in the credential helper that this file names
(credHelpers, credsStore), else in the file itself, which is unencrypted.
Without a user name a login that is kept is tried first.

Exit codes: 0 logged in, 2 usage, 3 the registry refuses it or does not answer,
4 it cannot be kept. Whatever fails, nothing has changed.";

const LOGOUT: &str = "\
The file is the one that login writes: --authfile, else $REGISTRY_AUTH_FILE,
else config.json of $DOCKER_CONFIG or ~/.docker.";

fn name(text: &str) -> Result<LoginName, String> {
    text.parse().map_err(|error: oci::reference::ReferenceError| error.to_string())
}

/// From here on nobody can print it.
fn secret(text: &str) -> Result<Secret, std::convert::Infallible> {
    Ok(Secret::new(text.to_owned()))
}
