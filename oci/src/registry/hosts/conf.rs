//! `registries.conf`, version 2, and its drop-ins, as Podman and Buildah read them (containers-registries.conf(5)).
//!
//! What these files say about short names is not for us: a name without a registry is one of Docker Hub everywhere, or one
//! Dockerfile would mean two things.

use std::{
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use toml_span::{Span, value::Table};

use super::{
    Location,
    document::{Document, HostsError},
    rules::{Mirror, Pattern, PullFrom, Rule},
};
use crate::reference;

/// Where the files are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ConfFiles {
    /// The first that is there is read, and must be there if it is the only one that was named.
    main: Vec<PathBuf>,
    is_named: bool,
    /// Directories of drop-ins, which go before the main file, the later ones before the earlier ones.
    drop_ins: Vec<PathBuf>,
}

impl ConfFiles {
    /// `$CONTAINERS_REGISTRIES_CONF`, else the user's own file, else the system's. A user's own file leaves the system's
    /// drop-ins out.
    pub fn find(named: Option<OsString>, user: Option<&Path>, system: &Path) -> Self {
        let in_directory = |directory: &Path| {
            (directory.join("containers/registries.conf"), directory.join("containers/registries.conf.d"))
        };
        let (system_file, system_drop_ins) = in_directory(system);
        let (user_file, user_drop_ins) = user.map(in_directory).unzip();
        let both = [Some(system_drop_ins), user_drop_ins.clone()].into_iter().flatten().collect();
        if let Some(named) = named {
            return Self { main: vec![named.into()], is_named: true, drop_ins: both };
        }
        match user_file.filter(|file| file.exists()) {
            Some(file) => {
                Self { main: vec![file], is_named: false, drop_ins: user_drop_ins.into_iter().collect() }
            }
            None => Self { main: vec![system_file], is_named: false, drop_ins: both },
        }
    }

    /// The tables of all files. Of several for one prefix the last one holds.
    pub fn read(&self) -> Result<Vec<Rule>, HostsError> {
        let mut rules: Vec<Rule> = Vec::new();
        for document in self.documents()? {
            for rule in parse(&document)? {
                rules.retain(|earlier| earlier.prefix != rule.prefix);
                rules.push(rule);
            }
        }
        Ok(rules)
    }

    fn documents(&self) -> Result<Vec<Document>, HostsError> {
        let mut documents = Vec::new();
        for path in &self.main {
            match self.is_named {
                true => documents.push(Document::read(path)?),
                false => documents.extend(Document::find(path)?),
            }
        }
        for path in
            self.drop_ins.iter().map(|directory| drop_ins(directory)).collect::<Result<Vec<_>, _>>()?.concat()
        {
            documents.push(Document::read(&path)?);
        }
        Ok(documents)
    }
}

/// The `*.conf` of a directory, by name.
fn drop_ins(directory: &Path) -> Result<Vec<PathBuf>, HostsError> {
    let failed = |source| HostsError::Read { path: directory.to_owned(), source };
    let entries = match fs::read_dir(directory) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        entries => entries.map_err(failed)?,
    };
    let paths: io::Result<Vec<PathBuf>> = entries.map(|entry| Ok(entry?.path())).collect();
    let mut paths = paths.map_err(failed)?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "conf"));
    paths.sort();
    Ok(paths)
}

/// The tables of one file.
fn parse(document: &Document) -> Result<Vec<Rule>, HostsError> {
    let root = document.root()?;
    let Some(root) = root.as_table() else { return Ok(Vec::new()) };
    refuse_version_1(document, root)?;
    document.tables(root, "registry")?.into_iter().map(|(table, span)| rule(document, table, span)).collect()
}

/// `[registries.insecure]` and `[registries.block]`; `[registries.search]` is about short names.
fn refuse_version_1(document: &Document, root: &Table<'_>) -> Result<(), HostsError> {
    let Some(old) = root.get("registries").and_then(|value| value.as_table()) else { return Ok(()) };
    for (key, instead) in [("insecure", "insecure"), ("block", "blocked")] {
        let lists = old.get(key).and_then(|value| value.as_table()?.get("registries"));
        if let Some(value) = lists.filter(|value| value.as_array().is_none_or(|list| !list.is_empty())) {
            let reason = format!(
                "[registries.{key}] is the old format: write [[registry]] with location and {instead} = true"
            );
            return Err(document.wrong(value.span, &reason));
        }
    }
    Ok(())
}

fn rule(document: &Document, table: &Table<'_>, span: Span) -> Result<Rule, HostsError> {
    let location = location(document, table)?;
    let prefix = match (document.text(table, "prefix")?, &location) {
        (Some((text, span)), _) => Pattern::parse(text.trim_end_matches('/'))
            .map_err(|error| document.wrong(span, &error.to_string()))?,
        (None, Some(location)) => Pattern::Name(location.clone()),
        (None, None) => return Err(document.wrong(span, "this [[registry]] has neither prefix nor location")),
    };
    if let Some(value) = table.get("pull-from-mirror") {
        return Err(document.wrong(value.span, "pull-from-mirror belongs into [[registry.mirror]]"));
    }
    let by_digest_only = document.flag(table, "mirror-by-digest-only")?;
    let pull = if by_digest_only { PullFrom::DigestsOnly } else { PullFrom::All };
    let mirrors = document.tables(table, "mirror")?;
    Ok(Rule {
        prefix,
        location,
        is_insecure: document.flag(table, "insecure")?,
        is_blocked: document.flag(table, "blocked")?,
        mirrors: mirrors
            .into_iter()
            .map(|(table, span)| mirror(document, table, span, pull))
            .collect::<Result<_, _>>()?,
        path: Arc::clone(&document.path),
        line: document.line(span),
    })
}

fn mirror(document: &Document, table: &Table<'_>, span: Span, pull: PullFrom) -> Result<Mirror, HostsError> {
    let location = location(document, table)?;
    let name = location.ok_or_else(|| document.wrong(span, "this [[registry.mirror]] has no location"))?;
    let pull = match document.text(table, "pull-from-mirror")? {
        None => pull,
        Some((_, span)) if pull != PullFrom::All => {
            return Err(document.wrong(span, "pull-from-mirror contradicts mirror-by-digest-only"));
        }
        Some(("all", _)) => PullFrom::All,
        Some(("digest-only", _)) => PullFrom::DigestsOnly,
        Some(("tag-only", _)) => PullFrom::TagsOnly,
        Some((_, span)) => {
            return Err(document.wrong(span, "pull-from-mirror is none of all, digest-only and tag-only"));
        }
    };
    let location = Location { name, is_plain: false };
    Ok(Mirror { location, is_insecure: document.flag(table, "insecure")?, pull })
}

fn location(document: &Document, table: &Table<'_>) -> Result<Option<String>, HostsError> {
    let Some((text, span)) = document.text(table, "location")? else { return Ok(None) };
    if text.contains("://") {
        return Err(document.wrong(span, "location is HOST[:PORT][/PATH], without a scheme"));
    }
    let name = reference::prefix(text.trim_end_matches('/'));
    name.map(Some).map_err(|error| document.wrong(span, &error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(files: &[(&str, &str)]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().expect("a temporary directory");
        for (name, text) in files {
            let path = directory.path().join(name);
            fs::create_dir_all(path.parent().expect("it has one")).expect("created");
            fs::write(path, text).expect("written");
        }
        directory
    }

    fn read(directory: &Path, named: Option<&str>) -> Result<Vec<String>, String> {
        let named = named.map(|name| directory.join(name).into());
        let found = ConfFiles::find(named, Some(&directory.join("home")), &directory.join("etc"));
        let rules =
            found.read().map_err(|error| error.to_string().replace(&directory.display().to_string(), "@"))?;
        Ok(rules.iter().map(|rule| format!("{:?} {:?}", rule.prefix, rule.location)).collect())
    }

    fn names(directory: &tempfile::TempDir, named: Option<&str>) -> String {
        let rules = read(directory.path(), named).expect("well-formed");
        let name = |rule: &String| rule.split('"').nth(1).unwrap_or_default().to_owned();
        rules.iter().map(name).collect::<Vec<_>>().join(" ")
    }

    fn table(location: &str) -> String {
        format!("[[registry]]\nlocation = \"{location}\"\n")
    }

    #[test]
    fn the_users_file_goes_before_the_systems_and_drop_ins_before_both() {
        let (system, user) = ("etc/containers/registries.conf", "home/containers/registries.conf");
        let (one, two) =
            ("etc/containers/registries.conf.d/1.conf", "home/containers/registries.conf.d/2.conf");
        let [a, b, c, d] = ["a", "b", "c", "d"].map(table);
        assert_eq!(names(&files(&[]), None), "");
        assert_eq!(names(&files(&[(system, &a)]), None), "a");
        assert_eq!(names(&files(&[(system, &a), (one, &c), (two, &d)]), None), "a c d");
        assert_eq!(names(&files(&[(system, &a), (user, &b), (one, &c), (two, &d)]), None), "b d");
        let all = files(&[("x", &a), (user, &b), (one, &c), ("etc/containers/registries.conf.d/no", "=")]);
        assert_eq!(names(&all, Some("x")), "a c");
        assert!(
            read(all.path(), Some("absent")).expect_err("it was named").starts_with("cannot read @/absent")
        );
        let later = format!("{}blocked = true\n", table("a"));
        assert_eq!(names(&files(&[(system, &format!("{a}{b}")), (two, &later)]), None), "b a");
    }

    #[test]
    fn what_a_table_says_is_read() {
        let text = r#"
            unqualified-search-registries = ["example.com"]
            short-name-mode = "enforcing"
            [aliases]
            "debian" = "quay.io/debian"
            [[registry]]
            prefix = "example.com/foo"
            insecure = false
            blocked = true
            location = "internal.example.com/bar/"
            unknown = 1
            [[registry.mirror]]
            location = "m0.local/foo"
            [[registry.mirror]]
            location = "registry-1.docker.io"
            insecure = true
            pull-from-mirror = "tag-only"
            [[registry]]
            prefix = "*.example.org"
            mirror-by-digest-only = true
            mirror = [{ location = "m1.local" }]
        "#;
        let directory = files(&[("conf", text)]);
        let document = Document::read(&directory.path().join("conf")).expect("it is there");
        let rules = parse(&document).expect("well-formed");
        let [first, second] = &rules[..] else { panic!("{rules:?}") };
        assert_eq!(first.prefix, Pattern::Name("example.com/foo".to_owned()));
        assert_eq!(first.location.as_deref(), Some("internal.example.com/bar"));
        assert_eq!((first.is_insecure, first.is_blocked, first.line), (false, true, 6));
        let mirror = |name: &str, is_insecure, pull| {
            let location = Location { name: name.to_owned(), is_plain: false };
            Mirror { location, is_insecure, pull }
        };
        let want =
            [mirror("m0.local/foo", false, PullFrom::All), mirror("docker.io", true, PullFrom::TagsOnly)];
        assert_eq!(first.mirrors, want);
        assert_eq!(second.prefix, Pattern::Below(".example.org".to_owned()));
        assert_eq!(second.mirrors, [mirror("m1.local", false, PullFrom::DigestsOnly)]);
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        let registry = "[[registry]]\nlocation = \"a\"\n";
        for (text, want) in [
            ("[[registry]]\n\nlocation = ".to_owned(), "@/x:3: unexpected eof encountered"),
            (
                "[[registry]\nlocation = \"a\"\n".to_owned(),
                "@/x:1: expected a right bracket, found a newline",
            ),
            ("[[registry]]\n".to_owned(), "@/x:1: this [[registry]] has neither prefix nor location"),
            ("[registry]\n".to_owned(), "@/x:1: registry is no array of tables"),
            ("[[registry]]\nlocation = 1\n".to_owned(), "@/x:2: location is no text"),
            ("[[registry]]\nlocation = \"http://a\"\n".to_owned(), "@/x:2: location is HOST[:PORT]"),
            ("[[registry]]\nlocation = \"a b\"\n".to_owned(), "@/x:2: invalid reference \"a b\""),
            ("[[registry]]\nprefix = \"*\"\n".to_owned(), "@/x:2: invalid reference"),
            (format!("{registry}insecure = \"yes\"\n"), "@/x:3: insecure is neither true nor false"),
            (format!("{registry}pull-from-mirror = \"all\"\n"), "@/x:3: pull-from-mirror belongs into"),
            (format!("{registry}[[registry.mirror]]\n"), "@/x:3: this [[registry.mirror]] has no location"),
            (
                format!("{registry}[[registry.mirror]]\nlocation = \"m\"\npull-from-mirror = \"no\"\n"),
                "@/x:5: pull-from-mirror is none of",
            ),
            (
                format!(
                    "{registry}mirror-by-digest-only = true\n[[registry.mirror]]\nlocation = \"m\"\npull-from-mirror = \"all\"\n"
                ),
                "@/x:6: pull-from-mirror contradicts",
            ),
            (
                "[registries.block]\nregistries = ['a']\n".to_owned(),
                "@/x:2: [registries.block] is the old format",
            ),
        ] {
            let directory = files(&[("x", &text)]);
            let error = read(directory.path(), Some("x")).expect_err(&text);
            assert!(error.starts_with(want), "{text}\n{error}");
        }
        let old = "[registries.search]\nregistries = ['a']\n[registries.block]\nregistries = []\n";
        assert_eq!(names(&files(&[("x", old)]), Some("x")), "");
    }
}
