//! Paths of the image, which are slash-separated text until the executor looks at them.

/// The shortest path that is the same by text alone: Go's `path.Clean`, for a path below `/`. `..` stops there.
pub(super) fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

/// A path below a directory; an absolute one replaces it.
pub(super) fn join(directory: &str, path: &str) -> String {
    if path.starts_with('/') { clean(path) } else { clean(&format!("{directory}/{path}")) }
}

/// The same without the leading slash, as selectors have it: empty for the root.
pub(super) fn relative(path: &str) -> String {
    clean(path)[1..].to_owned()
}

/// Whether a destination is written as a directory: `dir/`, `dir/.`, `.`, or nothing at all.
pub(super) fn is_directory(path: &str) -> bool {
    matches!(path, "" | "." | "..") || path.ends_with('/') || path.ends_with("/.") || path.ends_with("/..")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cleaned_and_never_leave_the_root() {
        for (directory, path, want) in [
            ("/", "a", "/a"),
            ("/w", "../../x", "/x"),
            ("/w", "/a//b/./c/..", "/a/b"),
            ("", "", "/"),
            ("/w", ".", "/w"),
            ("/w/", "x/", "/w/x"),
        ] {
            assert_eq!(join(directory, path), want);
        }
        assert_eq!((relative("./a/"), relative("/")), ("a".to_owned(), String::new()));
    }
}
