//! A pre-image as it leaves this machine: which ARG and ENV there are and whether one has changed can still be told of it, and
//! what they hold cannot.
//!
//! Values of variables become marks that differ where the values do, and labels stand as the Dockerfile writes them, with
//! variables not replaced. What an instruction made of a variable (a path, a user, the text of a heredoc) stays: it is in the
//! layer or in the image's config, too. A mark hides a value as well as a key does: who guesses it can see that he is right.

use std::{borrow::Cow, collections::BTreeMap};

use oci::ContentDigest;

use super::pre_image::{ARGUMENT, EXPANDED, VARIABLE, WRITTEN};

type Fields = BTreeMap<String, String>;

/// What a mark begins with.
const MARK: &str = "hidden:";
/// Its digits: no more than tells two values of a variable apart.
const DIGITS: usize = 16;

/// A pre-image for others to read. Of one that is hidden already it is the same.
pub fn hide(fields: &Fields) -> Fields {
    let mut hidden = Fields::new();
    for (name, value) in fields {
        // Sorted behind the label that it replaces.
        let _ = match name.strip_prefix(WRITTEN) {
            Some(label) => hidden.insert(format!("~{label}"), value.clone()),
            None => hidden.insert(name.clone(), told(name, value)),
        };
    }
    hidden
}

/// Whether a value is only known by its mark.
pub fn is_hidden(value: &str) -> bool {
    value.strip_prefix(MARK).is_some_and(|digits| {
        digits.len() == DIGITS && digits.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
    })
}

/// A pre-image that may be hidden, for comparing it with one that is not (`new`; `hidden` is that, hidden): what is the same as
/// far as it is told has the value that is known.
pub fn seen_beside<'a>(old: &'a Fields, new: &Fields, hidden: &Fields) -> Cow<'a, Fields> {
    let mut seen = Cow::Borrowed(old);
    for (name, value) in old {
        let Some(known) = new.get(name) else { continue };
        if known != value && hidden.get(name) == Some(value) {
            seen.to_mut().insert(name.clone(), known.clone());
        }
    }
    seen
}

fn told(name: &str, value: &str) -> String {
    let variable = [VARIABLE, ARGUMENT, EXPANDED].iter().find_map(|prefix| name.strip_prefix(prefix));
    match variable {
        Some(variable) if !is_hidden(value) => mark(variable, value),
        _ => value.to_owned(),
    }
}

fn mark(variable: &str, value: &str) -> String {
    let digest = ContentDigest::of(format!("layerwright variable\0{variable}={value}").as_bytes());
    format!("{MARK}{}", &digest.hex()[..DIGITS])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(fields: &[(&str, &str)]) -> Fields {
        fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn of(token: &str) -> Fields {
        let label = format!("[2/3] RUN curl -u {token}");
        fields(&[
            ("args", r#"["/bin/sh","-c","curl -u $TOKEN"]"#),
            ("env PATH", "/bin"),
            ("env TOKEN", token),
            ("user", "root"),
            ("~arg TOKEN", token),
            ("~env PATH", "/bin"),
            ("~input 0", &format!("[1/3] RUN login {token}")),
            ("~instruction", "RUN curl -u $TOKEN"),
            ("~label", &label),
            ("~written input 0", "[1/3] RUN login $TOKEN"),
            ("~written label", "[2/3] RUN curl -u $TOKEN"),
        ])
    }

    #[test]
    fn no_value_of_a_variable_is_in_what_others_read() {
        let hidden = hide(&of("s3cret"));
        let text = format!("{hidden:?}");
        assert!(!text.contains("s3cret") && !text.contains("/bin\""), "{text}");
        assert_eq!(hidden["~label"], "[2/3] RUN curl -u $TOKEN");
        assert_eq!(hidden["~input 0"], "[1/3] RUN login $TOKEN");
        assert_eq!(hidden["user"], "root");
        assert!(is_hidden(&hidden["env TOKEN"]) && hidden["env TOKEN"] == hidden["~arg TOKEN"]);
        assert_eq!(hide(&hidden), hidden, "once and for all");
        // docs/remote-cache.md says how it is made.
        assert_eq!(mark("TOKEN", "s3cret"), "hidden:434e71e61531e8ce");
    }

    #[test]
    fn marks_differ_where_values_or_names_do() {
        let marks = [("A", "1"), ("A", "2"), ("B", "1"), ("A", ""), ("A", "=1")].map(|(a, b)| mark(a, b));
        for (number, one) in marks.iter().enumerate() {
            assert!(is_hidden(one) && !marks[..number].contains(one), "{marks:?}");
        }
        for other in ["", "hidden:", "hidden:0123456789ABCDEF", "hidden:0123456789abcdef0", "s3cret"] {
            assert!(!is_hidden(other), "{other}");
        }
    }

    #[test]
    fn what_is_the_same_can_be_seen_and_what_is_not_stays_hidden() {
        let (new, other) = (of("s3cret"), of("changed"));
        let same = hide(&new);
        let seen = seen_beside(&same, &new, &hide(&new));
        assert!(seen.iter().all(|(name, value)| new.get(name) == Some(value)), "{seen:?}");
        let old = hide(&other);
        let seen = seen_beside(&old, &new, &hide(&new));
        let differing: Vec<_> = seen.iter().filter(|(name, value)| new.get(*name) != Some(*value)).collect();
        assert_eq!(
            differing.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(),
            ["env TOKEN", "~arg TOKEN"]
        );
        assert!(matches!(seen_beside(&new, &new, &hide(&new)), Cow::Borrowed(_)));
    }
}
