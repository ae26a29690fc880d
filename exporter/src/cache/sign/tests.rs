use std::{
    fs,
    os::unix::fs::PermissionsExt,
    process::{Command, Stdio},
};

use super::*;

/// `openssl genpkey -algorithm ed25519`, and its public half.
pub(crate) const PRIVATE: &str = "-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g
-----END PRIVATE KEY-----
";
const PUBLIC: &str = "-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=
-----END PUBLIC KEY-----
";

struct Ground(tempfile::TempDir);

impl Ground {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("made"))
    }

    fn file(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, text).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("its owner's");
        path
    }
}

pub(crate) fn pair() -> (SignKey, TrustKeys) {
    let ground = Ground::new();
    let key = SignKey::read(&ground.file("key", PRIVATE)).expect("a key");
    (key, TrustKeys::read(&[ground.file("pub", PUBLIC)]).expect("a key"))
}

#[test]
fn a_signature_is_for_one_document_of_one_kind_by_one_key() {
    let (key, trusted) = pair();
    assert_eq!(key.trusted(), trusted);
    let signature = key.sign(ArtifactKind::Record, b"document");
    assert_eq!(signature.len(), 64);
    let verify = |keys: &TrustKeys, kind, document: &[u8], signature: &[u8]| {
        keys.verify(kind, document, Some(signature))
    };
    assert!(verify(&trusted, ArtifactKind::Record, b"document", &signature));
    assert!(!verify(&trusted, ArtifactKind::Bundle, b"document", &signature));
    assert!(!verify(&trusted, ArtifactKind::Record, b"documenT", &signature));
    assert!(!verify(&trusted, ArtifactKind::Record, b"document", &signature[..63]));
    assert!(!verify(&trusted, ArtifactKind::Record, b"document", &[0; 64]));
    assert!(!trusted.verify(ArtifactKind::Record, b"document", None));
    let other = TrustKeys { keys: vec![[7; 32]] };
    assert!(!verify(&other, ArtifactKind::Record, b"document", &signature));
    let both = TrustKeys { keys: [other.keys, trusted.keys].concat() };
    assert!(verify(&both, ArtifactKind::Record, b"document", &signature));
}

#[test]
fn no_flipped_bit_of_a_signature_is_good() {
    let (key, trusted) = pair();
    let signature = key.sign(ArtifactKind::Record, b"document");
    for bit in 0..signature.len() * 8 {
        let mut flipped = signature.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(!trusted.verify(ArtifactKind::Record, b"document", Some(&flipped)), "bit {bit}");
    }
}

#[test]
fn without_a_trust_key_everybody_is_believed() {
    let nobody = TrustKeys::default();
    assert!(nobody.is_empty());
    assert!(nobody.verify(ArtifactKind::Record, b"document", None));
    assert!(nobody.verify(ArtifactKind::Record, b"document", Some(b"nonsense")));
}

#[test]
fn a_private_key_that_others_can_read_is_warned_of() {
    let ground = Ground::new();
    let path = ground.file("key", PRIVATE);
    assert_eq!(SignKey::read(&path).expect("a key").warning(), None);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("shown to a group");
    let key = SignKey::read(&path).expect("a key");
    let shown = path.display();
    let wanted = format!("others can read the private key {shown} (mode 0640): chmod 600 {shown}");
    assert_eq!(key.warning(), Some(wanted.as_str()));
}

#[test]
fn what_is_no_key_is_told_with_the_command_that_makes_one() {
    let begun = |text: &str| text.replace("-----END", "");
    let labelled = |label: &str| PRIVATE.replace("PRIVATE KEY", label);
    // The algorithm is X25519, of which RFC 8410 has the number before.
    let exchange = "MC4CAQAwBQYDK2VuBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g";
    let cases = [
        (String::new(), "it is empty"),
        ("key".to_owned(), "it does not begin with -----BEGIN PRIVATE KEY-----"),
        (format!("# mine\n{PRIVATE}"), "it does not begin with -----BEGIN PRIVATE KEY-----"),
        (PUBLIC.to_owned(), "it holds a public key"),
        (labelled("ENCRYPTED PRIVATE KEY"), "it is encrypted"),
        (labelled("OPENSSH PRIVATE KEY"), "it is a key of OpenSSH"),
        (labelled("EC PRIVATE KEY"), "it is of type \"EC PRIVATE KEY\""),
        (begun(PRIVATE), "it has no line -----END PRIVATE KEY-----"),
        (format!("{PRIVATE}{PRIVATE}"), "something follows its end"),
        (PRIVATE.replace("MC4C", "MC4!"), "it is not base64"),
        (PRIVATE.replace("MC4C", "MC4"), "it is not base64"),
        (PRIVATE.replace("MC4C", "MC4D"), "its key is not an Ed25519 key"),
        (
            format!("-----BEGIN PRIVATE KEY-----\n{exchange}\n-----END PRIVATE KEY-----\n"),
            "its key is not an Ed25519 key",
        ),
    ];
    let ground = Ground::new();
    for (text, wanted) in cases {
        let path = ground.file("key", &text);
        let error = SignKey::read(&path).expect_err(wanted);
        let shown = path.display();
        let wanted = format!("{shown} is no Ed25519 private key in PEM: {wanted}");
        assert!(error.to_string().starts_with(&wanted), "{error}");
        assert!(error.hint().is_some_and(|hint| hint.starts_with("openssl genpkey -algorithm ed25519 ")));
    }
    let path = ground.file("pub", PRIVATE);
    let error = TrustKeys::read(std::slice::from_ref(&path)).expect_err("private");
    let shown = path.display();
    assert_eq!(error.to_string(), format!("{shown} is no Ed25519 public key in PEM: it holds a private key"));
    assert!(error.hint().is_some_and(|hint| hint.starts_with("openssl pkey -in KEY.pem -pubout ")));
    let error = SignKey::read(&ground.0.path().join("none")).expect_err("no file");
    assert!(error.to_string().starts_with("cannot read the key ") && error.hint().is_none(), "{error}");
}

#[test]
fn lines_may_end_as_windows_ends_them_and_be_empty_around_the_block() {
    let ground = Ground::new();
    let text = format!("\n{}\n\n", PUBLIC.replace('\n', "\r\n"));
    assert_eq!(TrustKeys::read(&[ground.file("pub", text)]).expect("a key"), pair().1);
}

#[test]
fn openssl_makes_our_keys_and_verifies_our_signatures() {
    let ground = Ground::new();
    let openssl = |arguments: &[&str]| {
        let run = Command::new("openssl")
            .args(arguments)
            .current_dir(ground.0.path())
            .stdout(Stdio::null())
            .status();
        run.map(|status| assert!(status.success(), "{arguments:?}"))
    };
    if let Err(error) = openssl(&["genpkey", "-algorithm", "ed25519", "-out", "key"]) {
        eprintln!("SKIPPED: there is no openssl: {error}");
        return;
    }
    openssl(&["pkey", "-in", "key", "-pubout", "-out", "pub"]).expect("it ran before");
    let key = SignKey::read(&ground.0.path().join("key")).expect("a key");
    assert_eq!(TrustKeys::read(&[ground.0.path().join("pub")]).expect("a key"), key.trusted());
    ground.file("message", [&b"layerwright cache record\0\x01\0\0\0"[..], b"document"].concat());
    ground.file("signature", key.sign(ArtifactKind::Record, b"document"));
    let verify = [
        "pkeyutl",
        "-verify",
        "-pubin",
        "-inkey",
        "pub",
        "-rawin",
        "-in",
        "message",
        "-sigfile",
        "signature",
    ];
    openssl(&verify).expect("it ran before");
}
