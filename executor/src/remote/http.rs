//! Files behind URLs.
//!
//! In the store: `downloads/files` holds directories with one file each, by its name, named after name, content and time;
//! `downloads/records` what a server said about each URL. A file that was pinned by a checksum is taken from there
//! without asking; any other one is asked for again, and taken if the server says by a strong ETag that it has not changed.
//! (Times do not vouch: a second is long, and a file can be replaced by an older one.) What is taken is hashed first: a
//! damaged file is downloaded again.
//!
//! A file is the same for a whole build. Credentials go to the URL's own host, and the store knows URLs by their hashes.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use oci::{
    ContentDigest, Sha256Digest,
    registry::{Downloaded, FileRequest, RegistryError, Watch},
    store::{StoreError, checked},
};
use rustix::fs::{Timespec, Timestamps};
use serde::{Deserialize, Serialize};
use solver::{Event, FailureKind, StepFailure, op::HttpFile, remote::redacted};

use super::{Download, RemoteOptions};
use crate::{
    error::blame,
    listing::hash,
    lock::{NotLocked, wait_for},
    secrets::SecretError,
};

/// Why there is no file.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The server does not give it.
    #[error("cannot download {url}")]
    Download {
        /// Without credentials.
        url: String,
        /// Why not.
        #[source]
        source: RegistryError,
    },
    /// It is not the file that was asked for.
    #[error("digest mismatch {found}: {expected}")]
    Digest {
        /// What came.
        found: Sha256Digest,
        /// What was to come.
        expected: Sha256Digest,
    },
    /// A name that is no component of a path.
    #[error("{0:?} is no name of a file")]
    Name(String),
    /// A secret for the server.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// The build was cancelled.
    #[error("cancelled")]
    Cancelled,
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The disk.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl HttpError {
    fn io<E: Into<io::Error>>(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(E) -> Self {
        let path = path.into();
        move |error| Self::Io { action, path, source: error.into() }
    }
}

impl HttpError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Download { source: RegistryError::Status { status: 401 | 403, .. }, .. } => {
                Some("give a token with --secret id=HTTP_AUTH_TOKEN_<host>,env=...".to_owned())
            }
            Self::Digest { found, expected } => Some(format!(
                "the server sent {found}, --checksum wants {expected}: mend one of them, if you trust the other"
            )),
            _ => None,
        }
    }
}

impl From<HttpError> for StepFailure {
    fn from(error: HttpError) -> Self {
        let hint = error.hint();
        let kind = match &error {
            HttpError::Cancelled => return Self::new(FailureKind::Cancelled, "cancelled"),
            HttpError::Store(_) | HttpError::Io { .. } => FailureKind::Machine,
            HttpError::Download { .. } => FailureKind::Registry,
            _ => FailureKind::Build,
        };
        let failure = blame(kind, error);
        match hint {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }
}

/// Version of the content of a record's file.
pub(crate) const RECORD_VERSION: u32 = 2;

/// What a server said about a URL, and where its file is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    digest: Sha256Digest,
    /// BLAKE3 of the file.
    pub(crate) content: ContentDigest,
    /// Its length.
    pub(crate) size: u64,
    etag: Option<String>,
    last_modified: Option<String>,
    /// Directory in `downloads/files`.
    pub(crate) place: String,
    /// The file's name in there.
    pub(crate) name: String,
}

/// Makes sure the store has the file, and says where.
///
/// # Errors
/// See [`HttpError`].
pub fn download(options: &RemoteOptions, wanted: &HttpFile) -> Result<Download, HttpError> {
    if matches!(wanted.name.as_str(), "" | "." | "..") || wanted.name.contains(['/', '\0']) {
        return Err(HttpError::Name(wanted.name.clone()));
    }
    let records = options.fetcher.store().area("downloads/records");
    let key = blake3::hash(format!("{}\0{}", wanted.url, wanted.name).as_bytes()).to_hex();
    let path = records.join(format!("{key}.json"));
    // Who comes second asks the server no more than whether the file has changed since.
    let _lock = lock(options, &key, &wanted.url)?;
    options.fetcher.store().pin(&[&path])?;
    let known = read_record(options, &path).filter(|record| is_whole(options, record, &wanted.name));
    if let Some(record) = &known
        && wanted.checksum.is_some_and(|checksum| checksum == record.digest)
    {
        return Ok(described(options, &path, record, wanted));
    }
    let record = match fetch(options, wanted, known.as_ref())? {
        None => known.expect("a server that was not asked for a change reports none"),
        Some(record) => {
            checked::write(options.fetcher.store(), &path, RECORD_VERSION, &record)?;
            record
        }
    };
    match wanted.checksum {
        Some(expected) if expected != record.digest => {
            Err(HttpError::Digest { found: record.digest, expected })
        }
        _ => Ok(described(options, &path, &record, wanted)),
    }
}

fn lock(options: &RemoteOptions, key: &str, url: &str) -> Result<File, HttpError> {
    let name = format!("download-{key}");
    let file = options.fetcher.store().lock_file(&name)?;
    let what = format!("downloads {}", redacted(url));
    match wait_for(&file, &what, &options.events, &options.cancel) {
        Ok(()) => Ok(file),
        Err(NotLocked::Cancelled) => Err(HttpError::Cancelled),
        Err(NotLocked::Io(error)) => {
            Err(HttpError::io("lock", options.fetcher.store().area("locks").join(name))(error))
        }
    }
}

fn described(options: &RemoteOptions, path: &Path, record: &Record, wanted: &HttpFile) -> Download {
    let store = options.fetcher.store();
    store.touch(path);
    store.touch(&store.area("downloads/files").join(&record.place));
    Download {
        directory: options.fetcher.store().area("downloads/files").join(&record.place),
        name: wanted.name.clone(),
        digest: record.digest,
        content: record.content,
        modified: record.last_modified.as_deref().and_then(parse_http_date),
    }
}

/// The name in `downloads/files` of what the record in a file is about.
pub(crate) fn place_of(path: &Path) -> Option<String> {
    checked::read::<Record>(path, RECORD_VERSION).ok()?.map(|record| record.place)
}

/// A record that cannot be used is none.
fn read_record(options: &RemoteOptions, path: &Path) -> Option<Record> {
    let record = checked::read::<Record>(path, RECORD_VERSION).unwrap_or_else(|error| {
        (options.events)(Event::Warning(format!("what is known of a download is not used: {error}")));
        None
    });
    let is_name = |text: &str| text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    record.filter(|record| is_name(&record.place))
}

/// Whether the file is there as it came.
fn is_whole(options: &RemoteOptions, record: &Record, name: &str) -> bool {
    let store = options.fetcher.store();
    let place = store.area("downloads/files").join(&record.place);
    if store.pin(&[&place]).is_err() {
        return false;
    }
    let Ok(mut file) = File::open(place.join(name)) else { return false };
    let mut hasher = blake3::Hasher::new();
    let length = hash(&mut file, record.size, &mut hasher);
    length.is_ok_and(|length| length == record.size)
        && ContentDigest::from(hasher.finalize()) == record.content
}

/// Asks the server; `None` where it has what we have.
fn fetch(
    options: &RemoteOptions,
    wanted: &HttpFile,
    known: Option<&Record>,
) -> Result<Option<Record>, HttpError> {
    let store = options.fetcher.store();
    let temp = store.temp_dir("download")?;
    let path = temp.path().join(&wanted.name);
    let opened = File::options().read(true).write(true).create_new(true).mode(0o600).open(&path);
    let mut file = opened.map_err(HttpError::io("create", &path))?;
    let request = FileRequest {
        url: wanted.url.clone(),
        authorization: authorization(options, &wanted.url)?,
        etag: known.and_then(|known| known.etag.clone()).filter(|etag| !etag.starts_with("W/")),
    };
    let shown = redacted(&wanted.url);
    let task = format!("download {shown}");
    let progress = |done, total| (options.events)(Event::Transfer { task: task.clone(), done, total });
    let cancelled = || options.cancel.is_requested();
    let watch = Watch { progress: &progress, cancelled: &cancelled };
    let answer = options.fetcher.registry().download(&request, &file, &watch);
    let (digest, size, etag, last_modified) = match answer {
        Ok(Downloaded::NotModified) => return Ok(None),
        Ok(Downloaded::Cancelled) => return Err(HttpError::Cancelled),
        Ok(Downloaded::File { digest, size, etag, last_modified, disposition: _ }) => {
            (digest, size, etag, last_modified)
        }
        Err(source) => return Err(HttpError::Download { url: shown, source }),
    };
    let content = content_of(&mut file, size).map_err(HttpError::io("read", &path))?;
    settle(&file, last_modified.as_deref()).map_err(HttpError::io("write", &path))?;
    let place =
        blake3::hash(format!("{:?}", (&wanted.name, digest, &last_modified)).as_bytes()).to_hex().to_string();
    let target = store.area("downloads/files").join(&place);
    let name = wanted.name.clone();
    let record = Record { digest, content, size, etag, last_modified, place, name };
    // Another URL may have brought the same file, and somebody may be reading it.
    if target.exists() && !is_whole(options, &record, &wanted.name) {
        let damaged = store.temp_dir("damaged")?;
        fs::rename(&target, damaged.path().join("file")).map_err(HttpError::io("replace", &target))?;
    }
    store.rename_into(temp, &target)?;
    Ok(Some(record))
}

fn content_of(file: &mut File, size: u64) -> io::Result<ContentDigest> {
    use std::io::Seek;
    file.rewind()?;
    let mut hasher = blake3::Hasher::new();
    hash(file, size, &mut hasher)?;
    Ok(hasher.finalize().into())
}

/// Mode 0600, as with Docker and BuildKit; the time that the server has for it, else the epoch.
fn settle(file: &File, last_modified: Option<&str>) -> io::Result<()> {
    file.set_permissions(fs::Permissions::from_mode(0o600))?;
    let seconds = last_modified.and_then(parse_http_date).unwrap_or(0);
    let time = Timespec { tv_sec: seconds, tv_nsec: 0 };
    rustix::fs::futimens(file, &Timestamps { last_access: time, last_modification: time })?;
    Ok(())
}

/// BuildKit's secrets: a whole header, or a token, of the URL's host. With both, BuildKit sends the token.
fn authorization(options: &RemoteOptions, url: &str) -> Result<Option<String>, SecretError> {
    let Some(host) = host_of(url) else { return Ok(None) };
    for (prefix, scheme) in [("HTTP_AUTH_TOKEN_", "Bearer "), ("HTTP_AUTH_HEADER_", "")] {
        if let Some(secret) = options.secrets.get(&format!("{prefix}{host}"))? {
            let secret = String::from_utf8_lossy(&secret);
            return Ok(Some(format!("{scheme}{}", secret.trim_end_matches(['\n', '\r']))));
        }
    }
    Ok(None)
}

fn host_of(url: &str) -> Option<&str> {
    let (_, rest) = url.split_once("://")?;
    let authority = &rest[..rest.find(['/', '?', '#']).unwrap_or(rest.len())];
    let place = authority.rsplit_once('@').map_or(authority, |(_, place)| place);
    match place.strip_prefix('[') {
        Some(v6) => v6.split_once(']').map(|(host, _)| host),
        None => Some(place.split_once(':').map_or(place, |(host, _)| host)),
    }
}

/// A date of HTTP in its one preferred form, `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110, section 5.6.7), in Unix seconds.
fn parse_http_date(text: &str) -> Option<i64> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let mut words = text.split_once(", ")?.1.split(' ');
    let (day, month, year) = (words.next()?, words.next()?, words.next()?);
    let mut clock = words.next()?.split(':');
    if words.next() != Some("GMT") {
        return None;
    }
    let mut number = || clock.next()?.parse::<u8>().ok().map(i64::from);
    let (hours, minutes, seconds) = (number()?, number()?, number()?);
    let month = MONTHS.iter().position(|name| *name == month)? as i64 + 1;
    let (day, year): (i64, i64) = (day.parse::<u8>().ok()?.into(), year.parse::<u16>().ok()?.into());
    if !(1..=31).contains(&day) || hours > 23 || minutes > 59 || seconds > 60 {
        return None;
    }
    Some(days_since_epoch(year, month, day) * 86_400 + hours * 3600 + minutes * 60 + seconds)
}

/// Days from 1970-01-01 to a date of the Gregorian calendar; years begin in March, so that leap days end them.
fn days_since_epoch(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let months = (month + 9) % 12;
    let days_of_year = (153 * months + 2) / 5 + day - 1;
    year * 365 + year / 4 - year / 100 + year / 400 + days_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_of_http_are_read() {
        for (text, expected) in [
            ("Thu, 01 Jan 1970 00:00:00 GMT", Some(0)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(784_111_777)),
            ("Thu, 29 Feb 2024 23:59:59 GMT", Some(1_709_251_199)),
            ("Sat, 01 Mar 2025 00:00:00 GMT", Some(1_740_787_200)),
            ("Sunday, 06-Nov-94 08:49:37 GMT", None),
            ("yesterday", None),
            ("Sun, 32 Nov 1994 08:49:37 GMT", None),
        ] {
            assert_eq!(parse_http_date(text), expected, "{text}");
        }
    }

    #[test]
    fn hosts_are_without_user_and_port() {
        for (url, host) in
            [("https://u:p@h.example:8/x@y", "h.example"), ("http://[::1]:8/", "::1"), ("http://h?x", "h")]
        {
            assert_eq!(host_of(url), Some(host), "{url}");
        }
    }
}
