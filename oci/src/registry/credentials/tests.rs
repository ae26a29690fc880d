use super::*;

fn password(user: &str, secret: &str) -> Credential {
    Credential::Password { user: user.to_owned(), password: Secret(secret.to_owned()) }
}

fn in_file(text: &str, registry: &str, repository: &str) -> Result<Option<Credential>, String> {
    let store = CredentialStore::Sources(vec![Source::Inline(Secret(text.to_owned()))]);
    let found = store.find(registry, repository, &Leash::default()).map_err(|error| error.to_string())?;
    Ok(found.map(|found| found.credential))
}

#[test]
fn entries_are_found_by_any_of_their_names() {
    let entry = |key: &str| format!(r#"{{"auths":{{"{key}":{{"auth":"dTpw"}}}}}}"#);
    for (key, registry) in [
        ("r.example.com", "r.example.com"),
        ("https://r.example.com", "r.example.com"),
        ("https://r.example.com/v2/", "r.example.com"),
        ("r.example.com:5000", "r.example.com:5000"),
        ("https://index.docker.io/v1/", "docker.io"),
        ("docker.io", "docker.io"),
        ("r.example.com/org", "r.example.com"),
        ("r.example.com/org/app", "r.example.com"),
    ] {
        assert_eq!(in_file(&entry(key), registry, "org/app"), Ok(Some(password("u", "p"))), "{key}");
    }
    for (key, registry) in [
        ("r.example.com", "r.example.com:5000"),
        ("r.example.com", "example.com"),
        ("r.example.com/org/ap", "r.example.com"),
        ("r.example.com.evil.com", "r.example.com"),
        ("docker.io", "r.example.com"),
    ] {
        assert_eq!(in_file(&entry(key), registry, "org/app"), Ok(None), "{key}");
    }
}

#[test]
fn the_most_specific_entry_wins_and_every_form_is_read() {
    let text = r#"{"auths":{"r":{"username":"a","password":"1"},"r/org":{"auth":"Yjoy"},
        "r/org/app":{"identitytoken":"3","auth":"eDp5"},"r/org/reg":{"registrytoken":"4"},"r/empty":{}}}"#;
    let find = |repository| in_file(text, "r", repository);
    assert_eq!(find("other"), Ok(Some(password("a", "1"))));
    assert_eq!(find("org/x"), Ok(Some(password("b", "2"))));
    assert_eq!(find("org/app"), Ok(Some(Credential::IdentityToken(Secret("3".to_owned())))));
    assert_eq!(find("org/reg"), Ok(Some(Credential::RegistryToken(Secret("4".to_owned())))));
    assert_eq!(find("empty"), Ok(None));
    // Old Docker versions padded with NULs; passwords may hold colons.
    let padded = r#"{"auths":{"r":{"auth":"dTpwOnEAAA=="}}}"#;
    assert_eq!(in_file(padded, "r", "x"), Ok(Some(password("u", "p:q"))));
}

#[test]
fn the_spelling_that_logins_write_goes_before_older_ones() {
    let two = |old: &str, new: &str| {
        format!(r#"{{"auths":{{"{old}":{{"auth":"bzpw"}},"{new}":{{"auth":"bjpw"}}}}}}"#)
    };
    for (old, new, registry) in [
        ("https://r", "r", "r"),
        ("http://r/v2/", "r", "r"),
        ("a.example", "z.example", "z.example"),
        ("docker.io", "https://index.docker.io/v1/", "docker.io"),
        ("index.docker.io", "https://index.docker.io/v1/", "docker.io"),
    ] {
        assert_eq!(in_file(&two(old, new), registry, "x"), Ok(Some(password("n", "p"))), "{old}");
    }
}

#[test]
fn what_is_damaged_is_an_error_that_shows_no_secret() {
    for text in [
        r#"{"auths":{"r":"hunter2"}}"#,
        r#"{"auths":{"r":{"auth":"hunter2!"}}}"#,
        r#"{"auths":{"r":{"auth":"aHVudGVyMg=="}}}"#,
        r#"{"auths":{"r":{"auth":["hunter2"]}}}"#,
        r#"{"auths":{"r":{"auth":"hunter2"#,
    ] {
        let error = in_file(text, "r", "x").expect_err(text);
        assert!(error.contains("$DOCKER_AUTH_CONFIG") && !error.contains("hunter2"), "{error}");
    }
    assert_eq!(format!("{:?}", password("u", "hunter2")).find("hunter2"), None);
    let nulls = r#"{"auths":null,"credHelpers":null,"credsStore":null}"#;
    for nothing in ["", "{}", nulls] {
        assert_eq!(in_file(nothing, "r", "x"), Ok(None), "{nothing}");
    }
}

#[test]
fn sources_are_looked_at_in_order() {
    let home = tempfile::tempdir().expect("tempdir");
    let write = |path: &str, user: &str| {
        let path = home.path().join(path);
        fs::create_dir_all(path.parent().expect("has one")).expect("made");
        let text = format!(r#"{{"auths":{{"r":{{"username":"{user}","password":"p"}}}}}}"#);
        fs::write(path, text).expect("written");
    };
    write("settings/containers/auth.json", "xdg-config");
    write("run/containers/auth.json", "xdg");
    write(".docker/config.json", "docker");
    write("other/config.json", "docker-config");
    write("auth.json", "registry-auth-file");
    write("named.json", "named");
    let all = [
        ("XDG_CONFIG_HOME", "settings", "xdg-config"),
        ("XDG_RUNTIME_DIR", "run", "xdg"),
        ("HOME", "", "docker"),
        ("DOCKER_CONFIG", "other", "docker-config"),
        ("REGISTRY_AUTH_FILE", "auth.json", "registry-auth-file"),
    ];
    for count in 1..=all.len() {
        let environment = |name: &str| {
            let (_, path, _) = all[..count].iter().find(|(own, ..)| *own == name)?;
            Some(home.path().join(path).into_os_string())
        };
        let find = |named: &[PathBuf]| {
            let found = CredentialStore::new(named, &environment)
                .find("r", "x", &Leash::default())
                .expect("readable");
            match found.map(|found| (found.credential, found.source_name)) {
                Some((Credential::Password { user, .. }, file)) => {
                    assert!(fs::read_to_string(&file).expect("readable").contains(&user), "{file}");
                    user
                }
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(find(&[]), all[count - 1].2);
        assert_eq!(find(&[home.path().join("named.json")]), "named");
    }
    let absent =
        CredentialStore::new(&[home.path().join("absent.json")], &|_| None).find("r", "x", &Leash::default());
    assert!(matches!(absent, Err(CredentialError::Read { .. })), "a file that was named must be there");
    let below_a_file = |name: &str| (name == "HOME").then(|| "/dev/null".into());
    let found = CredentialStore::new(&[], &below_a_file).find("nobody.example", "x", &Leash::default());
    assert_eq!(found.map_err(|error| error.to_string()), Ok(None), "there can be no file");
    let nothing =
        CredentialStore::new(&[], &|_| Some("/nonexistent".into())).find("r", "x", &Leash::default());
    assert_eq!(nothing.map_err(|error| error.to_string()).err().as_deref(), Some(MALFORMED_INLINE));
}

/// The environment of the last case gives a path where JSON belongs.
const MALFORMED_INLINE: &str = "$DOCKER_AUTH_CONFIG is not a credential file: line 1, column 1";
