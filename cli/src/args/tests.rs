use super::*;

fn build(line: &str) -> Result<BuildArgs, String> {
    let argv = ["layerwright", "build"].into_iter().chain(line.split_whitespace());
    match parse(argv) {
        Ok(Cli { command: Command::Build(args) }) => Ok(*args),
        Ok(other) => Err(format!("{other:?}")),
        Err(NotParsed::Clap(error)) => Err(error.to_string()),
        Err(NotParsed::Refused(error)) => Err(error.to_string()),
    }
}

#[test]
fn what_is_less_than_nothing_is_told_by_the_flag_it_is_given_to() {
    for flag in ["--shm-size", "-m", "--cpus", "--cpu-period", "-c", "--step-timeout", "--step-max-disk"] {
        let told = build(&format!("{flag} -1 .")).expect_err(flag);
        assert!(told.contains("invalid value '-1'"), "{flag}: {told}");
    }
}

#[test]
fn the_definition_is_sound() {
    command().debug_assert();
}

/// clap wraps what is longer once more, which takes columns apart.
#[test]
fn help_that_is_laid_out_by_hand_fits_a_terminal() {
    let root = command();
    let help =
        |command: &clap::Command| command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let helps: Vec<String> = root.get_subcommands().map(help).collect();
    assert!(helps.iter().filter(|help| !help.is_empty()).count() >= 4, "{helps:?}");
    for line in helps.iter().flat_map(|help| help.lines()) {
        assert!(line.chars().count() <= 80, "{line}");
    }
}

#[test]
fn flags_are_read_as_docker_reads_them() {
    let args = build("-f- -t=app --tag reg.io/a:1 --build-arg A=b=c --build-arg B --push=false --no-cache .");
    let args = args.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(args.file.as_deref(), Some("-"));
    let tag = |text: &str| TagSpec::Plain(text.parse().expect("a reference"));
    assert_eq!(args.tags, [tag("app"), tag("reg.io/a:1")]);
    assert_eq!(args.build_args, ["A=b=c", "B"]);
    assert_eq!((args.push, args.no_cache, args.pull, args.quiet), (false, true, false, false));
    assert_eq!((args.network, args.progress, args.timestamps), (Network::Default, None, Timestamps::Auto));
}

#[test]
fn flags_may_follow_the_context() {
    let args = build(". -q --network none --platform linux/amd64,linux/arm64 --jobs 3 --pull");
    let args = args.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!((args.context.as_str(), args.quiet, args.pull), (".", true, true));
    assert_eq!((args.network, args.platforms.len()), (Network::None, 2));
    assert_eq!(args.jobs.map(NonZeroUsize::get), Some(3));
}

#[test]
fn what_cannot_be_done_is_refused_by_name() {
    for (line, want) in [
        ("", "<CONTEXT>"),
        (". extra", "extra"),
        ("--frobnicate .", "--frobnicate"),
        ("--network bridge .", "expected default, none, host or isolated"),
        ("--progress rawjson .", "rawjson"),
        ("--jobs 0 .", "--jobs"),
        ("--retry often .", "expected a number like 0 or 3"),
        ("--retry -1 .", "expected a number like 0 or 3"),
        ("-t App .", "lowercase"),
        ("--push=maybe .", "expected true or false"),
        ("--platform linux/ .", "invalid platform"),
        ("--platform foo .", "no operating system or architecture has that name"),
        ("--secret src=x .", "id= is missing"),
        ("--attest type=sbom .", "--attest: "),
        ("-m 0 .", "expected a size like 64m"),
        ("--ulimit files=1 .", "unknown limit \"files\""),
        ("--cpus=-1 .", "expected a number of processors"),
        ("--sandbox-allow seccomp .", "expected one of userns, no-seccomp, no-landlock, no-keyring,"),
        ("--step-timeout 0s .", "expected a time of at least 1s"),
        ("--dns host .", "--dns"),
        ("--cgroup-parent ../x .", "expected the path of a control group"),
        ("--load=perhaps .", "expected true or false"),
        ("--rm=false .", "--rm: "),
    ] {
        let error = build(line).expect_err(line);
        assert!(error.contains(want), "{line}: {error}");
    }
}

#[test]
fn limits_are_read_as_docker_reads_them() {
    let line = "-m 64m --memory-swap -1 -c 512 --pids-limit -1 --cpu-quota -1 --resource cpuset-cpus=0 \
                --dns-opt ndots:1 --dns ::1 --ulimit core=-1 .";
    let limits = build(line).unwrap_or_else(|error| panic!("{error}")).limits;
    assert_eq!((limits.memory, limits.cpu_shares), (Some(64 << 20), Some(512)));
    let unlimited = Some(executor::sandbox::Amount::Unlimited);
    assert_eq!([limits.memory_swap, limits.pids_limit, limits.cpu_quota], [unlimited; 3]);
    assert_eq!((limits.resources.len(), limits.ulimits.len()), (1, 1));
    assert_eq!((limits.dns.len(), limits.dns_options), (1, vec!["ndots:1".to_owned()]));
}

#[test]
fn every_flag_is_one_line_of_the_help() {
    let mut command = command().term_width(100);
    command.build();
    let build = command.find_subcommand_mut("build").expect("there is one");
    let help = build.render_help().to_string();
    assert!(help.lines().all(|line| line.chars().count() <= 100), "{help}");
    assert!(help::BUILD.lines().all(|line| line.chars().count() < 100), "none is wrapped");
    let lines: Vec<&str> = help.lines().map(str::trim_start).collect();
    let shown = build.get_arguments().filter(|arg| !arg.is_hide_set() && !arg.is_positional());
    for arg in shown {
        let flag = format!("--{}", arg.get_long().expect("flags have long names"));
        let line = lines.iter().find(|line| line.starts_with('-') && names(line, &flag));
        let text = line.unwrap_or_else(|| panic!("{flag} is not there\n{help}"));
        assert!(text.ends_with(&arg.get_help().expect("told").to_string()), "{text}\n{help}");
    }
    assert!(!help.contains("--attest"), "{help}");
    for kind in ["registry", "image", "oci", "docker", "tar", "local", "cacheonly"] {
        assert!(help.contains(&format!("type={kind}")), "{kind}: {help}");
    }
}

/// Whether a line of the help is about a flag.
fn names(line: &str, flag: &str) -> bool {
    line.split([' ', '[']).take(2).any(|word| word == flag)
}
