//! What of a picked directory is copied: `--exclude`, and the part of a `--parents` source after its pivot.
//!
//! Patterns are those of `.dockerignore` and see paths relative to the picked directory. What was picked itself is
//! never asked about, so `--exclude` does not take out a file that a source names: that is what BuildKit does.
//! Names that are not UTF-8 are matched with their bad bytes replaced.

use solver::pattern::{
    glob,
    ignore::{IgnoreError, Matcher},
};

/// A source as written, taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pattern<'a> {
    /// What is looked up.
    pub base: &'a str,
    /// With `--parents`: what of that is picked.
    pub rest: Option<&'a str>,
}

impl<'a> Pattern<'a> {
    /// Splits a source of a `--parents` selector at its pivot.
    pub fn with_parents(include: &'a str) -> Self {
        match include.split_once("/./") {
            Some((base, rest)) => Self { base, rest: Some(rest) },
            None => Self { base: "", rest: Some(include) },
        }
    }

    /// A source of any other selector.
    pub fn plain(include: &'a str) -> Self {
        Self { base: include, rest: None }
    }
}

/// Whether something is copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// It is.
    Yes,
    /// A directory, and only if something below it is.
    AsParent,
    /// Neither it nor anything below.
    No,
}

/// Says what of a picked directory is copied.
#[derive(Debug, Default)]
pub struct Filter {
    rest: Option<(Matcher, Vec<String>)>,
    exclude: Option<Matcher>,
}

impl Filter {
    /// A filter for one source and the selector's exclusions.
    ///
    /// # Errors
    /// A pattern is malformed.
    pub fn new(rest: Option<&str>, exclude: &[String]) -> Result<Self, IgnoreError> {
        let components = |rest: &str| rest.split('/').map(str::to_owned).collect::<Vec<_>>();
        let rest = rest.filter(|rest| !matches!(*rest, "" | "."));
        let compile =
            |rest: &str| Matcher::new(&[rest.to_owned()]).map(|matcher| (matcher, components(rest)));
        let rest = rest.map(compile).transpose()?;
        let exclude = (!exclude.is_empty()).then(|| Matcher::new(exclude)).transpose()?;
        Ok(Self { rest, exclude })
    }

    /// Decides about a path relative to the picked directory.
    pub fn directory(&self, path: &[u8]) -> Admission {
        let path = String::from_utf8_lossy(path);
        let excluded = self.exclude.as_ref().is_some_and(|exclude| exclude.matches(&path));
        let included = self.rest.as_ref().is_none_or(|(rest, _)| rest.matches(&path));
        let reachable = included || self.rest.as_ref().is_none_or(|(_, pattern)| may_reach(pattern, &path));
        match (included, excluded) {
            (true, false) => Admission::Yes,
            (_, true) if self.exclude.as_ref().is_some_and(|exclude| exclude.can_prune(&path)) => {
                Admission::No
            }
            _ if reachable => Admission::AsParent,
            _ => Admission::No,
        }
    }

    /// Decides about anything that is not a directory.
    pub fn file(&self, path: &[u8]) -> Admission {
        let path = String::from_utf8_lossy(path);
        let excluded = self.exclude.as_ref().is_some_and(|exclude| exclude.matches(&path));
        let included = self.rest.as_ref().is_none_or(|(rest, _)| rest.matches(&path));
        if included && !excluded { Admission::Yes } else { Admission::No }
    }
}

/// Whether something below a directory could match a pattern.
fn may_reach(pattern: &[String], dir: &str) -> bool {
    let mut pattern = pattern.iter();
    for name in dir.split('/') {
        match pattern.next() {
            None => return false,
            Some(component) if component.contains("**") => return true,
            // A malformed component was refused when the matcher was made.
            Some(component) if glob::matches(component, name).unwrap_or(false) => {}
            Some(_) => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_have_one_pivot() {
        assert_eq!(Pattern::with_parents("a/./b/./c"), Pattern { base: "a", rest: Some("b/./c") });
        assert_eq!(Pattern::with_parents("a/b"), Pattern { base: "", rest: Some("a/b") });
        assert_eq!(Pattern::plain("a/./b"), Pattern { base: "a/./b", rest: None });
    }

    #[test]
    fn what_is_copied_of_a_directory() {
        use Admission::{AsParent, No, Yes};
        type Row = (Option<&'static str>, &'static [&'static str], &'static str, Admission, Admission);
        let rows: [Row; 14] = [
            (None, &[], "a/b", Yes, Yes),
            (Some(""), &[], "a/b", Yes, Yes),
            (Some("x/*.txt"), &[], "x", No, AsParent),
            (Some("x/*.txt"), &[], "y", No, No),
            (Some("x/*.txt"), &[], "x/a.txt", Yes, Yes),
            (Some("x/*.txt"), &[], "x/sub", No, No),
            (Some("x/*"), &[], "x/sub/deep", Yes, Yes),
            (Some("**/f"), &[], "any/where", No, AsParent),
            (Some("x/**"), &[], "x/a/b", Yes, Yes),
            (None, &["*.o"], "a.o", No, No),
            (None, &["*.o"], "sub/a.o", Yes, Yes),
            (None, &["sub", "!sub/keep"], "sub", No, AsParent),
            (None, &["sub", "!sub/keep"], "sub/keep", Yes, Yes),
            (Some("x/*"), &["x/*.o"], "x/a.o", No, No),
        ];
        for (rest, exclude, path, file, directory) in rows {
            let exclude: Vec<_> = exclude.iter().map(|pattern| (*pattern).to_owned()).collect();
            let filter = Filter::new(rest, &exclude).expect("good patterns");
            let decided = (filter.file(path.as_bytes()), filter.directory(path.as_bytes()));
            assert_eq!(decided, (file, directory), "{rest:?} {exclude:?} {path}");
        }
    }
}
