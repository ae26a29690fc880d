//! Which paths a source names: links followed inside the root, wildcards as in Go's `filepath.Match`.
//!
//! The same rules run twice: over a directory, to find out what must be listed, and over the [`Listing`](super::Listing),
//! to find out what is copied. [`Names`] is what the two have in common. [`follow`] is the only place where links are
//! followed, those of a destination as well.

use solver::pattern::glob::{self, BadPattern};

use crate::rootfs::{join, shown, split};

/// As many links as the kernel follows in one path.
const LINKS_MAX: usize = 40;

/// What is at a path, as far as looking up needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// A directory.
    Directory,
    /// A symbolic link with this target.
    Link(Vec<u8>),
    /// Anything else.
    Other,
}

/// A tree in which paths lead somewhere. Paths are relative to its root, hold no links and are empty for the root.
pub trait Paths {
    /// Why it cannot be looked at.
    type Error: From<TooManyLinks>;

    /// What is at a path.
    fn find(&self, path: &[u8]) -> Result<Option<Found>, Self::Error>;

    /// A path as people know it.
    fn told(&self, path: &[u8]) -> String {
        shown(path)
    }
}

/// A tree whose names can be listed.
pub trait Names: Paths<Error: From<BadPattern>> {
    /// The names in a directory, sorted; none for anything else. May hold names that [`Paths::find`] does not admit to.
    fn children(&self, dir: &[u8]) -> Result<Vec<Vec<u8>>, Self::Error>;
}

/// A path that leads through more links than the kernel would follow, most likely a loop.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("too many levels of symbolic links in {0}")]
pub struct TooManyLinks(pub String);

/// Whether a link in the last component of a path is followed, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LastLink {
    /// It is.
    Follow,
    /// It is what the path names.
    Keep,
}

/// One path that a source names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pick {
    /// The path as it was named or matched; its last name is what the copy is called.
    pub named: Vec<u8>,
    /// Where that is once links are followed.
    pub at: Vec<u8>,
}

/// What a source names: one path, or none, or all that match its wildcards, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Picked {
    /// A plain path.
    Path(Pick),
    /// This path is not there: the source itself, the part before its wildcards, or what a matched link points to.
    Missing(Vec<u8>),
    /// A pattern.
    Matches(Vec<Pick>),
}

/// Looks a source up. Links that were followed are added to `links`.
pub fn pick<N: Names>(
    names: &N,
    source: &str,
    last: LastLink,
    links: &mut Vec<Vec<u8>>,
) -> Result<Picked, N::Error> {
    let (literal, pattern) = split_wildcards(source);
    let Some(base) = resolve(names, literal.as_bytes(), last, links)? else {
        return Ok(Picked::Missing(literal.into()));
    };
    if pattern.is_empty() {
        return Ok(Picked::Path(Pick { named: literal.into(), at: base }));
    }
    let mut picks = Vec::new();
    for named in matches(names, base, &pattern)? {
        match resolve(names, &named, last, links)? {
            Some(at) => picks.push(Pick { named, at }),
            None => return Ok(Picked::Missing(named)),
        }
    }
    Ok(Picked::Matches(picks))
}

/// Where a path leads once the links in it are followed, all inside the root; `None` where nothing is.
pub fn resolve<P: Paths>(
    paths: &P,
    path: &[u8],
    last: LastLink,
    links: &mut Vec<Vec<u8>>,
) -> Result<Option<Vec<u8>>, P::Error> {
    follow(paths, path, last, Absent::IsNowhere, links)
}

/// What a component that names nothing does to its path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Absent {
    /// The path leads nowhere.
    IsNowhere,
    /// It is taken as it is written, and so is what comes after it: that is still to be made.
    IsKept,
}

/// Where a path leads once the links in it are followed, all inside the root. Links that were followed are added to
/// `links`. `None` only with [`Absent::IsNowhere`].
pub fn follow<P: Paths>(
    paths: &P,
    path: &[u8],
    last: LastLink,
    absent: Absent,
    links: &mut Vec<Vec<u8>>,
) -> Result<Option<Vec<u8>>, P::Error> {
    let reversed = |path: &[u8]| -> Vec<Vec<u8>> { path.rsplit(|b| *b == b'/').map(Vec::from).collect() };
    let mut rest = reversed(path);
    let mut at = Vec::new();
    let mut followed = 0;
    while let Some(name) = rest.pop() {
        match name.as_slice() {
            b"" | b"." => continue,
            b".." => {
                at.truncate(split(&at).0.len());
                continue;
            }
            _ => {}
        }
        let next = join(&at, &name);
        match paths.find(&next)? {
            Some(Found::Link(target)) if last == LastLink::Follow || !rest.is_empty() => {
                followed += 1;
                if followed > LINKS_MAX {
                    return Err(TooManyLinks(paths.told(path)).into());
                }
                links.push(next);
                if target.starts_with(b"/") {
                    at.clear();
                }
                rest.extend(reversed(&target));
            }
            None if absent == Absent::IsNowhere => return Ok(None),
            Some(Found::Other) if absent == Absent::IsNowhere && !rest.is_empty() => return Ok(None),
            _ => at = next,
        }
    }
    Ok(Some(at))
}

/// All paths below `base` that match, component by component. Only real directories are entered.
fn matches<N: Names>(names: &N, base: Vec<u8>, pattern: &[&str]) -> Result<Vec<Vec<u8>>, N::Error> {
    let mut found = vec![base];
    for (depth, component) in pattern.iter().enumerate() {
        let mut next = Vec::new();
        for dir in &found {
            if depth > 0 && names.find(dir)? != Some(Found::Directory) {
                continue;
            }
            for name in names.children(dir)? {
                let path = join(dir, &name);
                let matches = glob::matches(component, &String::from_utf8_lossy(&name))?;
                if matches && names.find(&path)?.is_some() {
                    next.push(path);
                }
            }
        }
        found = next;
    }
    Ok(found)
}

/// Whether a path component holds a wildcard of `filepath.Match`; a backslash escapes the character after it.
pub fn has_wildcard(component: &str) -> bool {
    let mut bytes = component.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => drop(bytes.next()),
            b'*' | b'?' | b'[' => return true,
            _ => {}
        }
    }
    false
}

/// Splits a source into the path before the first component with a wildcard, and the components from there on.
fn split_wildcards(source: &str) -> (&str, Vec<&str>) {
    let mut start = 0;
    for component in source.split('/') {
        if has_wildcard(component) {
            return (source[..start].trim_end_matches('/'), source[start..].split('/').collect());
        }
        start += component.len() + 1;
    }
    (source, Vec::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Paths; `a -> b` is a link, `a/` a directory.
    struct Drawn(Vec<&'static str>);

    #[derive(Debug, thiserror::Error)]
    enum Trouble {
        #[error(transparent)]
        Pattern(#[from] BadPattern),
        #[error(transparent)]
        Links(#[from] TooManyLinks),
    }

    impl Paths for Drawn {
        type Error = Trouble;

        fn find(&self, path: &[u8]) -> Result<Option<Found>, Trouble> {
            let path = std::str::from_utf8(path).expect("drawn in ASCII");
            let found = self.0.iter().find_map(|line| match line.split_once(" -> ") {
                Some((link, target)) => (link == path).then(|| Found::Link(target.into())),
                None if line.strip_suffix('/') == Some(path) => Some(Found::Directory),
                None => (*line == path).then_some(Found::Other),
            });
            Ok(found.or_else(|| path.is_empty().then_some(Found::Directory)))
        }
    }

    impl Names for Drawn {
        fn children(&self, dir: &[u8]) -> Result<Vec<Vec<u8>>, Trouble> {
            let paths =
                self.0.iter().map(|line| line.split(" -> ").next().unwrap_or(line).trim_end_matches('/'));
            let inside = paths.filter(|path| split(path.as_bytes()).0 == dir);
            let mut children: Vec<_> = inside.map(|path| split(path.as_bytes()).1.to_vec()).collect();
            children.sort();
            Ok(children)
        }
    }

    fn drawn() -> Drawn {
        Drawn(vec![
            "a.txt",
            "b.txt",
            "dir/",
            "dir/f",
            "dir/g",
            "dir/sub/",
            "dir/sub/f",
            "l -> dir",
            "out -> /dir/../dir/f",
            "up -> ../../dir",
            "loop -> loop",
            "broken -> none",
            "chain -> l/sub",
            "other/",
            "other/f",
            "s[1]",
        ])
    }

    fn check(source: &str, last: LastLink) -> String {
        let mut links = Vec::new();
        let picked = match pick(&drawn(), source, last, &mut links) {
            Err(error) => return error.to_string(),
            Ok(Picked::Missing(path)) => return format!("no {}", String::from_utf8_lossy(&path)),
            Ok(Picked::Path(pick)) => vec![pick],
            Ok(Picked::Matches(picks)) => picks,
        };
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let shown = picked.iter().map(|Pick { named, at }| match named == at {
            true => text(named),
            false => format!("{}={}", text(named), text(at)),
        });
        let mut shown: Vec<_> = shown.collect();
        shown.extend(links.iter().map(|link| format!("via {}", text(link))));
        shown.join(", ")
    }

    #[test]
    fn sources() {
        let rows = [
            ("a.txt", "a.txt"),
            ("", ""),
            (".", ".="),
            ("dir", "dir"),
            ("dir/none", "no dir/none"),
            ("a.txt/x", "no a.txt/x"),
            ("*.txt", "a.txt, b.txt"),
            ("?.txt", "a.txt, b.txt"),
            ("*.none", ""),
            ("none/*.txt", "no none"),
            ("a.txt/*", ""),
            ("dir/*", "dir/f, dir/g, dir/sub"),
            ("*/f", "dir/f, other/f"),
            ("*/*/f", "dir/sub/f"),
            ("**/f", "dir/f, other/f"),
            ("s[[]1]", "s[1]"),
            ("[", "syntax error in pattern \"[\""),
            ("l", "l=dir, via l"),
            ("l/f", "l/f=dir/f, via l"),
            ("l/*", "dir/f, dir/g, dir/sub, via l"),
            ("out", "out=dir/f, via out"),
            ("up", "up=dir, via up"),
            ("chain/f", "chain/f=dir/sub/f, via chain, via l"),
            ("chai?", "chain=dir/sub, via chain, via l"),
            ("broken", "no broken"),
            ("brok*", "no broken"),
            ("loop", "too many levels of symbolic links in loop"),
        ];
        for (source, expected) in rows {
            assert_eq!(check(source, LastLink::Follow), expected, "{source:?}");
        }
        assert_eq!(check("l", LastLink::Keep), "l");
        assert_eq!(check("l/f", LastLink::Keep), "l/f=dir/f, via l");
        assert_eq!(check("[lu]*", LastLink::Keep), "l, loop, up");
    }
}
