//! Flags through the real binary: what each one changes in the result, on builds that run nothing and so take no time.

use std::{
    fs,
    io::Write,
    path::PathBuf,
    process::{Command, Output, Stdio},
};

use serde_json::Value;

const DOCKERFILE: &str = "ARG BASE=scratch\nFROM scratch AS one\nCOPY a.txt /\nFROM $BASE AS two\nARG WHO=nobody\n\
                          LABEL who=$WHO\nCOPY --from=one /a.txt /b.txt\n";

struct Site(tempfile::TempDir);

impl Site {
    fn new() -> Self {
        let site = Self(tempfile::tempdir().expect("a temporary directory"));
        site.write("context/Dockerfile", DOCKERFILE);
        site.write("context/a.txt", "hello\n");
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("has a parent")).expect("created");
        fs::write(path, text).expect("written");
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// The binary with `build`, the site's store and these flags; `@` stands for the site's directory.
    fn command(&self, flags: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_layerwright"));
        command
            .arg("build")
            .args(flags.replace('@', &self.0.path().display().to_string()).split_whitespace());
        command.env_clear().env("HOME", self.0.path()).env("LAYERWRIGHT_ROOT", self.path("root"));
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command
    }

    /// Builds the context, which must work.
    fn build(&self, flags: &str) -> Output {
        succeed(self.command(flags).arg(self.path("context")).stdin(Stdio::null()))
    }

    /// The config of the only image in the OCI layout `out`.
    fn config(&self) -> Value {
        let blob = |value: &Value| {
            let digest = value["digest"].as_str().expect("a digest");
            let text = self.read(&format!("out/blobs/sha256/{}", digest.trim_start_matches("sha256:")));
            serde_json::from_str::<Value>(&text).expect("JSON")
        };
        let index: Value = serde_json::from_str(&self.read("out/index.json")).expect("JSON");
        assert_eq!(index["manifests"].as_array().map(Vec::len), Some(1), "{index}");
        blob(&blob(&index["manifests"][0])["config"])
    }
}

fn succeed(command: &mut Command) -> Output {
    let output = command.output().expect("the binary runs");
    assert!(output.status.success(), "{command:?}\n{}", String::from_utf8_lossy(&output.stderr));
    output
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

#[test]
fn quiet_prints_the_digest_that_all_outputs_and_files_have() {
    let site = Site::new();
    let flags = "-q --iidfile @/iid --metadata-file @/meta -t me/app:1 -o type=oci,tar=false,dest=@/out";
    let digest = text(&site.build(flags).stdout);
    let index: Value = serde_json::from_str(&site.read("out/index.json")).expect("JSON");
    assert_eq!(index["manifests"][0]["digest"], digest.trim_end());
    let meta: Value = serde_json::from_str(&site.read("meta")).expect("JSON");
    assert_eq!(meta["containerimage.digest"], digest.trim_end());
    assert_eq!(meta["containerimage.config.digest"], site.read("iid"));
    assert_eq!(meta["image.name"], "docker.io/me/app:1");
    site.build(&format!("{flags} -t me/other:2 -o type=oci,dest=@/archive.tar -o @/files"));
    let meta: Value = serde_json::from_str(&site.read("meta")).expect("JSON");
    assert_eq!(meta["image.name"], "docker.io/me/app:1,docker.io/me/other:2", "each name once");
    assert_eq!(text(&site.build("-q").stdout), digest, "no output gives the same digest");
}

#[test]
fn a_build_that_fails_takes_the_old_image_id_away() {
    let site = Site::new();
    site.build("-q --iidfile @/iid");
    let failed =
        site.command("-q --iidfile @/iid --target none").arg(site.path("context")).output().expect("it runs");
    assert_eq!(failed.status.code(), Some(2));
    assert!(!site.path("iid").exists());
}

#[test]
fn what_could_not_be_written_is_refused_before_the_build() {
    let site = Site::new();
    for (flags, want) in [
        ("--iidfile @/none/x", "--iidfile @/none/x: its directory does not exist"),
        ("--metadata-file @/context", "--metadata-file @/context: it is a directory"),
        ("-o type=oci,dest=@/none/x.tar", "cannot write @/none/x.tar: its directory does not exist"),
        ("-o @/context/a.txt", "cannot write @/context/a.txt: it is not a directory"),
        ("-o type=tar,dest=@/context", "cannot write @/context: it is a directory"),
    ] {
        let failed = site.command(flags).arg(site.path("context")).output().expect("it runs");
        let want = want.replace('@', &site.0.path().display().to_string());
        assert_eq!(text(&failed.stderr), format!("error: {want}\n"));
        assert_eq!(failed.status.code(), Some(2));
        assert!(!site.path("root").exists(), "nothing was begun");
    }
    let relative = site.command("-q --iidfile iid").arg("context").current_dir(site.0.path()).output();
    assert!(relative.expect("it runs").status.success() && site.path("iid").exists());
}

#[test]
fn passwords_are_told_nowhere() {
    let site = Site::new();
    for flags in [
        "-t me:hunter2@h/x",
        "-t https://me:hunter2@h/x",
        "-o type=registry,name=me:hunter2@h/x",
        "--build-context one=docker-image://me:hunter2@h/x",
        "--build-context one=https://me:hunter2@127.0.0.1:1/x.tar",
        "--build-context me:hunter2@h=.",
        "-f https://me:hunter2@127.0.0.1:1/Dockerfile",
        "--annotation https://me:hunter2@h/x",
        "--add-host https://me:hunter2@h/x",
        "--secret id=x,src=https://me:hunter2@h/x",
        "--build-arg BASE=me:hunter2@h/x",
        "--build-arg BASE=https://me:hunter2@127.0.0.1:1/x",
        "--progress json --build-arg BASE=https://me:hunter2@127.0.0.1:1/x",
        "--platform me:hunter2@h",
    ] {
        let mut command = site.command("");
        let failed = command.args(flags.split(' ')).arg(site.path("context")).output().expect("it runs");
        let told = text(&failed.stderr) + &text(&failed.stdout);
        assert!(matches!(failed.status.code(), Some(2 | 3)), "{flags}: {told}");
        assert!(!told.is_empty() && !told.contains("hunter2"), "{flags}: {told}");
    }
}

#[test]
fn arguments_labels_and_targets_reach_the_image() {
    let site = Site::new();
    let out = "-o type=oci,tar=false,dest=@/out --progress quiet";
    site.build(&format!("{out} --build-arg WHO=me --label extra=1 --label empty"));
    let labels = &site.config()["config"]["Labels"];
    assert_eq!(labels, &serde_json::json!({ "who": "me", "extra": "1", "empty": "" }));
    succeed(
        site.command(&format!("{out} --build-arg WHO --build-arg BASE"))
            .arg(site.path("context"))
            .env("WHO", "environment"),
    );
    assert_eq!(site.config()["config"]["Labels"]["who"], "environment");
    site.build(&format!("{out} --target one"));
    assert_eq!(site.config()["config"].get("Labels"), None);
    site.build(&format!("{out} --build-arg SOURCE_DATE_EPOCH=1700000000"));
    assert_eq!(site.config()["created"], "2023-11-14T22:13:20Z");
}

#[test]
fn the_dockerfile_comes_from_standard_input() {
    let site = Site::new();
    let mut child = site
        .command("-f - -o @/files --progress quiet")
        .arg(site.path("context"))
        .stdin(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(b"FROM scratch\nCOPY a.txt /from-stdin\n").expect("it reads");
    drop(stdin);
    assert!(child.wait().expect("it ends").success());
    assert_eq!(site.read("files/from-stdin"), "hello\n");
}

#[test]
fn an_archive_goes_to_standard_output_and_nothing_else_does() {
    let site = Site::new();
    let archive = site.build("-o - --progress plain").stdout;
    assert_eq!(archive.len() % 512, 0);
    assert!(archive.starts_with(b"b.txt\0"), "the first entry is the only file");
    assert_eq!(&archive[512..518], b"hello\n");
}

#[test]
fn named_contexts_stand_for_images_and_stages() {
    let site = Site::new();
    site.write("other/a.txt", "other\n");
    site.build("--build-context one=@/other -o @/files --progress quiet");
    assert_eq!(site.read("files/b.txt"), "other\n");
    site.build("-o type=oci,tar=false,dest=@/layout -t base:1 --target one --progress quiet");
    site.build(
        "--build-arg BASE=mine --build-context mine=oci-layout://@/layout:1 -o @/on-top --progress quiet",
    );
    assert_eq!(
        (site.read("on-top/a.txt"), site.read("on-top/b.txt")),
        ("hello\n".to_owned(), "hello\n".to_owned())
    );
}

#[test]
fn the_cache_is_used_unless_it_must_not_be() {
    let site = Site::new();
    let cached = |flags: &str| {
        let lines = text(&site.build(&format!("--progress json {flags}")).stderr);
        let last: Value = serde_json::from_str(lines.lines().last().expect("a line")).expect("JSON");
        assert_eq!(last["event"], "result", "{lines}");
        (last["steps"].as_u64().expect("a number"), last["cached"].as_u64().expect("a number"))
    };
    assert_eq!(cached(""), (2, 0));
    assert_eq!(cached(""), (2, 2));
    assert_eq!(cached("--no-cache"), (2, 0));
    assert_eq!(cached("--no-cache-filter one"), (2, 1));
    assert_eq!(cached("--no-cache=false"), (2, 2));
}

#[test]
fn json_progress_ends_with_the_error() {
    let site = Site::new();
    site.write("context/Dockerfile", "FROM scratch\nCOPY missing /\n");
    let failed = site.command("--progress json").arg(site.path("context")).output().expect("it runs");
    let lines = text(&failed.stderr);
    let events: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let last = events.last().expect("a line");
    assert_eq!((&last["event"], &last["exit_code"]), (&"error".into(), &1.into()));
    assert!(
        last["report"].as_str().is_some_and(|report| report.contains("2 | >>> COPY missing /")),
        "{last}"
    );
    assert_eq!(failed.status.code(), Some(1));
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let site = Site::new();
    let mut child =
        site.command("-q").arg(site.path("context")).stdout(Stdio::piped()).spawn().expect("it runs");
    drop(child.stdout.take());
    assert_eq!(child.wait().expect("it ends").code(), Some(0));
}

#[test]
fn what_lets_nobody_write_is_found_out_before_the_build() {
    let site = Site::new();
    for (flags, path) in [
        ("-o type=local,dest=/proc/x", "/proc/x"),
        ("-o type=oci,tar=false,dest=/proc/x/y", "/proc/x/y"),
        ("-o type=oci,dest=/proc/x", "/proc/x"),
        ("--metadata-file /proc/x", "/proc/x"),
    ] {
        let failed = site.command(flags).arg(site.path("context")).output().expect("it runs");
        let told = text(&failed.stderr);
        assert!(told.starts_with(&format!("error: cannot write {path}: ")), "{flags}: {told}");
        assert_eq!((failed.status.code(), site.path("root").exists()), (Some(4), false), "{flags}");
    }
    site.build("-o type=tar,dest=/dev/null -o @/new/deep --iidfile @/iid");
    assert_eq!(site.read("new/deep/b.txt"), "hello\n");
}

#[test]
fn what_the_dockerfile_has_no_use_for_is_told() {
    let site = Site::new();
    let told = text(&site.build("-o type=cacheonly --build-arg NOPE=1 --no-cache-filter three").stderr);
    assert!(told.contains("warning: one or more build-args [NOPE] were not consumed\n"), "{told}");
    assert!(told.contains("--no-cache-filter \"three\" names no stage"), "{told}");
    assert!(told.contains("the stages are: one, two\n"), "{told}");
}

#[test]
fn a_base_of_another_platform_is_built_on_with_a_warning() {
    let site = Site::new();
    site.build("--platform linux/amd64 --target one -o type=oci,dest=@/base,tar=false");
    let told = text(&site.build("--platform linux/arm64 --build-context base=oci-layout://@/base --build-arg BASE=base -o type=oci,dest=@/out,tar=false").stderr);
    let warning = "InvalidBaseImagePlatform: Base image $BASE was pulled with platform \"linux/amd64\", expected \
                   \"linux/arm64\" for current build";
    assert!(told.contains(warning), "{told}");
    assert_eq!(site.config()["architecture"], "arm64");
}

#[test]
fn slips_in_paths_and_sources_are_explained() {
    let site = Site::new();
    for (flags, want) in [
        ("-f Dockerfile context", "hint: -f is relative to the working directory, not to the context: -f "),
        ("--build-context x=foo:bar context", "hint: expected a directory, a git repository,"),
        ("--build-context x=docker-image:foo context", "an image cannot be a build context here: expected a"),
    ] {
        let output = site.command(flags).current_dir(site.path("")).output().expect("the binary runs");
        let told = text(&output.stderr);
        assert!(output.status.code() == Some(2) && told.contains(want), "{flags}: {told}");
    }
}
