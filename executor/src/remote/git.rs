//! Commits of git repositories, by the program `git`.
//!
//! Why the program: it speaks every dialect that servers, proxies and SSH set-ups have, its users know its errors, and a
//! stack of our own would be a larger tree than all else here; the field does the same. So contexts and ADD from git need
//! git installed, and say so.
//!
//! In the store: `git/remotes` holds a bare repository for each remote, `git/checkouts` the files of commits, each named
//! after the remote, the commit and what was made of it, and renamed into place whole. A commit that is there is never
//! fetched again; of a branch or a tag only the hash is asked for.
//!
//! Repositories are hostile: [`command`] says how git is kept from doing what one says, [`remote`] whom is spoken to,
//! [`tree`] what is done about submodules.

mod command;
mod error;
mod keep;
mod remote;
mod repository;
mod resolve;
mod tree;

use std::{
    fs, io,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use base64::{Engine, engine::general_purpose::STANDARD};
use oci::store::checked::{self, CheckedError};
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};
use solver::{Event, remote::GitAddress};

use self::{
    command::{Authorization, Git},
    error::GitError,
    remote::{Protocol, Remote},
    repository::Repository,
    resolve::{Resolved, Wanted, is_hash, resolve},
    tree::Checkouts,
};
use super::{Checkout, RemoteOptions};
use crate::{imprint, view::open_in_root};

/// Name of the file beside a checkout's `fs/`.
pub(crate) const META: &str = "meta.json";

/// Which agent git over SSH is given, as by BuildKit.
const AGENT: &str = "default";

/// Version of the content of `meta.json`.
pub(crate) const META_VERSION: u32 = 2;

/// What is known of a checkout beside its files.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Meta {
    commit: String,
    time: i64,
}

/// Makes sure the store has a checkout, and says where.
///
/// # Errors
/// See [`GitError`].
pub fn checkout(options: &RemoteOptions, address: &GitAddress) -> Result<Checkout, GitError> {
    let remote = Remote::parse(&address.remote)
        .ok_or_else(|| GitError::Protocol { remote: solver::remote::redacted(&address.remote) })?;
    let git = git(options, &remote)?;
    git.check_version()?;
    let progress = Progress::new(options, &remote);
    let heard = |line: &str| progress.heard(line);
    let wanted = match (address.fetch_by_commit, &address.checksum) {
        (true, Some(commit)) => Wanted::Known(Resolved {
            name: address.reference.clone().filter(|name| !is_hash(name)),
            ..Resolved::commit(commit)
        }),
        _ => resolve(&git, &remote, address.reference.as_deref())?,
    };
    let store = options.fetcher.store();
    let known = match wanted {
        Wanted::Known(known) => known,
        Wanted::Prefix(prefix) => {
            let open = || Repository::open(store, &git, &remote, 40, &heard);
            Repository::mended(store, open, |repository| repository.find(&prefix))?
        }
    };
    known.verify(address.checksum.as_deref())?;
    let place = store.area("git/checkouts").join(name(&remote, &known, address));
    store.pin(&[&place])?;
    let checkouts = Checkouts {
        store,
        git: &git,
        submodules: address.submodules,
        keep_git_dir: address.keep_git_dir,
        heard: &heard,
    };
    let Meta { commit, time } = match read_meta(&place, options)? {
        Some(meta) => meta,
        None => {
            let open = || Repository::open(store, &git, &remote, known.object.len(), &heard);
            let check_out = |repository| check_out(&checkouts, repository, &remote, &known, &place, options);
            Repository::mended(store, open, check_out)?
        }
    };
    progress.end();
    store.touch(&place);
    let directory = match &address.subdir {
        None => place.join("fs"),
        Some(subdir) => subdirectory(&place.join("fs"), subdir, &remote)?,
    };
    Ok(Checkout { directory, commit, time })
}

/// Makes a checkout, unless somebody else has by the time that the repository is ours.
fn check_out(
    checkouts: &Checkouts<'_>,
    repository: Repository<'_>,
    remote: &Remote,
    known: &Resolved,
    place: &Path,
    options: &RemoteOptions,
) -> Result<Meta, GitError> {
    let store = checkouts.store;
    if let Some(meta) = read_meta(place, options)? {
        return Ok(meta);
    }
    repository.ensure(known)?;
    let commit = repository.commit_of(&known.object)?;
    let temp = store.temp_dir("checkout")?;
    let files = temp.path().join("fs");
    fs::create_dir(&files).map_err(GitError::io("create", &files))?;
    let time = commit_time(&repository.ask(&["cat-file", "commit", &commit])?);
    checkouts.write(repository, remote, known, &commit, &files)?;
    imprint::keep(temp.path(), &imprint_of(&files)?)?;
    let made = Meta { commit, time };
    checked::write_beside(&temp.path().join(META), META_VERSION, &made)?;
    store.rename_into(temp, place)?;
    Ok(made)
}

/// What a checkout is called: equal names hold equal files.
fn name(remote: &Remote, wanted: &Resolved, address: &GitAddress) -> String {
    let GitAddress { keep_git_dir, submodules, .. } = address;
    // What is kept in `.git` names the reference.
    let kept = keep_git_dir.then(|| (&wanted.object, &wanted.name));
    let commit = wanted.tagged.as_ref().unwrap_or(&wanted.object);
    let text = format!("{:?}", (&remote.url, commit, kept, submodules));
    blake3::hash(text.as_bytes()).to_hex().to_string()
}

/// What is known of a checkout, if it is there. A damaged one is taken out of the way: the commit can be fetched again.
fn read_meta(place: &Path, options: &RemoteOptions) -> Result<Option<Meta>, GitError> {
    let why = match checked::read(&place.join(META), META_VERSION) {
        Ok(Some(meta)) => return Ok(Some(meta)),
        Ok(None) if !place.exists() => return Ok(None),
        Ok(None) => format!("{META} is missing"),
        Err(error @ CheckedError::Io { .. }) if !error.is_damage() => return Err(error.into()),
        Err(error) => error.to_string(),
    };
    if !options.fetcher.store().set_aside(place)? {
        return Err(GitError::InUse { path: place.to_owned(), what: why });
    }
    let warning = format!("the checkout {} will be made again: {why}", place.display());
    (options.events)(Event::Warning(warning));
    Ok(None)
}

fn imprint_of(files: &Path) -> Result<oci::Tree, GitError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(files, flags, Mode::empty()).map_err(GitError::io("open", files))?;
    imprint::imprint(&root, &|_| None).map_err(|error| GitError::io("read", files)(io::Error::other(error)))
}

/// When a commit was committed: `committer NAME <MAIL> SECONDS ZONE`.
fn commit_time(object: &[u8]) -> i64 {
    let text = String::from_utf8_lossy(object);
    let committer =
        text.lines().take_while(|line| !line.is_empty()).find(|line| line.starts_with("committer "));
    let seconds = committer.and_then(|line| line.rsplit(' ').nth(1)?.parse().ok());
    // What has no committer has no time; git refuses to make such a commit.
    seconds.unwrap_or(0)
}

/// A directory of the checkout; links in its path lead inside of it only.
fn subdirectory(files: &Path, subdir: &str, remote: &Remote) -> Result<PathBuf, GitError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(files, flags, Mode::empty()).map_err(GitError::io("open", files))?;
    let opened = open_in_root(&root, subdir.as_bytes(), OFlags::PATH | OFlags::DIRECTORY);
    let opened = opened.map_err(|error| GitError::Subdir {
        remote: remote.shown.clone(),
        subdir: subdir.to_owned(),
        source: error.into(),
    })?;
    let link = format!("/proc/self/fd/{}", opened.as_raw_fd());
    fs::read_link(&link).map_err(GitError::io("read", link))
}

/// How git is run for a remote, with the credentials that the user has given for it.
fn git(options: &RemoteOptions, remote: &Remote) -> Result<Git, GitError> {
    let authorization = match remote.protocol {
        Protocol::Http => authorization(options, remote)?,
        Protocol::Ssh | Protocol::Git => None,
    };
    let authorization = match authorization {
        Some(header) if header.chars().any(char::is_control) => {
            return Err(GitError::BadSecret { remote: remote.shown.clone() });
        }
        Some(header) => {
            Some(Authorization::new(&remote.scope(), &header).map_err(GitError::io("keep", "a secret"))?)
        }
        None => None,
    };
    Ok(Git {
        remote: remote.shown.clone(),
        authorization: authorization.map(Arc::new),
        ssh: ssh(options)?,
        cancel: options.cancel.clone(),
        events: options.events.clone(),
    })
}

impl Git {
    /// How git is run for a submodule: a login that its address has from its parent holds there, too.
    fn for_submodule(&self, remote: &Remote) -> Result<Git, GitError> {
        let mut git = Git { remote: remote.shown.clone(), ..self.clone() };
        if let Some(login) = &remote.login {
            let kept = Authorization::new(&remote.scope(), &basic(login))
                .map_err(GitError::io("keep", "a secret"))?;
            git.authorization = Some(Arc::new(kept));
        }
        Ok(git)
    }
}

/// RFC 7617
fn basic(login: &str) -> String {
    format!("basic {}", STANDARD.encode(login))
}

/// BuildKit's secrets, those of the host before those of all hosts, then the address's own login.
fn authorization(options: &RemoteOptions, remote: &Remote) -> Result<Option<String>, GitError> {
    for suffix in [format!(".{}", remote.host), String::new()] {
        for (id, is_token) in [("GIT_AUTH_HEADER", false), ("GIT_AUTH_TOKEN", true)] {
            let Some(secret) = options.secrets.get(&format!("{id}{suffix}"))? else { continue };
            let secret = String::from_utf8_lossy(&secret);
            let secret = secret.trim_end_matches(['\n', '\r']);
            return Ok(Some(if is_token {
                basic(&format!("x-access-token:{secret}"))
            } else {
                secret.to_owned()
            }));
        }
    }
    Ok(remote.login.as_deref().map(basic))
}

/// The SSH command: the user's agent and nobody's keys or configuration. A host that is not known is believed once and
/// remembered; one that has changed is refused. (BuildKit believes whatever key it sees.)
fn ssh(options: &RemoteOptions) -> Result<String, GitError> {
    let quoted =
        |path: &Path| format!("\"{}\"", path.display().to_string().replace('"', "").replace('%', "%%"));
    let own = options.fetcher.store().area("git").join("known_hosts");
    let users = std::env::var_os("HOME").map(|home| Path::new(&home).join(".ssh/known_hosts"));
    let known: Vec<String> = [Some(own), users].into_iter().flatten().map(|path| quoted(&path)).collect();
    let agent = options.agents.socket(AGENT).map_err(GitError::Agent)?;
    let agent = agent.as_deref().map_or("none".to_owned(), quoted);
    let options = [
        "BatchMode=yes".to_owned(),
        "ConnectTimeout=30".to_owned(),
        "ServerAliveInterval=15".to_owned(),
        "ServerAliveCountMax=4".to_owned(),
        "ForwardAgent=no".to_owned(),
        "IdentityFile=none".to_owned(),
        "StrictHostKeyChecking=accept-new".to_owned(),
        format!("UserKnownHostsFile={}", known.join(" ")),
        format!("IdentityAgent={agent}"),
    ];
    let options: Vec<String> =
        options.iter().map(|option| format!("-o '{}'", option.replace('\'', "'\\''"))).collect();
    Ok(format!("ssh -F /dev/null {}", options.join(" ")))
}

/// Tells how far a fetch has come.
struct Progress<'a> {
    options: &'a RemoteOptions,
    task: String,
    received: AtomicU64,
}

impl<'a> Progress<'a> {
    fn new(options: &'a RemoteOptions, remote: &Remote) -> Self {
        Self { options, task: format!("git {}", remote.shown), received: AtomicU64::new(0) }
    }

    /// `Receiving objects: 42% (21/50), 1.20 MiB | 3.00 MiB/s`
    fn heard(&self, line: &str) {
        let Some(bytes) = received(line) else { return };
        self.received.fetch_max(bytes, Ordering::Relaxed);
        (self.options.events)(Event::Transfer { task: self.task.clone(), done: bytes, total: 0 });
    }

    fn end(&self) {
        let done = self.received.load(Ordering::Relaxed);
        if done > 0 {
            (self.options.events)(Event::Transfer { task: self.task.clone(), done, total: done });
        }
    }
}

fn received(line: &str) -> Option<u64> {
    let rest =
        ["Receiving objects:", "Unpacking objects:"].iter().find_map(|start| line.strip_prefix(start))?;
    let (_, amount) = rest.split_once("), ")?;
    let mut words = amount.split([' ', ',']);
    let (number, unit) = (words.next()?.parse::<f64>().ok()?, words.next()?);
    let scale = match unit {
        "bytes" => 1.0,
        "KiB" => 1024.0,
        "MiB" => 1048576.0,
        "GiB" => 1073741824.0,
        _ => return None,
    };
    Some((number * scale) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_read_in_bytes() {
        for (line, expected) in [
            ("Receiving objects:  42% (21/50), 1.50 KiB | 3.00 MiB/s", Some(1536)),
            ("Unpacking objects: 100% (3/3), 218 bytes | 218.00 KiB/s, done.", Some(218)),
            ("Receiving objects: 100% (3/3), done.", None),
            ("Resolving deltas: 100% (3/3), done.", None),
        ] {
            assert_eq!(received(line), expected, "{line}");
        }
    }

    #[test]
    fn the_time_of_a_commit_is_that_of_its_committer() {
        let object =
            b"tree x\nauthor A <a> 1 +0000\ncommitter B C <b> 1700000000 +0100\n\ncommitter D <d> 3 +0000";
        assert_eq!(commit_time(object), 1_700_000_000);
    }
}
