//! What flags, environment and image say together about a container, in docker's rules. All that can be wrong with the
//! command line is found here, before anything is pulled.

use std::{fs, path::PathBuf};

use executor::{
    Container,
    gc::Cap,
    sandbox::{self, Access, Group, GroupLease, MountSource, Naming, PlannedMount, SandboxError, Stdio},
};
use oci::{ImageConfig, Platform};
use solver::{
    clean_path,
    op::{Exec, Relaxations},
};

use super::environment::{self, Change};
use crate::{
    args::RunArgs,
    gc,
    place::ImagePlace,
    request::{self, Environment, RequestError, StepLimits},
    spec::mount::{TmpfsSpec, VolumeSpec},
    terminal,
};

/// What a command that has no PATH of its own is looked for in; docker's.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What a container's machine is called.
const HOSTNAME: &str = "layerwright";

/// What the command line says.
pub struct Options<'a> {
    /// Which image.
    pub image: ImagePlace,
    /// For which platform.
    pub platform: Platform,
    /// The store's directory.
    pub root: PathBuf,
    /// How large the store may grow.
    pub cap: Cap,
    /// The command's standard streams.
    pub stdio: Stdio,
    /// Whether our standard input is the command's.
    pub reads_input: bool,
    /// What of the sandbox is let go.
    pub relaxed: Relaxations,
    limits: StepLimits,
    changes: Vec<Change>,
    mounts: Vec<PlannedMount>,
    volumes: Vec<String>,
    command: &'a [String],
    args: &'a RunArgs,
}

impl<'a> Options<'a> {
    /// Reads it.
    ///
    /// # Errors
    /// [`RequestError`]
    pub fn read(args: &'a RunArgs, environment: &Environment) -> Result<Self, RequestError> {
        if args.tty && args.interactive && !environment.stdin_is_terminal {
            return Err(RequestError::Conflict("-i with -t: the input device is not a TTY"));
        }
        let stdio = match (args.tty, args.interactive) {
            (true, _) => terminal::like_ours(),
            (false, true) => Stdio::Fed,
            (false, false) => Stdio::Logged,
        };
        let platforms = request::platforms(args.platform.as_slice(), environment)?;
        let (image, command) = args.image_and_command();
        let (mounts, volumes) = mounts(args)?;
        Ok(Self {
            image: image.parse()?,
            command,
            platform: platforms.into_iter().next().unwrap_or_else(Platform::host),
            root: request::store_root_for(args.sandbox, args.root.clone(), environment)?,
            cap: gc::cap(environment)?,
            stdio,
            reads_input: args.interactive,
            relaxed: request::relaxed(args.sandbox, &args.sandbox_allow)?,
            limits: request::limits(args.limits.clone())?,
            changes: changes(args, environment)?,
            mounts,
            volumes,
            args,
        })
    }

    /// Where the command's control group goes; see [`StepLimits::prepare`].
    ///
    /// # Errors
    /// A limit that cannot be had here.
    pub fn group(&self) -> Result<Option<GroupLease>, SandboxError> {
        self.limits.prepare()
    }

    /// The same with what the image says.
    ///
    /// # Errors
    /// There is nothing to run, or it is for another platform.
    pub fn container(&self, image: &ImageConfig, group: Option<Group>) -> Result<Container, RequestError> {
        let (actual, config) = (image.platform(), &image.config);
        // Without the flag an image of one platform is its own answer, as with FROM.
        if let Some(wanted) = self.args.platform.clone().filter(|wanted| !actual.satisfies(wanted)) {
            return Err(RequestError::OtherPlatform { actual: Box::new(actual), wanted: Box::new(wanted) });
        }
        let args = self.command(config.entrypoint.as_deref(), config.cmd.as_deref());
        if args.is_empty() {
            return Err(RequestError::Conflict("no command is given, and the image has none"));
        }
        let asked = self.args.hostname.as_deref().filter(|name| !name.is_empty());
        let hostname = asked.unwrap_or(HOSTNAME);
        let mut begin =
            vec![("PATH".to_owned(), PATH.to_owned()), ("HOSTNAME".to_owned(), hostname.to_owned())];
        if self.args.tty {
            begin.push(("TERM".to_owned(), "xterm".to_owned()));
        }
        let exec = Exec {
            env: environment::joined(begin, &config.env, &self.changes),
            user: self.args.user.clone().unwrap_or_else(|| config.user.clone()),
            workdir: self.args.workdir.clone().unwrap_or_else(|| clean_path(&config.working_dir)),
            network: self.args.network,
            hosts: request::hosts(&self.args.hosts),
            hostname: Some(hostname.to_owned()),
            ulimits: self.limits.ulimits.clone(),
            shared_memory: self.limits.shared_memory,
            security: self.limits.security(),
            relaxed: self.relaxed,
            ..Exec::new(args)
        };
        let volumes = config.volumes.iter().map(|path| clean_path(path)).filter(|path| path != "/");
        Ok(Container {
            exec,
            platform: actual,
            mounts: self.mounts.clone(),
            volumes: volumes.chain(self.volumes.iter().cloned()).collect(),
            root: if self.args.read_only { Access::Read } else { Access::Write },
            stdio: self.stdio,
            limits: sandbox::StepLimits { group, time: self.limits.time, room: self.limits.room },
            dns: self.limits.dns.clone(),
            naming: Naming::of(asked),
        })
    }

    /// An entry point of the command line takes the image's command away with its entry point; an empty one is none.
    fn command(&self, entrypoint: Option<&[String]>, cmd: Option<&[String]>) -> Vec<String> {
        let (first, usual) = match &self.args.entrypoint {
            Some(own) if own.is_empty() => (Vec::new(), None),
            Some(own) => (vec![own.clone()], None),
            None => (entrypoint.unwrap_or_default().to_vec(), cmd),
        };
        let rest = if self.command.is_empty() { usual.unwrap_or_default() } else { self.command };
        first.into_iter().chain(rest.iter().cloned()).collect()
    }
}

fn changes(args: &RunArgs, environment: &Environment) -> Result<Vec<Change>, RequestError> {
    let ours = |name: &str| match environment.get(name).map(|value| value.to_str()) {
        None => Ok(None),
        Some(Some(value)) => Ok(Some(value.to_owned())),
        Some(None) => Err(RequestError::NotText(name.to_owned())),
    };
    let mut changes = Vec::new();
    for path in &args.env_files {
        let read = |source| RequestError::Read { what: "--env-file", path: path.clone(), source };
        let text = fs::read_to_string(path).map_err(read)?;
        changes.extend(environment::of_file(&text, &path.display().to_string(), &ours)?);
    }
    for text in &args.env {
        changes.push(environment::of_flag(text, &ours)?);
    }
    Ok(changes)
}

/// What is mounted, and what is to be a volume. Docker would make a missing directory, as root's; who has mistyped a path
/// wants to know.
fn mounts(args: &RunArgs) -> Result<(Vec<PlannedMount>, Vec<String>), RequestError> {
    let (mut mounts, mut volumes) = (Vec::new(), Vec::new());
    for spec in &args.volumes {
        let (source, target, access) = match spec {
            VolumeSpec::Scratch(target) => {
                volumes.push(target.clone());
                continue;
            }
            VolumeSpec::Host { source, target, access } => (source, target, *access),
        };
        let read = |error| RequestError::Read { what: "the volume", path: source.clone(), source: error };
        fs::metadata(source).map_err(read)?;
        let path = std::path::absolute(source).map_err(read)?;
        mounts.push(PlannedMount { target: target.clone(), source: MountSource::Host { path, access } });
    }
    for TmpfsSpec { target, size } in &args.tmpfs {
        mounts.push(PlannedMount { target: target.clone(), source: MountSource::Tmpfs { size: *size } });
    }
    let mut targets: Vec<&String> = mounts.iter().map(|mount| &mount.target).collect();
    targets.sort();
    match targets.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(RequestError::MountTwice(pair[0].clone())),
        None => Ok((mounts, volumes)),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use oci::config::ContainerConfig;

    use super::*;
    use crate::args::{Cli, Command};

    fn parsed(line: &str) -> RunArgs {
        let words = ["layerwright", "run", "--root", "/nowhere"].into_iter().chain(line.split(' '));
        match Cli::try_parse_from(words).unwrap_or_else(|error| panic!("{line}: {error}")).command {
            Command::Run(args) => *args,
            _ => panic!("{line} is no run"),
        }
    }

    fn container(line: &str, config: ContainerConfig) -> Result<Container, String> {
        let environment = Environment {
            variables: [("OURS".into(), "1".into())].into(),
            stderr_is_terminal: false,
            stdin_is_terminal: false,
            is_root: false,
        };
        let args = parsed(line);
        let options = Options::read(&args, &environment).map_err(|error| error.to_string())?;
        let image = ImageConfig { config, ..ImageConfig::empty(&Platform::host()) };
        options.container(&image, None).map_err(|error| error.to_string())
    }

    fn config() -> ContainerConfig {
        let words = |text: &str| Some(text.split(' ').map(str::to_owned).collect());
        ContainerConfig {
            entrypoint: words("/entry a"),
            cmd: words("cmd b"),
            user: "app".to_owned(),
            working_dir: "/w".to_owned(),
            volumes: ["/data/".to_owned(), "/".to_owned()].into(),
            ..ContainerConfig::default()
        }
    }

    #[test]
    fn commands_are_put_together_as_docker_does() {
        for (line, expected) in [
            ("image", "/entry a cmd b"),
            ("image x -e y", "/entry a x -e y"),
            ("image -- x", "/entry a x"),
            ("image sh -c -- x", "/entry a sh -c -- x"),
            ("image -e", "/entry a -e"),
            ("--entrypoint /own image", "/own"),
            ("--entrypoint /own image x", "/own x"),
            ("--entrypoint= image x", "x"),
            ("-it=false --rm image x", "/entry a x"),
        ] {
            assert_eq!(
                container(line, config()).map(|made| made.exec.args.join(" ")).as_deref(),
                Ok(expected),
                "{line}"
            );
        }
        for (line, config) in [("image", ContainerConfig::default()), ("--entrypoint= image", config())] {
            let error = container(line, config).expect_err("nothing to run");
            assert_eq!(error, "no command is given, and the image has none");
        }
    }

    #[test]
    fn flags_win_over_the_image() {
        let made = container("image", config()).expect("good");
        assert_eq!((made.exec.user.as_str(), made.exec.workdir.as_str()), ("app", "/w"));
        assert_eq!(made.volumes.iter().collect::<Vec<_>>(), ["/data"]);
        assert_eq!((made.root, made.stdio), (Access::Write, Stdio::Logged));
        let line = "-u 1:2 -w /x -v /anonymous -v /tmp:/t:ro --tmpfs /m:size=1k --read-only -i --hostname h -e OURS image";
        let made = container(line, config()).expect("good");
        assert_eq!((made.exec.user.as_str(), made.exec.workdir.as_str()), ("1:2", "/x"));
        assert_eq!(made.volumes.iter().collect::<Vec<_>>(), ["/anonymous", "/data"]);
        let tmp = MountSource::Host { path: "/tmp".into(), access: Access::Read };
        let sources: Vec<_> = made.mounts.into_iter().map(|mount| mount.source).collect();
        assert_eq!(sources, [tmp, MountSource::Tmpfs { size: Some(1024) }]);
        assert_eq!((made.root, made.stdio), (Access::Read, Stdio::Fed));
        let env: Vec<_> = made.exec.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(env, [format!("PATH={PATH}"), "HOSTNAME=h".to_owned(), "OURS=1".to_owned()]);
    }

    #[test]
    fn what_makes_no_sense_is_refused_before_anything_is_pulled() {
        for (line, expected) in [
            ("-it image", "not a TTY"),
            ("-v /no/such/place:/x image", "cannot read the volume /no/such/place"),
            ("-v /tmp:/x --tmpfs /x image", "/x"),
            ("--platform linux/s390x image x", "not for linux/s390x"),
            ("--env-file /no/such/file image", "cannot read --env-file /no/such/file"),
        ] {
            let error = container(line, config()).expect_err(line);
            assert!(error.contains(expected), "{line}: {error}");
        }
    }
}
