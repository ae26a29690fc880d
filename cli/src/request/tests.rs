use std::ffi::OsString;

use exporter::Encoder;
use solver::op::Security;

use super::*;
use crate::args::{self, Command};
use crate::spec::context::{ContextSpec, FilesSource, NamedSource};

struct Case {
    directory: tempfile::TempDir,
    variables: BTreeMap<OsString, OsString>,
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
        Self { directory, variables }
    }

    fn set(mut self, name: &str, value: &str) -> Self {
        self.variables.insert(name.into(), value.into());
        self
    }

    /// Reads `build` with these flags; `@` in them is the case's directory, which is the context too.
    fn read(&self, flags: &str) -> Result<BuildRequest, RequestError> {
        self.read_context("@", flags)
    }

    fn read_context(&self, context: &str, flags: &str) -> Result<BuildRequest, RequestError> {
        let at = self.directory.path().display().to_string();
        let line = format!("{context} {flags}").replace('@', &at);
        let argv = ["layerwright", "build"].into_iter().chain(line.split_whitespace());
        let Ok(Command::Build(args)) = args::parse(argv).map(|cli| cli.command) else { panic!("{line}") };
        read(
            *args,
            &Environment {
                variables: self.variables.clone(),
                stderr_is_terminal: true,
                stdin_is_terminal: false,
                is_root: true,
            },
        )
    }
}

#[test]
fn contexts_and_dockerfiles_are_told_apart() {
    let case = Case::new(&[("Dockerfile", ""), ("file", "")]);
    let places = |context, flags| case.read_context(context, flags).map(|request| request.places);
    let place = |flags| places("@", flags).expect("read").dockerfile;
    assert_eq!(place(""), DockerfilePlace::Default);
    assert_eq!(place("-f -"), DockerfilePlace::Stdin);
    assert_eq!(place("-f a/b"), DockerfilePlace::Path("a/b".into()));
    assert_eq!(place("-f https://h/D"), DockerfilePlace::Url("https://h/D".to_owned()));
    assert_eq!(places("-", "").expect("read").context, ContextSpec::Stdin);
    let elsewhere = |context, flags| places(context, flags).expect("read").are_elsewhere();
    assert!(elsewhere("-", "") && elsewhere("https://h/x.git", "-f -") && elsewhere("@", "-f http://h/D"));
    assert!(!elsewhere("@", "-f -"));
    for (context, flags, want) in [
        ("-", "-f -", "standard input cannot be both"),
        ("@/none", "", "cannot read context"),
        ("@/file", "", "is not a directory"),
        ("ftp://h/x", "", "cannot be a build context here"),
        ("https://h/x.git?tag=1&branch=1", "", "branch conflicts with tag"),
    ] {
        let error = places(context, flags).expect_err(context).to_string();
        assert!(error.contains(want), "{context}: {error}");
    }
    let error = places("@/Dockerfile", "").expect_err("a file");
    assert!(error.hint().is_some_and(|hint| hint.contains("-f names the Dockerfile")), "{error}");
}

#[test]
fn the_git_directory_is_kept_where_a_build_argument_says_so() {
    let case = Case::new(&[]);
    let kept = |flags: &str| {
        let request = case.read_context("https://h/x.git", flags)?;
        let ContextSpec::Files(FilesSource::Git(address)) = request.places.context else {
            panic!("a repository")
        };
        Ok::<_, RequestError>(address.keep_git_dir)
    };
    assert!(!kept("").expect("read"));
    assert!(kept("--build-arg BUILDKIT_CONTEXT_KEEP_GIT_DIR=1").expect("read"));
    assert!(!kept("--build-arg BUILDKIT_CONTEXT_KEEP_GIT_DIR=false").expect("read"));
    assert!(kept("--build-arg BUILDKIT_CONTEXT_KEEP_GIT_DIR=maybe").is_err());
}

#[test]
fn questions_have_no_outputs() {
    let case = Case::new(&[("Dockerfile", "")]);
    let asked = |flags: &str| case.read(flags).map(|request| (request.call.call, request.outputs.len()));
    assert_eq!(asked("-o @/out").expect("read"), (Call::Build, 1));
    assert_eq!(asked("-o @/out --check").expect("read"), (Call::Check, 0));
    assert_eq!(asked("--push --call targets").expect("read"), (Call::Targets, 0));
    assert_eq!(asked("--print outline,format=json").expect("read").0, Call::Outline);
    assert_eq!(asked("--check --call check,format=json").expect("read").0, Call::Check);
    assert!(asked("--check --call outline").is_err());
    assert!(!case.read("--check").expect("read").needs_store() && case.read("").expect("read").needs_store());
}

#[test]
fn secrets_come_from_files_and_variables() {
    let case = Case::new(&[("Dockerfile", ""), ("key", "hush")]).set("TOKEN", "hunter2");
    let value = |flags: &str, id: &str| {
        let secrets = case.read(flags).unwrap_or_else(|error| panic!("{error:?}")).secrets;
        String::from_utf8(secrets.get(id).expect("read").expect("there")).expect("text")
    };
    assert_eq!(value("--secret id=k,src=@/key", "k"), "hush");
    assert_eq!(value("--secret id=TOKEN", "TOKEN"), "hunter2");
    assert_eq!(value("--secret id=t,env=TOKEN", "t"), "hunter2");
    assert_eq!(value("--secret id=t,type=env,src=TOKEN", "t"), "hunter2");
    assert_eq!(value("--secret id=t,env=TOKEN --secret id=t,src=@/key", "t"), "hush");
    assert_eq!(value("--secret id=t,env=UNSET", "t"), "");
    let notices = case.read("--secret id=t,env=UNSET").expect("read").notices;
    assert!(notices.iter().any(|notice| notice.contains("UNSET")), "{notices:?}");
    assert!(case.read("--secret id=nothing").is_err(), "neither a variable nor a file");
    assert!(case.read("--secret id=k,src=@/none").is_err());
    assert!(!format!("{:?}", case.read("--secret id=TOKEN")).contains("hunter2"));
}

#[test]
fn agents_are_sockets_or_keys() {
    let case = Case::new(&[("Dockerfile", ""), ("key", ""), ("other", "")]);
    let socket = case.directory.path().join("agent");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).expect("bound");
    let agents = |flags: &str| case.read(flags).map(|request| format!("{:?}", request.agents));
    assert!(agents("--ssh default=@/agent").expect("read").contains("Socket"));
    assert!(agents("--ssh work=@/key,@/other").expect("read").contains("Keys"));
    for (flags, want) in [
        ("--ssh default", "SSH_AUTH_SOCK is not set"),
        ("--ssh default=@/none", "cannot read"),
        ("--ssh default=@/agent,@/key", "not both"),
        ("--ssh a=@/key --ssh a=@/other", "given twice"),
    ] {
        let error = agents(flags).expect_err(flags).to_string();
        assert!(error.contains(want), "{flags}: {error}");
    }
    let case = case.set("SSH_AUTH_SOCK", &socket.display().to_string());
    assert!(case.read("--ssh default").is_ok());
}

#[test]
fn a_layout_that_is_not_there_is_told_by_its_flag() {
    let case = Case::new(&[("Dockerfile", ""), ("file", "")]);
    for (path, want) in [("/none", "No such file"), ("@/file", "not a directory")] {
        let flags = format!("--build-context base=oci-layout://{path}");
        let error = case.read(&flags).expect_err("refused");
        let source = std::error::Error::source(&error).expect("it has a cause").to_string();
        assert!(
            error.to_string().starts_with("--build-context base: cannot read the OCI layout "),
            "{error}"
        );
        assert!(source.contains(want), "{source}");
    }
}

#[test]
fn rights_and_hosts_are_collected() {
    let case = Case::new(&[("Dockerfile", "")]);
    let allowed = |flags: &str| case.read(flags).expect("read").allow;
    assert_eq!(allowed(""), BTreeSet::new());
    assert_eq!(allowed("--network host"), BTreeSet::from([Entitlement::NetworkHost]));
    let both = BTreeSet::from([Entitlement::NetworkHost, Entitlement::SecurityInsecure]);
    assert_eq!(allowed("--allow security.insecure --allow network.host"), both);
    let hosts = case.read("--add-host a:1.1.1.1 --add-host b=2.2.2.2,::1").expect("read").hosts;
    let hosts: Vec<(&str, &str)> = hosts.iter().map(|(name, ip)| (name.as_str(), ip.as_str())).collect();
    assert_eq!(hosts, [("a", "1.1.1.1"), ("b", "2.2.2.2"), ("b", "::1")]);
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
fn proxies_come_from_dockers_configuration_where_no_flag_says_otherwise() {
    let config = r#"{"auths": {}, "proxies": {"tcp://daemon": {"httpProxy": "x"}, "default":
        {"httpProxy": "http://u:p@a:1", "httpsProxy": "b", "noProxy": "c", "ftpProxy": "", "unknown": [1]}}}"#;
    let case = Case::new(&[("Dockerfile", ""), ("config.json", config)]);
    let home = case.directory.path().to_owned();
    let case = case.set("DOCKER_CONFIG", &home.display().to_string());
    let args = |flags: &str| {
        let args = case.read(flags).expect("read").build_args.into_iter();
        args.map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(args(""), "HTTPS_PROXY=b HTTP_PROXY=http://u:p@a:1 NO_PROXY=c");
    assert_eq!(
        args("--build-arg http_proxy=own --build-arg NO_PROXY="),
        "HTTPS_PROXY=b NO_PROXY= http_proxy=own"
    );
    std::fs::write(home.join("config.json"), "{\n\"proxies\": \"s3cret\"}").expect("written");
    let notices = case.read("").expect("read").notices.join(" ");
    assert!(notices.contains("config.json: it is not what Docker writes, see line 2"), "{notices}");
    assert!(!notices.contains("s3cret"), "{notices}");
}

#[test]
fn what_is_strict_has_nothing_that_is_let_go() {
    let case = Case::new(&[("Dockerfile", "")]);
    let relaxed = case.read("--sandbox-allow userns --sandbox-allow no-keyring").expect("read").relaxed;
    assert_eq!(relaxed.to_string(), "userns, no-keyring");
    let error = case.read("--sandbox strict --sandbox-allow userns").expect_err("refused").to_string();
    assert!(error.contains("--sandbox=strict and --sandbox-allow contradict"), "{error}");
}

#[test]
fn no_new_privileges_and_all_privileges_contradict_each_other() {
    let case = Case::new(&[("Dockerfile", "")]);
    assert_eq!(case.read("--no-new-privs").expect("read").limits.security(), Security::NoNewPrivileges);
    assert_eq!(case.read("").expect("read").limits.security(), Security::Sandbox);
    let error = case.read("--no-new-privs --allow security.insecure").expect_err("refused").to_string();
    assert!(error.contains("--no-new-privs and --allow security.insecure contradict"), "{error}");
}

#[test]
fn images_are_packed_only_where_they_are_wanted() {
    let case = Case::new(&[("Dockerfile", "")]);
    let encoders = |flags| {
        let packings = case.read(flags).expect("read").packings();
        packings.into_iter().map(|packing| packing.encoder).collect::<Vec<_>>()
    };
    assert_eq!(encoders(""), [Encoder::GZIP]);
    assert_eq!(encoders("-o @/out"), []);
    assert_eq!(encoders("-o @/out -q"), [Encoder::GZIP]);
    assert_eq!(encoders("-o @/out --iidfile @/iid"), [Encoder::GZIP]);
    let both = "-o type=oci,dest=@/a,compression=uncompressed -o type=oci,dest=@/b -o type=oci,dest=@/c";
    assert_eq!(encoders(both), [Encoder::Uncompressed, Encoder::GZIP]);
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
    let platforms = |case: &Case, line: &str| {
        let platforms = case.read(line).expect("read").platforms;
        platforms.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(platforms(&case, ""), "linux/arm64");
    let given = "--platform linux/arm64,amd64 --platform linux/arm64/v8";
    assert_eq!(platforms(&case, given), "linux/arm64 linux/amd64");
    let case = case.set("DOCKER_DEFAULT_PLATFORM", "linux/386,arm");
    assert_eq!(platforms(&case, ""), "linux/386 linux/arm/v7");
    let case = case.set("DOCKER_DEFAULT_PLATFORM", "linux/386,x");
    assert!(case.read("").is_err());
    let dumb = case.set("DOCKER_DEFAULT_PLATFORM", "").set("TERM", "dumb");
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
fn named_contexts_are_looked_at() {
    let case = Case::new(&[("Dockerfile", ""), ("dir/x", ""), ("file", "")]);
    let flags =
        "--build-context d=@/dir --build-context s=scratch --build-context d::linux/arm64=https://h/x.git";
    let named = case.read(flags).expect("read").places.named;
    let dir = case.directory.path().join("dir");
    assert_eq!(named["d"], NamedSource::Files(FilesSource::Directory(dir)));
    assert_eq!(named["s"], NamedSource::Scratch);
    assert!(matches!(named["d::linux/arm64"], NamedSource::Files(FilesSource::Git(_))));
    for flags in ["d=@/none", "d=@/file", "d=oci-layout://@/none"] {
        assert!(case.read(&format!("--build-context {flags}")).is_err(), "{flags}");
    }
    assert!(case.read("--build-context d=@/dir --build-context d=@/dir").is_err());
}

#[test]
fn who_logs_in_is_no_part_of_what_an_image_says() {
    let label = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    let source = "org.opencontainers.image.source";
    let mut labels = BTreeMap::from([label(source, "https://u:s3cret@h/a"), label("own", "https://u@h/a")]);
    let annotation = format!("{source}=https://h/a").parse().expect("an annotation");
    let told = said(&mut labels, &[annotation]);
    assert_eq!(labels, BTreeMap::from([label(source, "https://h/a"), label("own", "https://u@h/a")]));
    assert!(
        matches!(&told[..], [notice] if notice.starts_with("--label org.") && !notice.contains("s3cret")),
        "{told:?}"
    );
}

#[test]
fn an_inline_cache_that_no_output_takes_anywhere_is_told() {
    let case = Case::new(&[("Dockerfile", "")]);
    for (line, is_told) in [
        ("--cache-to type=inline", true),
        ("--build-arg BUILDKIT_INLINE_CACHE=1 -o type=local,dest=@/out", true),
        ("--build-arg BUILDKIT_INLINE_CACHE=0", false),
        ("--cache-to type=inline -o type=oci,dest=@/image.tar", false),
        ("--cache-to type=inline --push -t h/app", false),
    ] {
        let notices = case.read(line).expect(line).notices;
        assert_eq!(
            notices.iter().any(|notice| notice.contains("inline cache")),
            is_told,
            "{line}: {notices:?}"
        );
    }
}

#[test]
fn a_user_namespace_of_root_has_a_store_of_its_own() {
    let case = Case::new(&[("Dockerfile", "")]).set("HOME", "/home/me");
    let root = |flags| case.read(flags).expect("read").root;
    assert_eq!(root(""), Path::new("/home/me/.local/share/layerwright"));
    assert_eq!(root("--sandbox strict"), root("--sandbox auto"));
    assert_eq!(root("--sandbox userns"), Path::new("/home/me/.local/share/layerwright-userns"));
    assert_eq!(root("--sandbox userns --root /s"), Path::new("/s"));
}
