//! Which variables there are: the global scope of FROM, the environment of a stage, and the settings that reach the
//! commands but neither key nor image.

use std::collections::BTreeMap;

use oci::Platform;

use super::PlanOptions;

/// Variables in the order of their first definition.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Environment {
    pairs: Vec<(String, String)>,
    /// Where each name stands among the pairs.
    places: BTreeMap<String, usize>,
}

impl Environment {
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.places.get(name).map(|place| self.pairs[*place].1.as_str())
    }

    pub(super) fn set(&mut self, name: &str, value: &str) {
        match self.places.get(name) {
            Some(place) => value.clone_into(&mut self.pairs[*place].1),
            None => {
                self.places.insert(name.to_owned(), self.pairs.len());
                self.pairs.push((name.to_owned(), value.to_owned()));
            }
        }
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.pairs.iter().map(|(name, _)| name.as_str())
    }

    pub(super) fn pairs(&self) -> &[(String, String)] {
        &self.pairs
    }
}

/// `NAME=value` of a config, taken apart.
pub(super) fn split(variable: &str) -> (&str, &str) {
    variable.split_once('=').unwrap_or((variable, ""))
}

/// The PATH of images that have none.
pub(super) const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The variables that FROM can use without any ARG, and stages with an ARG that names them.
pub(super) fn predefined(options: &PlanOptions, target: &Platform, target_stage: &str) -> Environment {
    let build = &options.build_platform;
    let version = |platform: &Platform| platform.os_version.clone().unwrap_or_default();
    let variant = |platform: &Platform| platform.variant.clone().unwrap_or_default();
    let pairs = [
        ("BUILDPLATFORM", build.to_string()),
        ("BUILDOS", build.os.clone()),
        ("BUILDOSVERSION", version(build)),
        ("BUILDARCH", build.architecture.clone()),
        ("BUILDVARIANT", variant(build)),
        ("TARGETPLATFORM", target.to_string()),
        ("TARGETOS", target.os.clone()),
        ("TARGETOSVERSION", version(target)),
        ("TARGETARCH", target.architecture.clone()),
        ("TARGETVARIANT", variant(target)),
        ("TARGETSTAGE", if target_stage.is_empty() { "default".to_owned() } else { target_stage.to_owned() }),
    ];
    let given = |name: &str, value: String| options.build_args.get(name).cloned().unwrap_or(value);
    let mut environment = Environment::default();
    pairs.into_iter().for_each(|(name, value)| environment.set(name, &given(name, value)));
    environment
}

/// Whether a variable tells a step for which platform the image is made.
pub(super) fn is_of_target(name: &str) -> bool {
    matches!(name, "TARGETPLATFORM" | "TARGETOS" | "TARGETARCH" | "TARGETVARIANT")
}

/// Whether a variable means something to every build, whatever ARG there is.
pub(super) fn is_predefined(name: &str) -> bool {
    let of_platform = ["BUILD", "TARGET"].into_iter().filter_map(|side| name.strip_prefix(side));
    let parts = ["PLATFORM", "OS", "OSVERSION", "ARCH", "VARIANT"];
    of_platform.into_iter().any(|part| parts.contains(&part))
        || matches!(name, "TARGETSTAGE" | "SOURCE_DATE_EPOCH")
        || is_proxy(name)
}

fn is_proxy(name: &str) -> bool {
    PROXIES.iter().any(|proxy| name.eq_ignore_ascii_case(proxy))
}

/// Whether it is a proxy setting that says who asks: `http://user:password@host`, or the same without a scheme.
pub(super) fn is_proxy_with_password(name: &str, value: &str) -> bool {
    let address = value.split_once("://").map_or(value, |(_, address)| address);
    is_proxy(name) && address.split(['/', '?', '#']).next().is_some_and(|authority| authority.contains('@'))
}

/// Whether an argument speaks to the builder alone: commands and other instructions do not see it.
pub(super) fn is_for_the_builder(name: &str) -> bool {
    matches!(name, "BUILDKIT_SBOM_SCAN_CONTEXT" | "BUILDKIT_SBOM_SCAN_STAGE")
}

const PROXIES: [&str; 5] = ["HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY"];

/// The proxy settings among the build arguments, each under both its spellings, as commands look for them.
pub(super) fn proxies(build_args: &BTreeMap<String, String>) -> Vec<(String, String)> {
    let setting = |name: &&str| {
        let (_, value) = build_args.iter().find(|(given, _)| given.eq_ignore_ascii_case(name))?;
        Some([(name.to_string(), value.clone()), (name.to_lowercase(), value.clone())])
    };
    PROXIES.iter().filter_map(setting).flatten().collect()
}
