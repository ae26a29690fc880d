//! What artifacts of a cache are called: tags of a registry, and file names of a directory.
//!
//! ```text
//! lw1-d-HEX   the record under a definition key
//! lw1-c-HEX   the record under a content key
//! lw1-b-HEX   the bundle of a Dockerfile, a target and its platforms, where nobody has given it a name
//! lw1-r-HEX   who runs the step with a content key just now
//! ```
//!
//! HEX is 64 lower-case digits. `lw1` is the version of the format: builders of another one look elsewhere. Nothing in a
//! name comes from outside but through a hash, and [`parse`] takes nothing else for a name of ours.

use std::collections::BTreeSet;

use oci::{Platform, TreeDigest, canonical::Encoder};
use solver::Key;

const DEFINITION: &str = "lw1-d-";
const CONTENT: &str = "lw1-c-";
const BUNDLE: &str = "lw1-b-";
const RUNNING: &str = "lw1-r-";

/// What a name of ours stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Name {
    /// A record.
    Record(Key),
    /// A bundle that nobody has given a name.
    Bundle(TreeDigest),
    /// Who runs the step with a content key.
    Running(TreeDigest),
}

/// The name of the record under a definition key.
pub fn definition(key: &TreeDigest) -> String {
    format!("{DEFINITION}{}", key.hex())
}

/// The name of the record under a content key.
pub fn content(key: &TreeDigest) -> String {
    format!("{CONTENT}{}", key.hex())
}

/// The name under which it says who runs the step with a content key.
pub fn running(key: &TreeDigest) -> String {
    format!("{RUNNING}{}", key.hex())
}

/// The name of the record under a key.
pub fn of(key: &Key) -> String {
    match key {
        Key::Definition(key) => definition(key),
        Key::Content(key) => content(key),
    }
}

/// The name of the bundle of all builds of a Dockerfile's text for a target (`None`: the last stage) and some platforms, in
/// whatever order they are asked for.
pub fn bundle(dockerfile: &str, target: Option<&str>, platforms: &[Platform]) -> String {
    let platforms: BTreeSet<String> = platforms.iter().map(ToString::to_string).collect();
    let mut encoder = Encoder::new("cache bundle");
    encoder.field(1, dockerfile).field(2, &target.map(str::to_owned)).field(3, &platforms);
    format!("{BUNDLE}{}", encoder.digest().hex())
}

/// What a name stands for; `None` for one that is not ours.
pub fn parse(name: &str) -> Option<Name> {
    let (kind, hex) = name.split_at_checked(DEFINITION.len())?;
    let digest = format!("blake3:{hex}").parse().ok()?;
    match kind {
        DEFINITION => Some(Name::Record(Key::Definition(digest))),
        CONTENT => Some(Name::Record(Key::Content(digest))),
        BUNDLE => Some(Name::Bundle(digest)),
        RUNNING => Some(Name::Running(digest)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(text: &str) -> TreeDigest {
        blake3::hash(text.as_bytes()).into()
    }

    #[test]
    fn names_are_tags_and_are_read_back() {
        for key in [Key::Definition(digest("a")), Key::Content(digest("a"))] {
            let name = of(&key);
            assert_eq!(parse(&name), Some(Name::Record(key)));
            assert!(format!("registry.example/cache:{name}").parse::<oci::Reference>().is_ok(), "{name}");
        }
        assert_eq!(parse(&running(&digest("a"))), Some(Name::Running(digest("a"))));
        assert!(matches!(parse(&bundle("FROM scratch", None, &[])), Some(Name::Bundle(_))));
    }

    #[test]
    fn nothing_else_is_a_name() {
        let hex = digest("a").hex();
        let others = [
            String::new(),
            "main".to_owned(),
            "lw1-d-".to_owned(),
            format!("lw2-d-{hex}"),
            format!("lw1-x-{hex}"),
            format!("lw1-d-{}", hex.to_uppercase()),
            format!("lw1-d-{hex}0"),
            format!("lw1-d-{}/", &hex[1..]),
            format!("lw1-dä{hex}"),
        ];
        for name in others {
            assert_eq!(parse(&name), None, "{name}");
        }
    }

    #[test]
    fn a_bundle_is_of_text_target_and_platforms() {
        let platforms = |texts: &[&str]| -> Vec<Platform> {
            texts.iter().map(|text| text.parse().expect("a platform")).collect()
        };
        let two = platforms(&["linux/amd64", "linux/arm64"]);
        let names = [
            bundle("FROM scratch", None, &[]),
            bundle("FROM scratch ", None, &[]),
            bundle("FROM scratch", Some("a"), &[]),
            bundle("FROM scratch", Some(""), &[]),
            bundle("FROM scratch", None, &two),
            bundle("FROM scratch", None, &two[..1]),
        ];
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
        let turned = platforms(&["linux/arm64", "linux/amd64"]);
        assert_eq!(names[4], bundle("FROM scratch", None, &turned));
    }
}
