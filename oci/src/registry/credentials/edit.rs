//! Writing logins where Docker keeps them: into `config.json`, or into the helper that it names.
//!
//! The file belongs to several programs. Whatever is not ours in it stays as it is, byte by byte and in its order; it is
//! replaced as a whole, readable for its owner only; and of two logins at the same time none is lost.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fmt,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use rustix::fs::{FlockOperation, flock};
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::value::RawValue;

use super::{
    Credential, CredentialError, Login, Proof, docker_config,
    file::{CredentialFile, normalised, written},
    helper::{Helper, Leash},
    is_absence, parse, read_limited,
};

/// How Docker indents the file.
const INDENT: &str = "\t";

/// The file in which logins are kept, or that names the helper that keeps them.
#[derive(Debug, Clone)]
pub struct LoginFile {
    path: PathBuf,
}

/// Who keeps a login.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Keeper {
    /// The file itself, where everybody can read it who can read the file.
    File,
    /// This helper.
    Helper(String),
}

impl LoginFile {
    /// The file that is named, else `$REGISTRY_AUTH_FILE`, else `config.json` in `$DOCKER_CONFIG` or `~/.docker`. It need
    /// not exist.
    ///
    /// # Errors
    /// [`CredentialError::NoPlace`]
    pub fn choose(
        named: Option<&Path>,
        environment: &dyn Fn(&str) -> Option<OsString>,
    ) -> Result<Self, CredentialError> {
        let path = |name: &str| environment(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let found = named.map(Path::to_owned).or_else(|| path("REGISTRY_AUTH_FILE"));
        let found = found.or_else(|| docker_config(&path)).ok_or(CredentialError::NoPlace)?;
        Ok(Self { path: found })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is kept for a repository, or for a registry where that has no name.
    pub(in crate::registry) fn find(
        &self,
        registry: &str,
        repository: &str,
    ) -> Result<Option<Credential>, CredentialError> {
        self.read()?.settings.find(registry, repository, &self.name(), &Leash::default())
    }

    /// Who would keep a login of this name, `REGISTRY[/PATH]`.
    ///
    /// # Errors
    /// The file cannot be read, or its helper cannot keep such a login.
    pub fn keeper(&self, name: &str) -> Result<Keeper, CredentialError> {
        let own = self.read()?;
        let Some(helper) = own.settings.helper(&[name.to_owned()]) else { return Ok(Keeper::File) };
        let helper = format!("docker-credential-{helper}");
        if name.contains('/') {
            let (named_by, key) = (self.name(), name.to_owned());
            return Err(CredentialError::Scoped { helper, named_by, key });
        }
        Ok(Keeper::Helper(helper))
    }

    /// Keeps a login under this name, `REGISTRY[/PATH]`, and says who has it now.
    ///
    /// # Errors
    /// [`CredentialError`]: nothing has changed.
    pub fn keep(&self, name: &str, login: &Login) -> Result<Keeper, CredentialError> {
        let keeper = self.keeper(name)?;
        if let Some(helper) = self.helper(name)? {
            helper.store(name, login)?;
        }
        let entry = match keeper {
            Keeper::File => entry(login),
            // As Docker does: the name is there, and no old password.
            Keeper::Helper(_) => raw("{}"),
        };
        self.change(|content| content.set_login(written(name), entry))?;
        Ok(keeper)
    }

    /// Forgets what is kept under any spelling of this name. `false` where there was nothing.
    ///
    /// # Errors
    /// [`CredentialError`]
    pub fn forget(&self, name: &str) -> Result<bool, CredentialError> {
        let erased = match self.helper(name)? {
            Some(helper) if !name.contains('/') => helper.erase(name)?,
            _ => false,
        };
        let removed = match self.read()?.settings.auths.keys().any(|key| normalised(key) == name) {
            true => self.change(|content| content.retain_logins(|key| normalised(key) != name))?,
            false => 0,
        };
        Ok(erased || removed > 0)
    }

    /// Forgets everything that the file and its helpers keep, and says what that was.
    ///
    /// # Errors
    /// [`CredentialError`]: some of it may still be there.
    pub fn forget_all(&self) -> Result<BTreeSet<String>, CredentialError> {
        let settings = self.read()?.settings;
        let mut gone = BTreeSet::new();
        for (registry, helper) in &settings.cred_helpers {
            if Helper::new(helper, &self.name(), Leash::default())?.erase(registry)? {
                gone.insert(normalised(registry));
            }
        }
        if !settings.creds_store.is_empty() {
            let store = Helper::new(&settings.creds_store, &self.name(), Leash::default())?;
            for server in store.list()? {
                store.erase(&server)?;
                gone.insert(normalised(&server));
            }
        }
        if !settings.auths.is_empty() {
            gone.extend(settings.auths.keys().map(|key| normalised(key)));
            self.change(|content| content.retain_logins(|_| false))?;
        }
        Ok(gone)
    }

    fn name(&self) -> String {
        self.path.display().to_string()
    }

    fn helper(&self, name: &str) -> Result<Option<Helper>, CredentialError> {
        let settings = self.read()?.settings;
        let helper = settings.helper(&[name.to_owned()]);
        helper.map(|helper| Helper::new(helper, &self.name(), Leash::default())).transpose()
    }

    fn read(&self) -> Result<Content, CredentialError> {
        let text = match read_limited(&self.path) {
            Err(error) if is_absence(&error) => Vec::new(),
            read => read.map_err(|source| CredentialError::Read { path: self.path.clone(), source })?,
        };
        Content::parse(&text, &self.name())
    }

    /// Reads the file, changes it and writes it back, while nobody else does.
    fn change<T>(&self, change: impl FnOnce(&mut Content) -> T) -> Result<T, CredentialError> {
        let failed = |source| CredentialError::Write { path: self.path.clone(), source };
        let path = followed(&self.path);
        let directory =
            path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed)?;
        let held = File::open(directory).map_err(failed)?;
        // Where directories cannot be locked, the last one to write wins.
        let _ = flock(&held, FlockOperation::LockExclusive);
        let mut content = self.read()?;
        let changed = change(&mut content);
        replace(&path, content.to_string().as_bytes()).and_then(|()| held.sync_all()).map_err(failed)?;
        Ok(changed)
    }
}

/// Where a path leads, which may be where there is nothing yet.
fn followed(path: &Path) -> PathBuf {
    let there = || fs::canonicalize(path).ok();
    let dangling = || Some(path.parent()?.join(fs::read_link(path).ok()?));
    there().or_else(dangling).unwrap_or_else(|| path.to_owned())
}

/// Writes beside the file and renames. It stays its owner's, who may be another one than we.
fn replace(path: &Path, text: &[u8]) -> io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let beside = path.with_file_name(format!(".{name}.{}.tmp", std::process::id()));
    // Left by a process of our number that was killed.
    let _ = fs::remove_file(&beside);
    let written = write_new(&beside, path, text).and_then(|()| fs::rename(&beside, path));
    if written.is_err() {
        let _ = fs::remove_file(&beside);
    }
    written
}

fn write_new(beside: &Path, path: &Path, text: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(beside)?;
    if let Ok(old) = fs::metadata(path) {
        // Only root can, and nobody else needs to.
        let _ = std::os::unix::fs::fchown(&file, Some(old.uid()), Some(old.gid()));
    }
    file.write_all(text)?;
    file.sync_all()
}

/// An entry as Docker writes it.
fn entry(login: &Login) -> Box<RawValue> {
    let encoded = |password: &str| BASE64_STANDARD.encode(format!("{}:{password}", login.user));
    let members = match &login.proof {
        Proof::Password(password) => vec![("auth", encoded(password.expose()))],
        Proof::IdentityToken(token) => {
            vec![("auth", encoded("")), ("identitytoken", token.expose().to_owned())]
        }
    };
    let quoted = |text: &str| serde_json::to_string(text).expect("a string is JSON");
    let members: Vec<_> =
        members.iter().map(|(name, text)| format!("{}: {}", quoted(name), quoted(text))).collect();
    raw(&format!("{{{}}}", members.join(", ")))
}

fn raw(json: &str) -> Box<RawValue> {
    RawValue::from_string(json.to_owned()).expect("it is JSON")
}

/// The members of an object in their order, as they stand there.
#[derive(Default)]
struct Members(Vec<(String, Box<RawValue>)>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Members;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}

/// The whole file.
struct Content {
    /// Everything but the logins.
    members: Members,
    /// Where the logins stand among the other members.
    place: usize,
    logins: Members,
    /// What the file says to whoever reads it.
    settings: CredentialFile,
    indent: String,
}

impl Content {
    fn parse(text: &[u8], source_name: &str) -> Result<Self, CredentialError> {
        let settings = parse(text, source_name)?.unwrap_or_default();
        let mut members: Members = parse(text, source_name)?.unwrap_or_default();
        let place = members.0.iter().position(|(name, _)| name == "auths");
        let logins: Option<Members> = match place.map(|place| members.0.remove(place)) {
            Some((_, logins)) => parse::<Option<_>>(logins.get().as_bytes(), source_name)?.flatten(),
            None => None,
        };
        let (place, logins) = (place.unwrap_or(0), logins.unwrap_or_default());
        Ok(Self { members, place, logins, settings, indent: indent(text) })
    }

    /// Puts a login where one of this name is, or at the end.
    fn set_login(&mut self, name: &str, entry: Box<RawValue>) {
        let logins = &mut self.logins.0;
        match logins.iter().position(|(own, _)| own == name) {
            Some(at) => logins[at].1 = entry,
            None => logins.push((name.to_owned(), entry)),
        }
    }

    /// Removes the others, and says how many.
    fn retain_logins(&mut self, wanted: impl Fn(&str) -> bool) -> usize {
        let before = self.logins.0.len();
        self.logins.0.retain(|(name, _)| wanted(name));
        before - self.logins.0.len()
    }
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut members: Vec<(&str, String)> =
            self.members.0.iter().map(|(name, value)| (name.as_str(), value.get().to_owned())).collect();
        let logins =
            self.logins.0.iter().map(|(name, entry)| (name.as_str(), entry.get().to_owned())).collect();
        members.insert(self.place.min(members.len()), ("auths", object(logins, &self.indent, 1)));
        writeln!(f, "{}", object(members, &self.indent, 0))
    }
}

/// An object whose members stand on lines of their own.
fn object(members: Vec<(&str, String)>, indent: &str, depth: usize) -> String {
    let line = |(name, value): &(&str, String)| {
        let name = serde_json::to_string(name).expect("a string is JSON");
        format!("{}{name}: {value}", indent.repeat(depth + 1))
    };
    match members.is_empty() {
        true => "{}".to_owned(),
        false => {
            let lines: Vec<_> = members.iter().map(line).collect();
            format!("{{\n{}\n{}}}", lines.join(",\n"), indent.repeat(depth))
        }
    }
}

/// What stands before the first member on its line.
fn indent(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let inside = text.trim_start().strip_prefix('{').and_then(|inside| inside.split_once('\n'));
    let white =
        inside.map(|(_, line)| line.chars().take_while(|c| matches!(c, ' ' | '\t')).collect::<String>());
    white.filter(|white| !white.is_empty()).unwrap_or_else(|| INDENT.to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::{super::Secret, *};

    fn password(text: &str) -> Login {
        Login { user: "u".to_owned(), proof: Proof::Password(Secret::new(text.to_owned())) }
    }

    fn in_directory() -> (tempfile::TempDir, LoginFile) {
        let directory = tempfile::tempdir().expect("tempdir");
        let path = directory.path().join("sub/config.json");
        (directory, LoginFile { path })
    }

    #[test]
    fn whatever_else_the_file_holds_stays_as_it_is() {
        let (_directory, file) = in_directory();
        fs::create_dir(file.path().parent().expect("has one")).expect("made");
        let old = "{\n  \"z\": {\n    \"b\": 1.50,\n    \"a\": [ ]\n  },\n  \"auths\": {\n    \"x\": {\"auth\":\"dTpw\", \
                   \"email\": null}\n  },\n  \"HttpHeaders\": {\"A\": \"1\"}\n}\n";
        fs::write(file.path(), old).expect("written");
        assert_eq!(file.keep("r:5000", &password("p")).expect("kept"), Keeper::File);
        let kept = fs::read_to_string(file.path()).expect("readable");
        let new = old.replace("null}\n", "null},\n    \"r:5000\": {\"auth\": \"dTpw\"}\n");
        assert_eq!(kept, new);
        assert!(file.forget("r:5000").expect("forgotten"));
        assert!(!file.forget("r:5000").expect("nothing there"));
        assert_eq!(fs::read_to_string(file.path()).expect("readable"), old);
    }

    #[test]
    fn a_login_takes_the_place_of_null() {
        let (_directory, file) = in_directory();
        fs::create_dir(file.path().parent().expect("has one")).expect("made");
        fs::write(file.path(), "{\n\t\"auths\": null\n}\n").expect("written");
        assert_eq!(file.keep("r", &password("p")).expect("kept"), Keeper::File);
        let kept = fs::read_to_string(file.path()).expect("readable");
        assert_eq!(kept, "{\n\t\"auths\": {\n\t\t\"r\": {\"auth\": \"dTpw\"}\n\t}\n}\n");
    }

    #[test]
    fn a_new_file_is_for_its_owner_only() {
        let (_directory, file) = in_directory();
        file.keep("docker.io", &password("p")).expect("kept");
        let token =
            Login { user: "u".to_owned(), proof: Proof::IdentityToken(Secret::new("t\"1".to_owned())) };
        file.keep("r/team/app", &token).expect("kept");
        let text = fs::read_to_string(file.path()).expect("readable");
        let want = "{\n\t\"auths\": {\n\t\t\"https://index.docker.io/v1/\": {\"auth\": \"dTpw\"},\n\t\t\"r/team/app\": \
                    {\"auth\": \"dTo=\", \"identitytoken\": \"t\\\"1\"}\n\t}\n}\n";
        assert_eq!(text, want);
        let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
        assert_eq!(mode(file.path()), 0o600);
        assert_eq!(mode(file.path().parent().expect("has one")), 0o700);
        assert_eq!(fs::read_dir(file.path().parent().expect("has one")).expect("readable").count(), 1);
        assert_eq!(
            file.forget_all().expect("forgotten"),
            ["docker.io", "r/team/app"].map(String::from).into()
        );
        assert_eq!(fs::read_to_string(file.path()).expect("readable"), "{\n\t\"auths\": {}\n}\n");
    }

    #[test]
    fn every_spelling_of_a_name_is_forgotten_and_no_other() {
        let (_directory, file) = in_directory();
        for name in ["r", "https://r", "http://r/v2/", "r/team", "r:1", "docker.io"] {
            file.change(|content| content.set_login(name, raw("{}"))).expect("written");
        }
        assert!(file.forget("r").expect("forgotten"));
        let left: Vec<_> = file.read().expect("readable").settings.auths.into_keys().collect();
        assert_eq!(left, ["docker.io", "r/team", "r:1"]);
    }

    #[test]
    fn a_link_is_followed_and_logins_at_the_same_time_are_all_kept() {
        let (directory, file) = in_directory();
        let link = LoginFile { path: directory.path().join("link") };
        symlink("sub/config.json", link.path()).expect("linked");
        std::thread::scope(|scope| {
            for number in 0..8 {
                let link = &link;
                scope.spawn(move || link.keep(&format!("r{number}"), &password("p")).expect("kept"));
            }
        });
        assert_eq!(file.read().expect("readable").settings.auths.len(), 8);
        assert!(fs::symlink_metadata(link.path()).expect("there").is_symlink());
    }

    #[test]
    fn what_is_no_file_of_logins_is_left_alone() {
        let (directory, file) = in_directory();
        fs::create_dir(file.path().parent().expect("has one")).expect("made");
        for text in ["[]", "{\"auths\": [\"hunter2\"]}", "{\"auths\": {\"r\": {\"auth\": \"hunter2\"}"] {
            fs::write(file.path(), text).expect("written");
            let error = file.keep("r", &password("p")).expect_err(text).to_string();
            assert!(
                error.contains("is not a credential file: line 1") && !error.contains("hunter2"),
                "{error}"
            );
            assert_eq!(fs::read_to_string(file.path()).expect("readable"), text);
        }
        let below_a_file = LoginFile { path: file.path().join("config.json") };
        let error = below_a_file.keep("r", &password("p")).expect_err("no directory");
        assert!(matches!(error, CredentialError::Write { .. }), "{error}");
        drop(directory);
    }

    #[test]
    fn the_place_is_where_docker_and_podman_would_write() {
        let choose = |named: Option<&str>, set: &[(&str, &str)]| {
            let environment = |name: &str| Some(set.iter().find(|(own, _)| *own == name)?.1.into());
            let file = LoginFile::choose(named.map(Path::new), &environment);
            file.map_or_else(|error| error.to_string(), |file| file.path().display().to_string())
        };
        let all = [("REGISTRY_AUTH_FILE", "/a/auth.json"), ("DOCKER_CONFIG", "/d"), ("HOME", "/h")];
        assert_eq!(choose(Some("/n"), &all), "/n");
        assert_eq!(choose(None, &all), "/a/auth.json");
        assert_eq!(choose(None, &all[1..]), "/d/config.json");
        assert_eq!(choose(None, &all[2..]), "/h/.docker/config.json");
        assert!(choose(None, &[("HOME", "")]).starts_with("nothing says where to keep"));
    }
}
