use super::*;
use crate::args::{self, Command};

struct Case {
    directory: tempfile::TempDir,
    variables: BTreeMap<OsString, OsString>,
    stdin: &'static str,
}

impl Case {
    fn new(files: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        for (name, text) in files {
            let path = directory.path().join(name);
            std::fs::create_dir_all(path.parent().expect("has a parent")).expect("created");
            std::fs::write(path, text).expect("written");
        }
        let variables = BTreeMap::from([("HOME".into(), "/home/me".into())]);
        Self { directory, variables, stdin: "" }
    }

    fn set(mut self, name: &str, value: &str) -> Self {
        self.variables.insert(name.into(), value.into());
        self
    }

    /// Reads `build` with these flags; `@` in them is the case's directory, which is the context too.
    fn read(&self, flags: &str) -> Result<BuildRequest, RequestError> {
        let at = self.directory.path().display().to_string();
        let flags = flags.replace('@', &at);
        let argv = ["layerwright", "build", &at].into_iter().chain(flags.split_whitespace());
        let Ok(Command::Build(args)) = args::parse(argv).map(|cli| cli.command) else { panic!("{flags}") };
        let mut environment = Environment {
            variables: self.variables.clone(),
            stdin: &mut self.stdin.as_bytes(),
            stderr_is_terminal: true,
        };
        read(*args, &mut environment)
    }
}

#[test]
fn the_dockerfile_is_found_where_buildkit_finds_it() {
    let case = Case::new(&[("Dockerfile", "upper"), ("dockerfile", "lower"), ("sub/D", "\u{feff}named")]);
    let found = |flags| case.read(flags).expect("read").dockerfile;
    assert_eq!((found("").name.as_str(), found("").text.as_str()), ("Dockerfile", "upper"));
    assert_eq!(found("-f @/sub/D").text, "named");
    let lower = Case::new(&[("dockerfile", "lower")]);
    assert_eq!(lower.read("").expect("read").dockerfile.name, "dockerfile");
    let stdin = Case { stdin: "FROM scratch\n", ..Case::new(&[]) };
    assert_eq!(stdin.read("-f -").expect("read").dockerfile.text, "FROM scratch\n");
    let error = Case::new(&[]).read("").expect_err("no Dockerfile");
    assert!(error.to_string().starts_with("cannot read Dockerfile "), "{error}");
}

#[test]
fn build_arguments_come_from_flags_and_environment() {
    let case = Case::new(&[("Dockerfile", "")]).set("HERE", "env").set("SOURCE_DATE_EPOCH", "7");
    let request =
        case.read("--build-arg A=1 --build-arg A=2=3 --build-arg HERE --build-arg GONE").expect("read");
    let args: Vec<(&str, &str)> = request.build_args.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!(args, [("A", "2=3"), ("HERE", "env"), ("SOURCE_DATE_EPOCH", "7")]);
    assert_eq!(request.epoch, Some(7));
    assert_eq!(case.read("--build-arg SOURCE_DATE_EPOCH=9").expect("read").epoch, Some(9));
    assert_eq!(case.read("--build-arg SOURCE_DATE_EPOCH=").expect("read").epoch, None);
    assert!(case.read("--build-arg SOURCE_DATE_EPOCH=context").is_err());
    assert!(case.read("--build-arg =x").is_err());
}

#[test]
fn images_are_packed_only_where_they_are_wanted() {
    let case = Case::new(&[("Dockerfile", "")]);
    let encoders = |flags| case.read(flags).expect("read").encoders();
    assert_eq!(encoders(""), [Encoder::Gzip]);
    assert_eq!(encoders("-o @/out"), []);
    assert_eq!(encoders("-o @/out -q"), [Encoder::Gzip]);
    assert_eq!(encoders("-o @/out --iidfile @/iid"), [Encoder::Gzip]);
    let both = "-o type=oci,dest=@/a,compression=uncompressed -o type=oci,dest=@/b -o type=oci,dest=@/c";
    assert_eq!(encoders(both), [Encoder::Uncompressed, Encoder::Gzip]);
}

#[test]
fn labels_without_a_value_are_empty() {
    let request = Case::new(&[("Dockerfile", "")]).read("--label a --label b=c").expect("read");
    assert_eq!(request.labels, BTreeMap::from([("a".into(), "".into()), ("b".into(), "c".into())]));
}

#[test]
fn progress_and_platform_take_the_environments_word() {
    let case = Case::new(&[("Dockerfile", "")]).set("BUILDKIT_PROGRESS", "plain");
    assert_eq!(case.read("").expect("read").progress, ProgressMode::Plain);
    assert_eq!(case.read("--progress json").expect("read").progress, ProgressMode::Json);
    assert_eq!(case.read("-q").expect("read").progress, ProgressMode::Quiet);
    assert!(case.read("-q --progress plain").is_err());
    let case = case.set("BUILDKIT_PROGRESS", "").set("DOCKER_DEFAULT_PLATFORM", "linux/arm64");
    assert_eq!(case.read("").expect("read").progress, ProgressMode::Tty);
    assert_eq!(case.read("").expect("read").platform, "linux/arm64".parse().ok());
    assert!(case.read("--platform linux/amd64,linux/arm64").is_err());
    let dumb = case.set("TERM", "dumb");
    assert_eq!(dumb.read("").expect("read").progress, ProgressMode::Plain);
    assert!(dumb.set("BUILDKIT_PROGRESS", "rawjson").read("").is_err());
}

#[test]
fn the_store_is_where_the_first_word_says() {
    let case = Case::new(&[("Dockerfile", "")]);
    assert_eq!(case.read("").expect("read").root, Path::new("/home/me/.local/share/layerwright"));
    let case = case.set("XDG_DATA_HOME", "/data");
    assert_eq!(case.read("").expect("read").root, Path::new("/data/layerwright"));
    let case = case.set("LAYERWRIGHT_ROOT", "/env");
    assert_eq!(case.read("").expect("read").root, Path::new("/env"));
    assert_eq!(case.read("--root /flag").expect("read").root, Path::new("/flag"));
}

#[test]
fn the_dockerfiles_own_ignore_file_wins() {
    let case =
        Case::new(&[("Dockerfile", ""), (".dockerignore", "a\n"), ("x/D", ""), ("x/D.dockerignore", "b\n")]);
    let ignore = |flags| case.read(flags).expect("read").context.ignore.map(|file| (file.name, file.text));
    assert_eq!(ignore(""), Some((".dockerignore".to_owned(), "a\n".to_owned())));
    assert_eq!(ignore("-f @/x/D"), Some(("D.dockerignore".to_owned(), "b\n".to_owned())));
}

#[test]
fn named_contexts_are_looked_at() {
    let case = Case::new(&[("Dockerfile", ""), ("dir/.dockerignore", "x\n"), ("file", "")]);
    let request = case.read("--build-context d=@/dir --build-context s=scratch").expect("read");
    let NamedContext::Directory(directory) = &request.contexts["d"] else { panic!("{request:?}") };
    assert_eq!(directory.ignore.as_ref().map(|file| file.text.as_str()), Some("x\n"));
    assert!(matches!(request.contexts["s"], NamedContext::Scratch));
    for flags in ["d=@/none", "d=@/file", "d=oci-layout://@/none"] {
        assert!(case.read(&format!("--build-context {flags}")).is_err(), "{flags}");
    }
    assert!(case.read("--build-context d=@/dir --build-context d=@/dir").is_err());
}
