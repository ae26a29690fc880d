//! The variables of a container: the image's, then those of `--env-file`, then `-e`, as docker joins them. Pure.

use crate::request::RequestError;

/// A variable that somebody sets, or takes away where there is no value.
pub type Change = (String, Option<String>);

/// Gives the value of a variable of our own environment.
pub type Lookup<'a> = &'a dyn Fn(&str) -> Result<Option<String>, RequestError>;

/// What a file says. Blank lines and those that begin with `#` say nothing; a name alone takes our own value, if there is
/// one.
///
/// # Errors
/// A line without a name, or with blanks in it.
pub fn of_file(text: &str, file: &str, lookup: Lookup<'_>) -> Result<Vec<Change>, RequestError> {
    let mut changes = Vec::new();
    for line in text.trim_start_matches('\u{feff}').lines().map(str::trim_start) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, value) = match line.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (line, lookup(line)?),
        };
        if name.is_empty() || name.contains(char::is_whitespace) {
            let expected = "expected NAME=value, and no blanks in the name".to_owned();
            return Err(RequestError::Value {
                name: "--env-file",
                value: format!("{file}: {line}"),
                expected,
            });
        }
        changes.extend(value.map(|value| (name.to_owned(), Some(value))));
    }
    Ok(changes)
}

/// What an `-e` says. A name alone takes our own value; where there is none, the image's goes, too.
///
/// # Errors
/// There is no name, or our value is no text.
pub fn of_flag(text: &str, lookup: Lookup<'_>) -> Result<Change, RequestError> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (text, lookup(text)?),
    };
    match name.is_empty() {
        true => Err(RequestError::NoName { flag: "env", value: text.to_owned() }),
        false => Ok((name.to_owned(), value)),
    }
}

/// Every variable once, at the place of its first mention.
pub fn joined(begin: Vec<(String, String)>, image: &[String], changes: &[Change]) -> Vec<(String, String)> {
    let of_image = image.iter().filter_map(|text| text.split_once('='));
    let of_image = of_image.map(|(name, value)| (name.to_owned(), Some(value.to_owned())));
    let mut joined = begin;
    for (name, value) in of_image.chain(changes.iter().cloned()) {
        match (joined.iter_mut().find(|(known, _)| *known == name), value) {
            (Some(known), Some(value)) => known.1 = value,
            (Some(_), None) => joined.retain(|(known, _)| *known != name),
            (None, Some(value)) => joined.push((name, value)),
            (None, None) => {}
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ours(name: &str) -> Result<Option<String>, RequestError> {
        Ok((name == "OURS").then(|| "1".to_owned()))
    }

    fn shown(variables: &[(String, String)]) -> String {
        variables.iter().map(|(name, value)| format!("{name}={value} ")).collect()
    }

    #[test]
    fn flags_win_over_files_and_files_over_the_image() {
        let file = "\u{feff}# comment\n\n  A=file\r\nQ=\"x y\" #no\nOURS\nNONE\n";
        let mut changes = of_file(file, "f", &ours).expect("it is good");
        for flag in ["B=flag=x", "OURS", "GONE", "NEW="] {
            changes.push(of_flag(flag, &ours).expect("it is good"));
        }
        let image = ["A=image", "B=image", "GONE=image", "KEPT=image"].map(str::to_owned);
        let joined = joined(vec![("PATH".to_owned(), "/bin".to_owned())], &image, &changes);
        assert_eq!(shown(&joined), "PATH=/bin A=file B=flag=x KEPT=image Q=\"x y\" #no OURS=1 NEW= ");
    }

    #[test]
    fn what_has_no_name_is_refused() {
        for text in ["=x", "a b=c", "a =c"] {
            assert!(of_file(text, "f", &ours).is_err(), "{text}");
        }
        assert!(of_flag("=x", &ours).is_err());
    }
}
