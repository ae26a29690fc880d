//! Directories of certificates, one for each host: `certs.d` of Docker, containerd and the containers tools
//! (containers-certs.d(5), and "Verify repository client with certificates" of Docker's documentation).

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{Identity, document::HostsError};

/// What a directory holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Certificates {
    /// `*.crt`
    pub ca_files: Vec<PathBuf>,
    /// `*.cert` with the `*.key` of the same name.
    pub identity: Option<Identity>,
}

/// The certificates for a host that has several names, from the first directory that there is.
pub(super) fn find(places: &[PathBuf], names: &[String]) -> Result<Certificates, HostsError> {
    for place in places {
        for name in names {
            let directory = place.join(name);
            match fs::read_dir(&directory) {
                // A place that we may not look into has nothing that is meant for us.
                Err(error) if is_absent(&error) => {}
                Err(source) => return Err(HostsError::Read { path: directory, source }),
                Ok(entries) => return read(&directory, entries),
            }
        }
    }
    Ok(Certificates::default())
}

fn is_absent(error: &io::Error) -> bool {
    use io::ErrorKind::{NotADirectory, NotFound, PermissionDenied};
    matches!(error.kind(), NotFound | NotADirectory | PermissionDenied)
}

fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|found| found == extension)
}

fn read(directory: &Path, entries: fs::ReadDir) -> Result<Certificates, HostsError> {
    let paths: io::Result<Vec<PathBuf>> = entries.map(|entry| Ok(entry?.path())).collect();
    let mut paths = paths.map_err(|source| HostsError::Read { path: directory.to_owned(), source })?;
    paths.sort();
    let with =
        |extension: &'static str| paths.iter().filter(move |path| has_extension(path, extension)).cloned();
    let wrong = |path: &Path, reason: String| HostsError::Certificates { path: path.to_owned(), reason };
    let mut found = Certificates { ca_files: with("crt").collect(), identity: None };
    for certificate in with("cert") {
        let key = certificate.with_extension("key");
        if !paths.contains(&key) {
            return Err(wrong(&certificate, format!("its key {} is not there", key.display())));
        }
        if found.identity.is_some() {
            return Err(wrong(&certificate, "it is the second client certificate for this host".to_owned()));
        }
        found.identity = Some(Identity { certificate, key });
    }
    match with("key").find(|key| !paths.contains(&key.with_extension("cert"))) {
        Some(key) => {
            let certificate = key.with_extension("cert");
            Err(wrong(&key, format!("its certificate {} is not there", certificate.display())))
        }
        None => Ok(found),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_are_told_apart_by_their_names() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let at = |name: &str| root.path().join(name);
        for name in
            ["1/a:5000/b.crt", "1/a:5000/a.crt", "1/a:5000/c.cert", "1/a:5000/c.key", "1/a:5000/README"]
        {
            fs::create_dir_all(at(name).parent().expect("it has one")).expect("created");
            fs::write(at(name), "").expect("written");
        }
        for name in [
            "2/a:5000/z.crt",
            "2/b/x.cert",
            "2/c/x.key",
            "2/d/x.cert",
            "2/d/x.key",
            "2/d/y.cert",
            "2/d/y.key",
        ] {
            fs::create_dir_all(at(name).parent().expect("it has one")).expect("created");
            fs::write(at(name), "").expect("written");
        }
        let find = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            find(&[at("0"), at("1"), at("2")], &names).map_err(|error| error.to_string())
        };
        let identity = Identity { certificate: at("1/a:5000/c.cert"), key: at("1/a:5000/c.key") };
        let want = Certificates {
            ca_files: vec![at("1/a:5000/a.crt"), at("1/a:5000/b.crt")],
            identity: Some(identity),
        };
        assert_eq!(find(&["a", "a:5000"]), Ok(want));
        assert_eq!(find(&["a"]), Ok(Certificates::default()));
        for (name, want) in [
            ("b", "2/b/x.cert: its key "),
            ("c", "2/c/x.key: its certificate "),
            ("d", "2/d/y.cert: it is the second client certificate"),
        ] {
            let error = find(&[name]).expect_err(name);
            assert!(error.contains(want), "{error}");
        }
    }
}
