//! The proxies that Docker's configuration gives every build (`proxies.default` of `config.json`), as build arguments.
//!
//! A build argument of either spelling stands before them. They reach RUN and nothing else: no key, no image, no log.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use serde::Deserialize;

use super::Environment;

/// The longest configuration that is read.
const MAX_FILE: u64 = 4 << 20;

#[derive(Default, Deserialize)]
struct DockerConfig {
    /// By the address of a daemon, or `default`; we have none.
    #[serde(default)]
    proxies: BTreeMap<String, Proxies>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Proxies {
    http_proxy: String,
    https_proxy: String,
    no_proxy: String,
    ftp_proxy: String,
    all_proxy: String,
}

/// Adds what is configured; gives what a person should know where that cannot be read.
pub(super) fn add_configured(
    build_args: &mut BTreeMap<String, String>,
    environment: &Environment,
) -> Option<String> {
    let path = config_file(environment)?;
    let proxies = match read(&path) {
        Ok(config) => config.proxies.into_iter().find(|(daemon, _)| daemon == "default")?.1,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => return Some(format!("no proxies are taken from {}: {error}", path.display())),
    };
    let Proxies { http_proxy, https_proxy, no_proxy, ftp_proxy, all_proxy } = proxies;
    for (name, value) in [
        ("HTTP_PROXY", http_proxy),
        ("HTTPS_PROXY", https_proxy),
        ("NO_PROXY", no_proxy),
        ("FTP_PROXY", ftp_proxy),
        ("ALL_PROXY", all_proxy),
    ] {
        let is_given = build_args.keys().any(|given| given.eq_ignore_ascii_case(name));
        if !value.is_empty() && !is_given {
            build_args.insert(name.to_owned(), value);
        }
    }
    None
}

fn config_file(environment: &Environment) -> Option<PathBuf> {
    let directory = environment.path("DOCKER_CONFIG");
    let directory = directory.or_else(|| Some(environment.path("HOME")?.join(".docker")))?;
    Some(directory.join("config.json"))
}

fn read(path: &Path) -> io::Result<DockerConfig> {
    let mut text = Vec::new();
    File::open(path)?.take(MAX_FILE + 1).read_to_end(&mut text)?;
    // Where it is wrong, and nothing of what stands there, which may be a password.
    serde_json::from_slice(&text).map_err(|error| {
        let what = format!("it is not what Docker writes, see line {}", error.line());
        io::Error::new(io::ErrorKind::InvalidData, what)
    })
}
