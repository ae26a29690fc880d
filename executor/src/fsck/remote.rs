//! What came from elsewhere: git checkouts, the repositories they were taken from, and downloads.

use std::{
    collections::BTreeMap,
    fs::File,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use oci::{ContentDigest, store::checked};

use super::{
    Check, Found, FsckError, damage,
    differences::Wanted,
    digest_of,
    objects::{unknown_names, unreadable},
};
use crate::{
    imprint,
    listing::hash,
    remote::kept::{CHECKOUT_META, CHECKOUT_VERSION, CheckoutMeta, DOWNLOAD_VERSION, DownloadRecord},
};

const FETCHED_AGAIN: &str = "it is fetched again when a build needs it";
/// What stands in the directory of a checkout.
const NAMES: [&str; 3] = ["fs", CHECKOUT_META, imprint::FILE];

impl Check<'_> {
    pub(super) fn remote(&self, found: &mut Found) -> Result<(), FsckError> {
        let checkouts = self.each("git/checkouts", |name| {
            let directory = self.store.area("git/checkouts").join(name);
            match self.checkout(name, &directory) {
                _ if !directory.exists() => Ok(None),
                what => what,
            }
        })?;
        let repositories = self.each("git/remotes", |name| Ok(self.repository(name)))?;
        let (records, files) = self.downloads()?;
        let all = [checkouts, repositories, records, files].into_iter().flatten();
        all.for_each(|(path, what)| found.add(path, what, FETCHED_AGAIN));
        Ok(())
    }

    fn checkout(&self, name: &str, directory: &Path) -> Result<Option<String>, FsckError> {
        if digest_of(name).is_none() {
            return Ok(None);
        }
        if let Some(stray) = unknown_names(directory, &NAMES).map_err(FsckError::io(directory))? {
            return Ok(Some(format!("{} does not belong there", stray.display())));
        }
        match checked::read::<CheckoutMeta>(&directory.join(CHECKOUT_META), CHECKOUT_VERSION) {
            Ok(Some(_)) => {}
            Ok(None) => return Ok(Some(format!("{CHECKOUT_META} is missing"))),
            Err(error) => return Ok(Some(format!("{CHECKOUT_META}: {}", damage(error)?))),
        }
        match imprint::kept(directory) {
            Ok(Some(tree)) => self.compare("git/checkouts", &directory.join("fs"), &Wanted::All(&tree)),
            Ok(None) => Ok(Some("tree is missing".to_owned())),
            Err(error) => Ok(Some(format!("tree: {}", damage(error)?))),
        }
    }

    /// What `git fsck` says of a repository. Where there is no git, no build uses one either.
    fn repository(&self, name: &str) -> Option<String> {
        let directory = self.store.area("git/remotes").join(name);
        if name.ends_with(".lock") || !directory.is_dir() {
            return None;
        }
        if !directory.join("complete").exists() {
            return Some("it is not complete".to_owned());
        }
        let output = Command::new("git")
            .arg("--git-dir")
            .arg(&directory)
            .args(["fsck", "--full", "--no-dangling", "--no-progress"])
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .output()
            .ok()?;
        if output.status.success() || !directory.exists() {
            return None;
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let first = said.lines().find(|line| !line.is_empty()).unwrap_or("git fsck fails");
        Some(first.chars().take(200).collect())
    }

    /// What is known of downloads, and the files. One that nothing is known of is asked for again anyway.
    #[expect(clippy::type_complexity, reason = "two lists of findings")]
    fn downloads(&self) -> Result<(Vec<(PathBuf, String)>, Vec<(PathBuf, String)>), FsckError> {
        let known = self.each("downloads/records", |name| {
            if name.strip_suffix(".json").and_then(digest_of).is_none() {
                return Ok(None);
            }
            let path = self.store.area("downloads/records").join(name);
            match checked::read::<DownloadRecord>(&path, DOWNLOAD_VERSION) {
                Ok(record) => Ok(record.map(Ok)),
                Err(error) => damage(error).map(|what| Some(Err(what))),
            }
        })?;
        let (mut wrong, mut files) = (Vec::new(), BTreeMap::new());
        for (path, record) in known {
            let record = match record {
                Ok(record) => record,
                Err(what) => {
                    wrong.push((path, what));
                    continue;
                }
            };
            let place = Path::new("downloads/files").join(&record.place);
            if digest_of(&record.place).is_none() || (!self.is_there(&place) && self.is_there(&path)) {
                wrong.push((path, "its file is missing".to_owned()));
                continue;
            }
            if let Some(what) = self.download(&place, &record)? {
                wrong.push((path, format!("its file is damaged: {what}")));
                files.insert(place, what);
            }
        }
        Ok((wrong, files.into_iter().collect()))
    }

    fn download(&self, place: &Path, record: &DownloadRecord) -> Result<Option<String>, FsckError> {
        let path = self.store.root().join(place).join(&record.name);
        let mut hasher = blake3::Hasher::new();
        let hashed = File::open(&path).and_then(|mut file| hash(&mut file, record.size, &mut hasher));
        let length = match hashed {
            Ok(length) => length,
            Err(_) if !self.is_there(place) => return Ok(None),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Some(format!("{} is missing", record.name)));
            }
            Err(error) => return unreadable(&path, error).map(Some),
        };
        self.count("downloads/files", 1, length);
        let is_whole = length == record.size && ContentDigest::from(hasher.finalize()) == record.content;
        Ok((!is_whole).then(|| format!("{} has another content", record.name)))
    }
}
