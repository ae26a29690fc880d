//! Certificates made by openssl for a test.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// An authority and what it has signed, in a directory of its own.
pub struct Authority {
    directory: PathBuf,
}

/// A certificate and its key.
pub struct Signed {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Authority {
    /// `None` where openssl is not installed.
    pub fn new(directory: &Path) -> Option<Self> {
        fs::create_dir_all(directory).expect("created");
        let authority = Self { directory: directory.to_owned() };
        let subject = format!("/CN={}", directory.file_name()?.display());
        let made = authority.openssl(&[
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
            "-subj",
            &subject,
            "-addext",
            "keyUsage=critical,keyCertSign",
            "-keyout",
            "ca.key",
            "-out",
            "ca.crt",
        ]);
        made.then_some(authority)
    }

    pub fn certificate(&self) -> PathBuf {
        self.directory.join("ca.crt")
    }

    /// Signs a certificate for these names, `IP:…` and `DNS:…`, or for a client.
    pub fn sign(&self, name: &str, names: &str) -> Signed {
        let (key, request, certificate) =
            (format!("{name}.key"), format!("{name}.csr"), format!("{name}.cert"));
        let usage = if names.is_empty() {
            "clientAuth".to_owned()
        } else {
            format!("serverAuth\nsubjectAltName={names}")
        };
        let extensions = self.directory.join(format!("{name}.ext"));
        fs::write(&extensions, format!("basicConstraints=CA:FALSE\nextendedKeyUsage={usage}\n"))
            .expect("written");
        let (subject, extensions) = (format!("/CN={name}"), extensions.display().to_string());
        assert!(self.openssl(&[
            "req",
            "-new",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-subj",
            &subject,
            "-keyout",
            &key,
            "-out",
            &request,
        ]));
        assert!(self.openssl(&[
            "x509",
            "-req",
            "-in",
            &request,
            "-CA",
            "ca.crt",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-days",
            "2",
            "-extfile",
            &extensions,
            "-out",
            &certificate,
        ]));
        Signed { certificate: self.directory.join(certificate), key: self.directory.join(key) }
    }

    fn openssl(&self, arguments: &[&str]) -> bool {
        let mut command = Command::new("openssl");
        command.args(arguments).current_dir(&self.directory).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    }
}
