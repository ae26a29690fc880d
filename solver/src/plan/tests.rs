//! `testdata/plan/CASE/Dockerfile` against what is expected of it: graph, config, history, findings.
//!
//! `options` holds what the command line would say, a flag a line. `UPDATE_EXPECT=1` writes `expected` anew; read the
//! difference as carefully as code.

use std::{
    cell::RefCell,
    fmt::Write,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use oci::{
    BaseLayer, BlobOrigin, Descriptor, DiffId, ImageConfig, MediaType, Platform, Sha256Digest,
    config::{ContainerConfig, Healthcheck, History},
};
use parser::{Diagnostic, Severity};

use super::{Entitlement, NamedContext, PlanError, PlanOptions, Planned, plan};
use crate::{
    graph::{Graph, Target},
    op::{Exec, Network, Op, Security, Source, Timestamps},
    traits::{BaseImage, FailureKind, ImageName, Resolver, StepFailure},
};

/// Images by their familiar name, and the order in which they were asked for.
#[derive(Default)]
pub(super) struct Registry {
    asked: RefCell<Vec<String>>,
}

impl Registry {
    /// Names and platforms asked for.
    pub(super) fn asked(self) -> Vec<String> {
        self.asked.into_inner()
    }
}

impl Resolver for Registry {
    fn image(&self, image: &ImageName, platform: &Platform) -> Result<BaseImage, StepFailure> {
        let name = match image {
            ImageName::Registry(reference) => reference.familiar(),
            ImageName::OciLayout { directory, selector: _ } => format!("layout {}", directory.display()),
        };
        self.asked.borrow_mut().push(format!("{name} {platform}"));
        let known = [
            "debian:latest",
            "debian:bookworm",
            "rich:latest",
            "onbuild:latest",
            "onbuild-from:latest",
            "onbuild-mount:latest",
            "onbuild-wrong:latest",
            "arm:latest",
            "layout base",
        ];
        if name.starts_with("silent.example/") || name == "offline:latest" {
            let cause = "nobody answers";
            return Err(StepFailure::caused(
                FailureKind::Unavailable,
                format!("cannot resolve {name}"),
                cause,
            ));
        }
        if !known.contains(&name.as_str()) {
            return Err(StepFailure::new(FailureKind::Registry, format!("{name}: not found")));
        }
        let digest = Sha256Digest::of(name.as_bytes());
        let layer = BaseLayer {
            diff_id: DiffId::from(digest),
            descriptor: Descriptor::new(MediaType::OciLayerGzip, digest, 1),
            origin: BlobOrigin::OciLayout("base".into()),
        };
        Ok(BaseImage {
            pinned: format!("{name}@pinned"),
            config: config_of(&name, platform),
            layers: vec![layer],
        })
    }
}

fn words(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_owned).collect()
}

fn config_of(name: &str, platform: &Platform) -> ImageConfig {
    let architecture = if name == "arm:latest" { "arm64" } else { &platform.architecture };
    let mut config = ImageConfig::empty(&Platform::new("linux", architecture, None));
    config.created = Some("2001-01-01T00:00:00Z".to_owned());
    config.history = vec![History { created_by: format!("base {name}"), ..History::default() }];
    config.config.env = words("PATH=/usr/bin:/bin");
    match name {
        "rich:latest" => {
            config.author = "somebody".to_owned();
            config.config = ContainerConfig {
                user: "daemon".to_owned(),
                exposed_ports: words("80/tcp").into_iter().collect(),
                env: words("BASE=1 KEEP=kept"),
                entrypoint: Some(words("/bin/entry --flag")),
                cmd: Some(words("base-cmd")),
                healthcheck: Some(Healthcheck { test: words("CMD true"), ..Healthcheck::default() }),
                volumes: words("/data").into_iter().collect(),
                working_dir: "/srv/base".to_owned(),
                labels: [("base".to_owned(), "one".to_owned())].into(),
                stop_signal: "SIGUSR1".to_owned(),
                shell: Some(words("/bin/bash -ec")),
                ..ContainerConfig::default()
            };
        }
        "onbuild:latest" => {
            config.config.on_build = ["ENV TRIGGERED=yes", "COPY trigger.txt /", "RUN echo $TRIGGERED"]
                .map(str::to_owned)
                .to_vec();
        }
        "onbuild-from:latest" => {
            config.config.on_build = [
                "COPY --from=Tools /t /",
                "COPY --from=0 /t /",
                "COPY --from=debian:bookworm /etc/os-release /",
            ]
            .map(str::to_owned)
            .to_vec();
        }
        "onbuild-mount:latest" => {
            config.config.on_build =
                ["RUN --mount=target=/ true", "COPY --from=9 /t /"].map(str::to_owned).to_vec();
        }
        "onbuild-wrong:latest" => config.config.on_build = vec!["FROM debian".to_owned()],
        _ => {}
    }
    config
}

pub(super) fn options(text: &str) -> PlanOptions {
    let mut options = PlanOptions::new(Platform::new("linux", "amd64", None));
    let pair = |text: &str| {
        let (name, value) = text.split_once('=').expect("NAME=VALUE");
        (name.to_owned(), value.to_owned())
    };
    for line in text.lines() {
        let (flag, value) = line.split_once(' ').unwrap_or((line, ""));
        match flag {
            "--target" => options.target = Some(value.to_owned()),
            "--build-arg" => options.build_args.extend([pair(value)]),
            "--label" => options.labels.extend([pair(value)]),
            "--platform" => options.platforms.push(value.parse().expect("a platform")),
            "--build-context" => {
                let (name, source) = pair(value);
                let context = match source.as_str() {
                    "scratch" => NamedContext::Scratch,
                    "directory" => NamedContext::Directory,
                    "layout" => {
                        NamedContext::Image(ImageName::OciLayout { directory: "base".into(), selector: None })
                    }
                    image => NamedContext::Image(ImageName::Registry(image.parse().expect("a reference"))),
                };
                options.contexts.insert(name, context);
            }
            "--network" => options.network = if value == "none" { Network::None } else { Network::Host },
            ".dockerignore" => options.ignore.push(value.to_owned()),
            "--allow" => options.allow.extend([entitlement(value)]),
            "--add-host" => options.hosts.push(pair(value)),
            "--no-cache" => options.no_cache = true,
            "--no-cache-filter" => options.no_cache_filter.push(value.to_owned()),
            "--timestamps" => options.timestamps = Timestamps::Preserve,
            other => panic!("unknown flag {other}"),
        }
    }
    options
}

fn entitlement(text: &str) -> Entitlement {
    match text.split_once('=').unwrap_or((text, "")) {
        ("network.host", _) => Entitlement::NetworkHost,
        ("security.insecure", _) => Entitlement::SecurityInsecure,
        ("device", name) => Entitlement::Device(Some(name.to_owned()).filter(|name| !name.is_empty())),
        _ => panic!("unknown entitlement {text}"),
    }
}

fn render(text: &str, options: &PlanOptions) -> String {
    let parsed = parser::parse(text);
    let Some(dockerfile) = parsed.dockerfile else {
        return findings(text, &parsed.diagnostics);
    };
    let registry = Registry::default();
    let mut out = String::new();
    match plan(&dockerfile, options, &registry) {
        Ok(Planned { graph, warnings, epoch }) => {
            out += &graph_text(&graph);
            epoch.iter().for_each(|seconds| out += &format!("second {seconds} since 1970\n"));
            graph.targets.iter().for_each(|target| out += &target_text(target));
            out += &findings(text, &warnings);
        }
        Err(PlanError::Dockerfile { diagnostics }) => out += &findings(text, &diagnostics),
        Err(PlanError::Image { span, failure }) => {
            out += &format!("image {}: {failure}{}\n", position(text, span.start), hint(&failure.hint));
        }
    }
    let asked = registry.asked.into_inner();
    asked.iter().for_each(|image| out += &format!("asked for {image}\n"));
    out
}

fn position(text: &str, offset: usize) -> String {
    let before = &text[..offset];
    let line = before.matches('\n').count() + 1;
    let column = before.chars().rev().take_while(|character| *character != '\n').count() + 1;
    format!("{line}:{column}")
}

fn hint(hint: &Option<String>) -> String {
    hint.as_ref().map(|hint| format!(" (hint: {hint})")).unwrap_or_default()
}

fn findings(text: &str, found: &[Diagnostic]) -> String {
    let line = |found: &Diagnostic| {
        let kind = if found.severity == Severity::Error { "error" } else { found.rule.unwrap_or("warning") };
        let place = position(text, found.span.start);
        format!("{kind} {place}: {}{}\n", found.message, hint(&found.hint))
    };
    found.iter().map(line).collect()
}

fn graph_text(graph: &Graph) -> String {
    let mut out = String::new();
    for (id, vertex) in graph.vertices() {
        let inputs: Vec<String> = vertex.inputs.iter().map(|input| input.0.to_string()).collect();
        let cache = if vertex.use_cache { "" } else { " uncached" };
        writeln!(out, "{} ({}) {} {}{cache}", id.0, inputs.join(" "), vertex.platform, vertex.label)
            .expect("text");
        out += &op_text(&vertex.op);
        for (name, value) in &vertex.ambient_env {
            writeln!(out, "    ambient {name}={value}").expect("text");
        }
    }
    out
}

fn op_text(op: &Op) -> String {
    match op {
        Op::Source(Source::Scratch) => "    scratch\n".to_owned(),
        Op::Source(Source::Image(layers)) => format!("    image of {} layers\n", layers.len()),
        Op::Source(Source::Context(context)) => format!("    {context:?}\n"),
        Op::Source(Source::Inline(files)) => format!("    {files:?}\n"),
        Op::MakeDir(directory) => format!("    {directory:?}\n"),
        Op::Merge => "    merge\n".to_owned(),
        Op::Copy(copy) => {
            let items: String = copy.items.iter().map(|item| format!("    {item:?}\n")).collect();
            let rest = format!("    to {:?}, directory {}", copy.destination, copy.into_directory);
            format!("{items}{rest}, chown {:?}, chmod {:?}\n", copy.chown, copy.chmod)
        }
        Op::Exec(exec) => {
            let env: String = exec.env.iter().map(|(name, value)| format!(" {name}={value:?}")).collect();
            let script = exec.script.as_ref().map(|script| format!("    script {:?}\n", script.content));
            let mounts: String = exec.mounts.iter().map(|mount| format!("    {mount:?}\n")).collect();
            let rest = rest_of(exec);
            format!(
                "    {:?}\n    user {:?} in {:?}, network {:?}, times {:?}\n    env{env}\n{mounts}{rest}{}",
                exec.args,
                exec.user,
                exec.workdir,
                exec.network,
                exec.timestamps,
                script.unwrap_or_default()
            )
        }
    }
}

/// What most steps do not have.
fn rest_of(exec: &Exec) -> String {
    let mut rest = String::new();
    if exec.security != Security::Sandbox {
        rest += "    insecure\n";
    }
    exec.devices.iter().for_each(|device| rest += &format!("    {device:?}\n"));
    exec.hosts.iter().for_each(|(name, address)| rest += &format!("    host {name} {address}\n"));
    exec.hostname.iter().for_each(|name| rest += &format!("    called {name}\n"));
    rest
}

fn target_text(target: &Target) -> String {
    let mut config = target.config.clone();
    let base = std::mem::take(&mut config.history);
    let config = serde_json::to_string_pretty(&config).expect("serialisable");
    let mut out =
        format!("target {} is {}, base layers {}\n", target.platform, target.vertex.0, target.base_layers);
    writeln!(out, "{config}").expect("text");
    base.iter().for_each(|entry| out += &format!("base: {}\n", entry.created_by));
    for item in &target.history {
        assert_eq!(
            (item.entry.comment.as_str(), item.entry.created.as_ref()),
            ("buildkit.dockerfile.v0", None)
        );
        let layer = if item.produces_layer { "*" } else { " " };
        writeln!(out, "{layer} {}", item.entry.created_by).expect("text");
    }
    out
}

#[test]
fn dockerfiles_are_planned_as_expected() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/plan");
    let mut cases: Vec<_> =
        fs::read_dir(&root).expect("testdata").map(|entry| entry.expect("entry").path()).collect();
    cases.sort();
    assert!(cases.len() >= 30, "{} cases in {}", cases.len(), root.display());
    let mut wrong = Vec::new();
    for case in cases {
        let text = fs::read_to_string(case.join("Dockerfile")).expect("every case has a Dockerfile");
        let flags = fs::read_to_string(case.join("options")).unwrap_or_default();
        let got = render(&text, &options(&flags));
        let expected = fs::read_to_string(case.join("expected")).unwrap_or_default();
        if std::env::var_os("UPDATE_EXPECT").is_some() {
            fs::write(case.join("expected"), &got).expect("testdata is writable");
        } else if got != expected {
            wrong.push(format!("{}: {}", case.display(), first_difference(&expected, &got)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn first_difference(expected: &str, got: &str) -> String {
    let mut lines = expected.lines().chain([""]).zip(got.lines().chain([""])).enumerate();
    match lines.find(|(_, (expected, got))| expected != got) {
        Some((number, (expected, got))) => format!("line {}: expected {expected:?}, got {got:?}", number + 1),
        None => "one ends before the other".to_owned(),
    }
}

/// Accepts every name.
struct Everything;

impl Resolver for Everything {
    fn image(&self, _: &ImageName, platform: &Platform) -> Result<BaseImage, StepFailure> {
        let config = config_of("debian:latest", platform);
        Ok(BaseImage { pinned: "any@pinned".to_owned(), config, layers: Vec::new() })
    }
}

/// What BuildKit refuses too.
const REFUSED: [(&str, &str); 3] = [
    ("env-invalid-ssquote", "matching single-quote"),
    ("environment", "matching single-quote"),
    ("escapes", "matching double-quote"),
];

#[test]
fn dockerfiles_of_other_projects_are_planned() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/fixtures");
    if !root.exists() {
        eprintln!("SKIPPED: {} is not there", root.display());
        return;
    }
    let folders = ["cases", "parser", "third-party/buildah/cases", "third-party/kaniko/cases"];
    let cases = folders.iter().flat_map(|folder| fs::read_dir(root.join(folder)).expect("fixtures"));
    let mut planned = 0;
    for case in cases.map(|case| case.expect("entry").path()) {
        let name = case.file_name().expect("a case has a name").to_string_lossy().into_owned();
        let Ok(text) = fs::read_to_string(case.join("Dockerfile")) else { continue };
        let Some(dockerfile) = parser::parse(&text).dockerfile else { continue };
        let refused = REFUSED.iter().find(|(refused, _)| *refused == name).map(|(_, why)| *why);
        match (plan(&dockerfile, &options(""), &Everything), refused) {
            (Ok(plan), None) => planned += plan.graph.targets.len(),
            (Err(error), Some(why)) => assert!(error.to_string().contains(why), "{name}: {error}"),
            (result, _) => panic!("{name}: {result:?}"),
        }
    }
    assert!(planned > 80, "{planned} planned");
}

/// The watchdog allows ten times what this takes, and a fraction of what it took when every stage, finding and
/// argument went through all that came before.
#[test]
fn planning_is_not_quadratic() {
    let many = |first: &str, line: &dyn Fn(usize) -> String| -> String {
        [first.to_owned()].into_iter().chain((1..parser::MAX_INSTRUCTIONS / 2).map(line)).collect()
    };
    for (what, text) in [
        ("stages", many("FROM debian AS s0\n", &|n| format!("FROM s{} AS s{n}\n", n - 1))),
        ("mistakes", many("FROM debian AS b\n", &|_| "COPY --from=c x /\n".to_owned()) + "FROM b AS c\n"),
        ("findings", many("FROM debian\n", &|n| format!("USER $u{n}\n"))),
        ("arguments", many("FROM debian\n", &|n| format!("ARG a{n}=1\n"))),
        ("environment", many("FROM debian\n", &|n| format!("ENV e{n}=1\n"))),
    ] {
        let dockerfile = parser::parse(&text).dockerfile.expect(what);
        let start = Instant::now();
        let planned = plan(&dockerfile, &options(""), &Everything);
        let errors = match planned {
            Err(PlanError::Dockerfile { diagnostics }) => diagnostics.len(),
            Err(failure) => panic!("{what}: {failure}"),
            Ok(_) => 0,
        };
        assert_eq!(errors, if what == "mistakes" { parser::MAX_ERRORS + 1 } else { 0 }, "{what}");
        assert!(start.elapsed() < Duration::from_secs(20), "{what}: {:?}", start.elapsed());
    }
}

#[test]
fn other_frontends_are_refused() {
    let planned = |syntax: &str| {
        let dockerfile =
            parser::parse(&format!("# syntax={syntax}\nFROM scratch\n")).dockerfile.expect(syntax);
        plan(&dockerfile, &options(""), &Everything).map(drop).map_err(|error| error.to_string())
    };
    let digest = format!("sha256:{}", "0".repeat(64));
    for known in
        ["docker/dockerfile", "docker/dockerfile:1", "docker/dockerfile:1.26", "docker/dockerfile:1-labs"]
    {
        assert_eq!(planned(known), Ok(()), "{known}");
        assert_eq!(planned(&format!("docker.io/{known}")), Ok(()), "{known}");
        assert_eq!(planned(&format!("{known}@{digest}")), Ok(()), "{known}");
    }
    for known in [
        "docker/dockerfile:latest x=y",
        "docker/dockerfile-upstream:master-labs",
        "docker/dockerfile:experimental",
    ] {
        assert_eq!(planned(known), Ok(()), "{known}");
    }
    for foreign in [
        "docker/dockerfile:2",
        "localhost:5000/docker/dockerfile:1",
        "other/frontend",
        "docker/dockerfile/x",
        "%",
    ] {
        assert_eq!(planned(foreign), Err(format!("the frontend {foreign} is not supported")), "{foreign}");
    }
}
