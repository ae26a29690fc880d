//! The client against a real registry that takes tokens only, and the small token service that gives them: JSON Web Tokens
//! as distribution's token specification has them, signed with a key whose certificate the registry trusts.

use std::{
    io::{self, Cursor, Read},
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{
    Engine,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use oci::{
    MediaType, Registry, RegistryOptions,
    registry::{
        Limits, LoginFile, LoginName, Proof, Pushed, RegistryError, Secret, Welcome, verify, verify_kept,
    },
};
use reqwest::Url;
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair},
};
use serde_json::{Value, json};

use crate::common::{
    self, DockerRegistry, ISSUER, SERVICE, Setup, client, client_with,
    fault::{Reply, Request, Server, status},
    layer, login, push, push_mounting, read, self_signed, told, write_config,
};

/// The registry takes tokens for so long after they have expired (distribution's `token.Leeway`).
const LEEWAY: i64 = 60;

/// How tokens are made.
#[derive(Clone, Copy)]
struct Rules {
    /// How long the registry takes one.
    life: i64,
    /// How far the clock is ahead.
    ahead: i64,
    /// Whether those who ask for an identity token get one.
    gives_identity: bool,
}

const USUAL: Rules = Rules { life: 3600, ahead: 0, gives_identity: false };

/// What signs tokens.
struct Signer {
    key: EcdsaKeyPair,
    /// As the registry is to find it in each token.
    certificate: String,
}

impl Signer {
    fn new(certificate: &Path, key: &Path) -> Self {
        let der = |arguments: &[&str], path: &Path| {
            let done = Command::new("openssl").args(arguments).arg("-in").arg(path).output();
            done.expect("openssl runs").stdout
        };
        let pkcs8 = der(&["pkcs8", "-topk8", "-nocrypt", "-outform", "DER"], key);
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &pkcs8, &SystemRandom::new());
        let certificate = BASE64_STANDARD.encode(der(&["x509", "-outform", "DER"], certificate));
        Self { key: key.expect("openssl makes keys"), certificate }
    }

    fn sign(&self, claims: &Value) -> String {
        let encode = |part: &Value| BASE64_URL_SAFE_NO_PAD.encode(part.to_string());
        let header = json!({"typ": "JWT", "alg": "ES256", "x5c": [self.certificate]});
        let text = format!("{}.{}", encode(&header), encode(claims));
        let signature = self.key.sign(&SystemRandom::new(), text.as_bytes()).expect("randomness");
        format!("{text}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature))
    }
}

/// A token service and a registry that takes what it gives.
struct Site {
    service: Server,
    registry: DockerRegistry,
    /// The scopes of each token that was asked for.
    asked: Arc<Mutex<Vec<Vec<String>>>>,
    home: tempfile::TempDir,
}

impl Site {
    fn start(rules: Rules) -> Option<Self> {
        let home = tempfile::tempdir().expect("tempdir");
        let (certificate, key) = self_signed(home.path())?;
        let (signer, asked) = (Signer::new(&certificate, &key), Arc::new(Mutex::default()));
        let log = Arc::clone(&asked);
        let service = Server::start(move |request| answer(request, rules, &signer, &log));
        let realm = format!("http://{}/token", service.address);
        let setup = Setup { tokens: Some((&realm, &certificate)), ..Setup::default() };
        Some(Self { service, registry: DockerRegistry::with(&setup)?, asked, home })
    }

    /// A `config.json` with a password.
    fn login(&self, user: &str, password: &str) -> Vec<PathBuf> {
        vec![login(self.home.path(), &self.registry.address, user, password)]
    }

    fn asked(&self) -> Vec<Vec<String>> {
        self.asked.lock().expect("nobody panics").clone()
    }
}

/// alice may everything, bob may read, everybody may read what is public.
fn may(user: Option<&str>, repository: &str, action: &str) -> bool {
    match user {
        Some("alice") => true,
        Some(_) => action == "pull",
        None => action == "pull" && repository.starts_with("public/"),
    }
}

/// What the token service says.
fn answer(request: &Request, rules: Rules, signer: &Signer, log: &Mutex<Vec<Vec<String>>>) -> Reply {
    let posted = String::from_utf8_lossy(&request.body);
    let query = match request.method.as_str() {
        "POST" => format!("http://x/?{posted}"),
        _ => format!("http://x{}", request.path),
    };
    let asked: Vec<(String, String)> =
        Url::parse(&query).expect("a query").query_pairs().into_owned().collect();
    let values = |name: &str| -> Vec<String> {
        asked.iter().filter(|(own, _)| own == name).map(|(_, value)| value.clone()).collect()
    };
    let user = match (request.header("authorization"), values("refresh_token").first().map(String::as_str)) {
        (None, None) => None,
        (Some("Basic YWxpY2U6cGFzc3dvcmQ="), None) | (None, Some("alices-identity")) => Some("alice"),
        (Some("Basic Ym9iOnBhc3N3b3Jk"), None) => Some("bob"),
        _ => {
            let body = r#"{"errors":[{"code":"UNAUTHORIZED","message":"incorrect username or password"}]}"#;
            return status(401, &[], body);
        }
    };
    assert_eq!(values("service"), [SERVICE]);
    let scopes: Vec<String> =
        values("scope").iter().flat_map(|scope| scope.split(' ')).map(str::to_owned).collect();
    log.lock().expect("nobody panics").push(scopes.clone());
    let now =
        SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs() as i64 + rules.ahead;
    let access: Vec<Value> = scopes.iter().map(|scope| granted(user, scope)).collect();
    let token = signer.sign(&json!({
        "iss": ISSUER, "sub": user.unwrap_or_default(), "aud": SERVICE, "jti": log.lock().expect("fine").len().to_string(),
        "iat": now, "nbf": now, "exp": now + rules.life - LEEWAY, "access": access,
    }));
    let mut answer = json!({"token": token, "expires_in": 300, "issued_at": issued_at(now)});
    if rules.gives_identity && values("offline_token") == ["true"] {
        answer["refresh_token"] = json!("alices-identity");
    }
    status(200, &[], answer.to_string())
}

fn granted(user: Option<&str>, scope: &str) -> Value {
    let [kind, name, actions] = scope.split(':').collect::<Vec<_>>()[..] else {
        panic!("{scope} is no scope")
    };
    let allowed: Vec<&str> = actions.split(',').filter(|action| may(user, name, action)).collect();
    json!({"type": kind, "name": name, "actions": allowed})
}

/// RFC 3339, by a program that knows calendars.
fn issued_at(seconds: i64) -> String {
    let done =
        Command::new("date").args(["-u", "+%Y-%m-%dT%H:%M:%SZ", "-d", &format!("@{seconds}")]).output();
    String::from_utf8(done.expect("date runs").stdout).expect("text").trim().to_owned()
}

const MANIFEST: &[u8] =
    br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#;

#[test]
fn images_are_pushed_mounted_and_pulled_with_tokens() {
    let Some(site) = Site::start(USUAL) else { return };
    let alice = client(site.login("alice", "password"));
    let (source, target) =
        (site.registry.reference("team/source"), site.registry.reference("team/target:v1"));
    alice.check_push(&source).expect("she may");
    assert_eq!(push(&alice, &source, b"layer").expect("pushed"), Pushed::Uploaded);
    assert_eq!(push_mounting(&alice, &target, b"layer", Some(&source)).expect("mounted"), Pushed::Mounted);
    alice.push_manifest(&target, &MediaType::OciIndex, MANIFEST).expect("pushed");
    assert_eq!(alice.manifest(&target).expect("there").bytes, MANIFEST);
    assert_eq!(read(alice.pull_blob(&target, &layer(b"layer")).expect("there")).expect("whole"), b"layer");
    // One token for each kind of request, however many there are; the mount's is for both repositories.
    // Distribution wants a right of its own for ending the session that the check has begun.
    let want: [&[&str]; 5] = [
        &["repository:team/source:pull,push"],
        &["repository:team/source:pull,push", "repository:team/source:delete"],
        &["repository:team/target:pull,push"],
        &["repository:team/source:pull", "repository:team/target:pull,push"],
        &["repository:team/target:pull"],
    ];
    assert_eq!(
        site.asked(),
        want.map(|scopes| scopes.iter().map(|scope| scope.to_string()).collect::<Vec<_>>())
    );
}

#[test]
fn to_delete_is_a_right_of_its_own() {
    let Some(site) = Site::start(USUAL) else { return };
    let app = site.registry.reference("team/app:v1");
    let push = |registry: &Registry| registry.push_manifest(&app, &MediaType::OciIndex, MANIFEST);
    let alice = client(site.login("alice", "password"));
    let digest = push(&alice).expect("pushed").digest;
    assert!(alice.delete(&app, &digest).expect("deleted"));
    assert_eq!(site.asked().last().expect("asked"), &["repository:team/app:delete"]);
    assert_eq!(alice.tags(&app).expect("answers"), [""; 0]);
    push(&alice).expect("pushed");
    let bob = client(site.login("bob", "password"));
    let refused = bob.delete(&app, &digest).expect_err("he may only read");
    assert!(matches!(refused, RegistryError::Denied { .. }), "{refused}");
    assert_eq!(bob.tags(&app).expect("answers"), ["v1"]);
}

/// Waits as long as a slow compressor would before it gives its bytes.
struct Slow(Cursor<Vec<u8>>, Duration);

impl Read for Slow {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        thread::sleep(std::mem::take(&mut self.1));
        self.0.read(into)
    }
}

#[test]
fn a_push_outlives_its_tokens() {
    // The service says that they last, as real ones do whose registry disagrees.
    let Some(site) = Site::start(Rules { life: 2, ..USUAL }) else { return };
    let limits = Limits { idle: Duration::from_secs(60), ..common::quick() };
    let auth_files = site.login("alice", "password");
    let alice =
        Registry::new(RegistryOptions { auth_files, limits, ..Default::default() }).expect("a client");
    let app = site.registry.reference("app:v1");
    let slow = || Ok(Box::new(Slow(Cursor::new(b"layer".to_vec()), Duration::from_millis(3100))) as Box<_>);
    let pushed = alice.push_blob(&app, &layer(b"layer"), None, &slow, &|_| {}).expect("pushed");
    assert_eq!(pushed, Pushed::Uploaded);
    assert_eq!(site.asked().len(), 1, "it was good when the upload began");
    alice.push_manifest(&app, &MediaType::OciIndex, MANIFEST).expect("pushed with a new token");
    assert_eq!(site.asked().len(), 2, "{:?}", site.asked());
    assert_eq!(alice.manifest(&app).expect("there").bytes, MANIFEST);
}

#[test]
fn an_identity_token_is_got_at_a_login_and_traded_ever_after() {
    let Some(site) = Site::start(Rules { gives_identity: true, ..USUAL }) else { return };
    let name: LoginName = site.registry.address.parse().expect("a name");
    let password = Secret::new("password".to_owned());
    let welcome = verify(RegistryOptions::default(), &name, "alice", &password).expect("she is known");
    let Welcome::Known(Proof::IdentityToken(token)) = welcome else { panic!("{welcome:?}") };
    assert_eq!(token, Secret::new("alices-identity".to_owned()));

    let file = LoginFile::choose(Some(&site.home.path().join("config.json")), &|_| None).expect("named");
    let login = oci::registry::Login { user: "alice".to_owned(), proof: Proof::IdentityToken(token) };
    file.keep(name.as_str(), &login).expect("kept");
    let kept = verify_kept(RegistryOptions::default(), &file, &name).expect("asked").expect("it is there");
    assert!(kept.refusal.is_none(), "{kept:?}");
    let alice = client(vec![file.path().to_owned()]);
    assert_eq!(push(&alice, &site.registry.reference("app"), b"layer").expect("pushed"), Pushed::Uploaded);
    assert!(site.service.count("POST", "/token") >= 2, "{:?}", site.service.lines());

    let wrong = verify(RegistryOptions::default(), &name, "alice", &Secret::new("wr0ng-one".to_owned()));
    let error = told(&wrong.expect_err("another password"));
    let want = "is denied: UNAUTHORIZED incorrect username or password; check the user name and the password";
    assert!(error.contains(want) && !error.contains("wr0ng"), "{error}");
}

#[test]
fn what_one_may_not_do_is_said_with_whoever_tried_it() {
    let Some(site) = Site::start(USUAL) else { return };
    let public = site.registry.reference("public/app");
    push(&client(site.login("alice", "password")), &public, b"layer").expect("pushed");
    let before = site.asked().len();
    let nobody = client(vec![write_config(site.home.path(), "{}")]);
    assert_eq!(read(nobody.pull_blob(&public, &layer(b"layer")).expect("public")).expect("whole"), b"layer");
    let denied = |client: &oci::Registry| {
        let error = told(&client.check_push(&public).expect_err("not allowed"));
        assert!(
            error.contains(&format!("access to {}/public/app is denied", site.registry.address)),
            "{error}"
        );
        error
    };
    let error = denied(&nobody);
    let want = format!("no credentials were sent: log in with `layerwright login {}`", site.registry.address);
    assert!(error.contains(&want), "{error}");
    let files = site.login("bob", "password");
    let error = denied(&client(files.clone()));
    let want = format!("the credentials from {} were sent", files[0].display());
    assert!(error.contains(&want) && error.contains("check what the account may do"), "{error}");
    assert_eq!(site.asked().len() - before, 3, "a token that allows nothing is not asked for again");
}

#[test]
fn a_wrong_clock_is_named() {
    for (ahead, want) in [(3600, "s ahead of that of"), (-7200, "s behind that of")] {
        let Some(site) = Site::start(Rules { ahead, ..USUAL }) else { return };
        let error = told(
            &client(site.login("alice", "password"))
                .check_push(&site.registry.reference("app"))
                .expect_err("too old or too new"),
        );
        assert!(error.contains("the clock of its token service is ") && error.contains(want), "{error}");
    }
    // What a registry says by itself.
    let behind = issued_at(0).replace("1970-01-01T00:00:00Z", "Thu, 01 Jan 2026 00:00:00 GMT");
    let server = Server::start(move |request| match request.path.as_str() {
        "/v2/" => status(200, &[], ""),
        _ => status(403, &[("Date", &behind)], ""),
    });
    let options = RegistryOptions { limits: common::quick(), ..RegistryOptions::default() };
    let refused = client_with(options)
        .has_blob(&common::reference(&server.address, "app"), &oci::Sha256Digest::of(b""));
    let error = told(&refused.expect_err("denied"));
    assert!(
        error.contains("the clock of this machine is ") && error.contains("s ahead of that of"),
        "{error}"
    );
}
