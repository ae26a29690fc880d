//! Tokens, passwords and helpers; and who must not see them.

use std::sync::{Arc, Mutex};

use oci::{Registry, Sha256Digest, registry::Pushed};

use super::{
    blob,
    common::{
        DockerRegistry, client,
        fault::{Reply, Request, Server, status},
        layer, login, noise, push, push_mounting, read, reference, told, write_config,
    },
    first, pull,
};

/// A token service and a registry behind it: every token is good for a number of requests.
struct TokenRegistry {
    upstream: String,
    uses: usize,
    left: Mutex<Vec<(String, usize)>>,
}

impl TokenRegistry {
    fn rule(self, own: &str) -> impl Fn(&Request) -> Reply + Send + Sync + use<> {
        let realm = format!("http://{own}/token");
        move |request| {
            if request.path.starts_with("/token") {
                return self.issue(request);
            }
            if self.admits(request) {
                return if self.upstream.is_empty() { blob(request, b"layer") } else { Reply::Forward };
            }
            let challenge = format!(r#"Bearer realm="{realm}",service="test",scope="repository:asked:pull""#);
            status(401, &[("WWW-Authenticate", &challenge)], "")
        }
    }

    fn issue(&self, request: &Request) -> Reply {
        let mut left = self.left.lock().expect("nobody panics");
        let token = format!("token-{}", left.len());
        left.push((format!("Bearer {token}"), self.uses));
        let password = request.header("authorization") == Some("Basic YWxpY2U6cHc=");
        let form = String::from_utf8_lossy(&request.body);
        let identity =
            form.contains("grant_type=refresh_token") && form.contains("refresh_token=identity%2Btoken");
        match (request.method.as_str(), password, identity) {
            ("GET", true, _) => status(200, &[], format!(r#"{{"token":"{token}","expires_in":300}}"#)),
            ("POST", _, true) => status(200, &[], format!(r#"{{"access_token":"{token}"}}"#)),
            _ => status(401, &[], r#"{"errors":[{"code":"UNAUTHORIZED","message":"wrong password"}]}"#),
        }
    }

    fn admits(&self, request: &Request) -> bool {
        let mut left = self.left.lock().expect("nobody panics");
        let token = left
            .iter_mut()
            .find(|(token, uses)| Some(token.as_str()) == request.header("authorization") && *uses > 0);
        token.map(|(_, uses)| *uses -= 1).is_some()
    }

    fn start(upstream: &str, uses: usize) -> Server {
        let registry = Self { upstream: upstream.to_owned(), uses, left: Mutex::default() };
        Server::knowing_itself(upstream, |own| registry.rule(own))
    }
}

fn alice(server: &Server) -> (tempfile::TempDir, Registry) {
    let home = tempfile::tempdir().expect("tempdir");
    let file = login(home.path(), &server.address, "alice", "pw");
    (home, client(vec![file]))
}

#[test]
fn a_token_is_fetched_once_for_what_is_needed_and_kept() {
    let server = TokenRegistry::start("", usize::MAX);
    let (_home, registry) = alice(&server);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| assert_eq!(pull(&registry, &server, b"layer"), Ok(b"layer".to_vec())));
        }
    });
    let tokens: Vec<_> = server.lines().into_iter().filter(|line| line.contains("/token")).collect();
    assert_eq!(
        tokens,
        ["GET /token?service=test&scope=repository%3Aapp%3Apull&scope=repository%3Aasked%3Apull"]
    );
}

#[test]
fn a_token_that_ends_in_the_middle_of_a_push_is_replaced() {
    let Some(upstream) = DockerRegistry::start() else { return };
    // Good for the HEAD and the POST: the PUT that carries the blob is refused, and sent again.
    let server = TokenRegistry::start(&upstream.address, 2);
    let (_home, registry) = alice(&server);
    let (app, content) = (reference(&server.address, "app"), noise(3 << 20));
    assert_eq!(push(&registry, &app, &content).expect("pushed"), Pushed::Uploaded);
    assert_eq!((server.count("PUT", "/uploads/"), server.count("POST", "/uploads/")), (2, 1));
    assert_eq!(read(registry.pull_blob(&app, &layer(&content)).expect("there")).expect("whole"), content);
}

#[test]
fn a_mount_asks_for_both_repositories_in_one_token() {
    let Some(upstream) = DockerRegistry::start() else { return };
    let server = TokenRegistry::start(&upstream.address, usize::MAX);
    let (_home, registry) = alice(&server);
    let (source, target) = (reference(&server.address, "source"), reference(&server.address, "target"));
    push(&registry, &source, b"layer").expect("pushed");
    assert_eq!(push_mounting(&registry, &target, b"layer", Some(&source)).expect("pushed"), Pushed::Mounted);
    let both = "scope=repository%3Asource%3Apull&scope=repository%3Atarget%3Apull%2Cpush";
    assert_eq!(server.count("GET", both), 1, "{:?}", server.lines());
}

#[test]
fn an_identity_token_is_traded_for_a_bearer_token() {
    let server = TokenRegistry::start("", usize::MAX);
    let home = tempfile::tempdir().expect("tempdir");
    let entry = format!(r#"{{"auths":{{"{}":{{"identitytoken":"identity+token"}}}}}}"#, server.address);
    let registry = client(vec![write_config(home.path(), &entry)]);
    assert_eq!(pull(&registry, &server, b"layer"), Ok(b"layer".to_vec()));
    let posted = server.requests().into_iter().find(|request| request.method == "POST").expect("traded");
    let form = String::from_utf8(posted.body).expect("a form");
    assert!(form.contains(
        "service=test&client_id=layerwright&scope=repository%3Aapp%3Apull+repository%3Aasked%3Apull"
    ));
}

#[test]
fn a_wrong_password_is_refused_by_the_token_service_and_not_shown() {
    let server = TokenRegistry::start("", usize::MAX);
    let home = tempfile::tempdir().expect("tempdir");
    let registry = client(vec![login(home.path(), &server.address, "alice", "wr0ng-pw")]);
    let error = pull(&registry, &server, b"layer").expect_err("wrong password");
    assert!(error.contains("is denied: UNAUTHORIZED wrong password") && !error.contains("wr0ng"), "{error}");
    let file = home.path().join("config.json");
    assert!(error.contains(&format!("the credentials from {} were sent", file.display())), "{error}");
    let error = pull(&client(vec![]), &server, b"layer").expect_err("no password");
    let none = format!("no credentials were sent: log in with `layerwright login {}`", server.address);
    assert!(error.contains(&none), "{error}");
}

/// What another host than the registry has seen of us.
fn secrets(server: &Server) -> Vec<String> {
    let seen = server.requests();
    seen.iter().filter(|request| request.header("authorization").is_some()).map(Request::line).collect()
}

/// A registry that wants alice's password, and then answers as the test says.
fn guarded(rule: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Server {
    Server::start(move |request| match request.header("authorization") {
        Some("Basic YWxpY2U6cHc=") => rule(request),
        _ => status(401, &[("WWW-Authenticate", "Basic realm=\"test\"")], ""),
    })
}

#[test]
fn no_credentials_follow_a_redirect_to_another_host() {
    for code in [301, 302, 303, 307, 308] {
        let storage = Arc::new(Server::start(|request| blob(request, b"layer")));
        let to = storage.address.clone();
        let server = guarded(move |_| {
            status(code, &[("Location", &format!("http://user:pass@{to}/somewhere?signature=abc"))], "")
        });
        let (_home, registry) = alice(&server);
        assert_eq!(pull(&registry, &server, b"layer"), Ok(b"layer".to_vec()), "{code}");
        assert_eq!(storage.lines(), ["GET /somewhere?signature=abc"]);
        assert_eq!(secrets(&storage), Vec::<String>::new(), "{code}");
        assert!(!secrets(&server).is_empty());
    }
}

#[test]
fn credentials_are_not_taken_up_again_on_the_way_back() {
    let back = Arc::new(Mutex::new(String::new()));
    let (home, bounced) = (back.clone(), first(1, |_| true));
    let elsewhere = Server::start(move |_| {
        status(307, &[("Location", &format!("http://{}/back", home.lock().expect("nobody panics")))], "")
    });
    let to = elsewhere.address.clone();
    let server =
        Server::start(move |request| match (request.path.as_str(), request.header("authorization")) {
            ("/back", _) => blob(request, b"layer"),
            ("/v2/", _) => status(200, &[], ""),
            (_, None) => status(401, &[("WWW-Authenticate", "Basic")], ""),
            _ if bounced(request) => status(307, &[("Location", &format!("http://{to}/there"))], ""),
            _ => status(500, &[], ""),
        });
    server.address.clone_into(&mut back.lock().expect("nobody panics"));
    let (_home, registry) = alice(&server);
    assert_eq!(pull(&registry, &server, b"layer"), Ok(b"layer".to_vec()));
    assert!(secrets(&server).iter().all(|line| !line.contains("/back")));
    assert_eq!(secrets(&elsewhere), Vec::<String>::new());
}

#[test]
fn redirects_that_lead_nowhere_are_refused() {
    let loops = Server::start(|request| match request.path.as_str() {
        "/v2/" => status(200, &[], ""),
        path => status(307, &[("Location", path)], ""),
    });
    let error = pull(&client(vec![]), &loops, b"layer").expect_err("for ever");
    assert!(error.contains("too many redirects"), "{error}");
    // It may be a hiccup: asked again a few times, eleven requests each.
    let asked = loops.requests().len();
    assert!(asked.is_multiple_of(11) && asked <= 11 * 8, "{asked}");
    for (location, want) in [
        (
            "http://user:pw@registry.example.com/x?key=1",
            "plain HTTP is spoken only to loopback and insecure hosts",
        ),
        ("ftp://127.0.0.1/x", "only HTTP is followed"),
        ("file:///etc/passwd", "Location is not a URL of a host"),
    ] {
        let server = Server::start(move |request| match request.path.as_str() {
            "/v2/" => status(200, &[], ""),
            _ => status(307, &[("Location", location)], ""),
        });
        let error = pull(&client(vec![]), &server, b"layer").expect_err(want);
        assert!(error.contains(want) && !error.contains("pw") && !error.contains("key"), "{error}");
    }
}

#[test]
fn an_upload_to_another_host_carries_no_credentials() {
    let storage = Arc::new(Server::start(|_| status(201, &[], "")));
    let to = storage.address.clone();
    let server = guarded(move |request| match request.method.as_str() {
        "HEAD" => status(404, &[], ""),
        _ => status(202, &[("Location", &format!("http://{to}/upload?state=1"))], ""),
    });
    let (_home, registry) = alice(&server);
    let pushed = push(&registry, &reference(&server.address, "app"), b"layer").expect("pushed");
    assert_eq!(pushed, Pushed::Uploaded);
    assert_eq!(
        storage.lines(),
        [format!("PUT /upload?state=1&digest={}", Sha256Digest::of(b"layer"))
            .replace("sha256:", "sha256%3A")]
    );
    assert_eq!(storage.requests()[0].body, b"layer");
    assert_eq!(secrets(&storage), Vec::<String>::new());
}

#[test]
fn a_realm_of_somebody_else_sees_no_credentials() {
    for (realm, want) in [
        ("https://auth.evil.example/token", "somebody else's host"),
        ("http://auth.evil.example/token", "that is not HTTPS"),
        ("https://169.254.169.254/latest", "inside a private network"),
        ("http://user:pw@169.254.169.254/latest", "that is not HTTPS"),
        ("ftp://127.0.0.1/", "only HTTP is spoken"),
        ("not a url", "is not a URL"),
    ] {
        let server = Server::start(move |_| {
            status(401, &[("WWW-Authenticate", &format!(r#"Bearer realm="{realm}",service="x""#))], "")
        });
        let (_home, registry) = alice(&server);
        let error = pull(&registry, &server, b"layer").expect_err(want);
        assert!(error.contains(want) && !error.contains("pw"), "{realm}: {error}");
    }
}

#[test]
fn a_redirected_token_request_shows_nothing_to_where_it_leads() {
    let elsewhere = Server::start(|_| status(200, &[], r#"{"token":"t"}"#));
    let to = elsewhere.address.clone();
    let server = Server::knowing_itself("", |own| {
        let realm = format!("http://{own}/token");
        move |request: &Request| match request.path.starts_with("/token") {
            true => status(307, &[("Location", &format!("http://{to}/token"))], ""),
            false => status(401, &[("WWW-Authenticate", &format!(r#"Bearer realm="{realm}""#))], ""),
        }
    });
    let (_home, registry) = alice(&server);
    pull(&registry, &server, b"layer").expect_err("no token");
    assert_eq!(secrets(&elsewhere), Vec::<String>::new());
}

/// Runs [`asks_a_helper`] in a process of its own, since `PATH` belongs to all of a process: with a helper that holds
/// alice's password.
fn with_helper(server: &Server, config: &str) -> String {
    let home = tempfile::tempdir().expect("tempdir");
    let program = home.path().join("docker-credential-vault");
    // A shell writes it: a writable descriptor of ours could be inherited by a child of another test, and the kernel
    // runs no program that somebody may write.
    let script = r#"#!/bin/sh
read server
[ "$server" = "$EXPECTED" ] || { echo credentials not found; exit 1; }
echo '{"ServerURL":"x","Username":"alice","Secret":"pw"}'"#;
    let install = r#"printf '%s\n' "$1" > "$0" && chmod 755 "$0""#;
    let status = std::process::Command::new("sh").arg("-c").arg(install).arg(&program).arg(script).status();
    assert!(status.expect("a shell").success());
    let output = std::process::Command::new(std::env::current_exe().expect("we are running"))
        .args(["--exact", "faults::auth::asks_a_helper", "--nocapture"])
        .env("PATH", format!("{}:/usr/bin:/bin", home.path().display()))
        .env("EXPECTED", &server.address)
        .env("HELPER_TEST_REGISTRY", &server.address)
        .env("DOCKER_CONFIG", write_config(home.path(), config).parent().expect("a directory"))
        .output()
        .expect("our own binary starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().find_map(|line| line.strip_prefix("result: ").map(str::to_owned)).unwrap_or(text)
}

#[test]
fn asks_a_helper() {
    let Ok(address) = std::env::var("HELPER_TEST_REGISTRY") else { return };
    let checked = client(vec![]).has_blob(&reference(&address, "app"), &Sha256Digest::of(b"layer"));
    let result = checked.map_or_else(|error| told(&error), |found| found.to_string());
    std::io::Write::write_all(&mut std::io::stdout(), format!("\nresult: {result}\n").as_bytes())
        .expect("heard");
}

#[test]
fn helpers_named_for_a_registry_or_for_all_are_asked() {
    let server = guarded(|request| blob(request, b"layer"));
    let for_one = format!(r#"{{"credHelpers":{{"{}":"vault"}}}}"#, server.address);
    assert_eq!(with_helper(&server, &for_one), "true");
    assert_eq!(with_helper(&server, r#"{"credsStore":"vault"}"#), "true");
    let for_another = with_helper(&server, r#"{"credHelpers":{"other.example.com":"vault"}}"#);
    assert!(for_another.contains("is denied"), "{for_another}");
    let missing = with_helper(&server, r#"{"credsStore":"absent"}"#);
    assert!(missing.contains("\"docker-credential-absent\" of "), "{missing}");
    assert!(missing.contains("config.json is not installed"), "{missing}");
}
