//! `--allow`: what the Dockerfile may do only because the command line says so.

use std::str::FromStr;

use solver::plan::Entitlement;

use super::csv;

/// One `--allow`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllowSpec(pub Entitlement);

/// Why something is no entitlement.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AllowSpecError {
    /// Nothing that could be allowed.
    #[error("unknown entitlement {0}: expected network.host, security.insecure or device[=NAME]")]
    Unknown(String),
    /// What stands after `device=`.
    #[error("{0:?} is not supported here: expected device or device=NAME")]
    Device(String),
}

impl FromStr for AllowSpec {
    type Err = AllowSpecError;

    fn from_str(text: &str) -> Result<Self, AllowSpecError> {
        Ok(Self(match text.split_once('=') {
            None if text == "network.host" => Entitlement::NetworkHost,
            None if text == "security.insecure" => Entitlement::SecurityInsecure,
            None | Some(("device", "")) if text.trim_end_matches('=') == "device" => {
                Entitlement::Device(None)
            }
            Some(("device", name)) => Entitlement::Device(Some(device(name)?)),
            _ => return Err(AllowSpecError::Unknown(text.to_owned())),
        }))
    }
}

/// The name of one device; an alias for it (`NAME,alias=OTHER`) does not exist here.
fn device(text: &str) -> Result<String, AllowSpecError> {
    match csv::fields(text).as_deref() {
        Ok([name]) if !name.is_empty() => Ok(name.clone()),
        _ => Err(AllowSpecError::Device(format!("device={text}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entitlements_are_told_apart() {
        for (text, want) in [
            ("network.host", Some(Entitlement::NetworkHost)),
            ("security.insecure", Some(Entitlement::SecurityInsecure)),
            ("device", Some(Entitlement::Device(None))),
            ("device=", Some(Entitlement::Device(None))),
            ("device=vendor.com/gpu=all", Some(Entitlement::Device(Some("vendor.com/gpu=all".to_owned())))),
            ("device=gpu,alias=x", None),
            ("network.host=1", None),
            ("network", None),
            ("", None),
        ] {
            assert_eq!(text.parse().ok(), want.map(AllowSpec), "{text}");
        }
    }
}
