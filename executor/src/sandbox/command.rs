//! From a forked copy of the inner init to the step's command: gives up everything the plan does not grant, in an
//! order in which each step is still allowed, and executes.

use std::{ffi::CString, io, os::fd::OwnedFd};

use rustix::{
    fs::{CWD, Mode, OFlags, fchown, open},
    io::Errno,
    process::{
        Gid, Signal, Uid, fchdir, getcwd, ioctl_tiocsctty, set_parent_process_death_signal, setsid, umask,
    },
    stdio::{stderr, stdin, stdout},
    thread::{
        CapabilitySet, CapabilitySets, clear_ambient_capability_set, remove_capability_from_bounding_set,
        set_capabilities, set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
    },
};

use crate::{
    sandbox::{
        cgroups::StepGroup,
        chroot,
        failure::{Failure, NamePlace, NameStep},
        lacking,
        plan::{
            Capability, Keyring, Need, Nesting, Processes, Rung, SandboxPlan, Scope, SeccompProfile,
            SecretBytes, Security, Stdio, User,
        },
        rlimits, seccomp,
        stubs::{Kind, Stubs, Unmade},
        sys,
        wire::{Report, report_line},
    },
    view::open_in_root,
};

/// Becomes the command; `new_root` is where it has no root of its own yet, and `tell` what the builder hears of its beginning.
/// Returns only when that fails, with what the builder should hear.
pub fn execute(
    plan: &SandboxPlan,
    group: Option<&StepGroup>,
    new_root: Option<&OwnedFd>,
    tell: impl FnOnce(&[u8]),
) -> Report {
    // The last things that take memory, of which the step's limits may leave none.
    let begun = report_line(&Report::Begun).step("write a report");
    let prepared = begun.and_then(|begun| Ok((begun, Program::of(plan)?)));
    match prepared.and_then(|prepared| confine(plan, group, new_root).map(|()| prepared)) {
        Ok((begun, program)) => {
            tell(&begun);
            program.exec()
        }
        Err(failure) => failure.report(),
    }
}

fn confine(plan: &SandboxPlan, group: Option<&StepGroup>, new_root: Option<&OwnedFd>) -> Result<(), Failure> {
    if let Some(group) = group {
        group.join()?;
    }
    if let Some(root) = new_root {
        chroot::change_root(root)?;
    }
    sys::reset_signals();
    let keyring = match plan.keyring {
        Keyring::Own => Need::Required,
        Keyring::WherePossible => Need::WherePossible,
    };
    lacking::KEYRING.if_had(sys::new_session_keyring().map_err(io::Error::from), keyring)?;
    setsid().step("setsid")?;
    if matches!(plan.stdio, Stdio::Terminal { .. }) {
        ioctl_tiocsctty(stdin()).step("take the terminal")?;
    }
    umask(Mode::from_raw_mode(0o022));
    enter_scope(plan.scope)?;
    let name = format!("enter working directory {}", plan.cwd);
    enter_working_directory(&plan.cwd).or_else(|unmade| match unmade {
        // What root may not enter, here where all that there is belongs to the step, is another process's part of /proc.
        Unmade::Refused(Errno::ACCESS) => Err(Failure::of_image(&name, Errno::ACCESS.to_string())),
        unmade => Err(unmade).place(&name),
    })?;
    let kept = match &plan.security {
        Security::Sandbox { capabilities, seccomp, nesting, filter, no_new_privileges, .. } => {
            if *no_new_privileges {
                set_no_new_privs(true).step("set no_new_privs")?;
            }
            // Without no_new_privs, which would break sudo and su, a filter can be loaded with CAP_SYS_ADMIN only.
            load_filter(*seccomp, *nesting, *filter)?;
            capability_set(capabilities) & granted(plan.rung).step("look at capabilities")?
        }
        Security::Insecure => rustix::thread::capabilities(None).step("look at capabilities")?.permitted,
    };
    cut_bounding_set(kept).step("cut bounding set")?;
    hand_over_streams(&plan.user, plan.stdio).step(&format!("become user {}", plan.user.uid))?;
    rlimits::set(&plan.limits.processes)?;
    become_user(&plan.user, plan.rung)?;
    drop_capabilities(kept, &plan.user).step("drop capabilities")?;
    if plan.processes == Processes::Shared {
        // The last of several nets, and the kernel takes it away from whoever changes its user.
        set_parent_process_death_signal(Some(Signal::KILL)).step("set parent death signal")?;
    }
    sys::close_rest_on_exec().step("close descriptors")
}

fn load_filter(profile: SeccompProfile, nesting: Nesting, need: Need) -> Result<(), Failure> {
    let loaded = sys::load_seccomp(&seccomp::program(profile, nesting));
    lacking::FILTER.if_had(loaded.map_err(io::Error::from), need).map(drop)
}

fn enter_scope(scope: Scope) -> Result<(), Failure> {
    let has_scopes = sys::landlock_abi() >= sys::LANDLOCK_ABI_WITH_SCOPES;
    match scope {
        Scope::WherePossible if !has_scopes => Ok(()),
        Scope::Required if !has_scopes => {
            Err(Failure::new("landlock scope", "nothing else keeps this step from other processes"))
        }
        Scope::Required | Scope::WherePossible => sys::landlock_scope().step("landlock scope"),
    }
}

/// Goes there through the root directory, so that no link leads out, and asks the kernel where that is.
fn enter_working_directory(cwd: &str) -> Result<(), Unmade> {
    let root = open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    // What it makes is the step's and stays.
    Stubs::default().ensure(&root, cwd.as_bytes(), Kind::Directory)?;
    let directory: OwnedFd = open_in_root(&root, cwd.as_bytes(), OFlags::PATH | OFlags::DIRECTORY)?;
    fchdir(directory)?;
    let is_inside = getcwd(Vec::new())?.as_bytes().starts_with(b"/");
    if is_inside { Ok(()) } else { Err(Errno::XDEV.into()) }
}

/// What a step can be given at most. A container can have less than we need ourselves and a step may have.
fn granted(rung: Rung) -> Result<CapabilitySet, Errno> {
    match rung {
        Rung::Chroot => Ok(rustix::thread::capabilities(None)?.permitted),
        Rung::Root | Rung::SubordinateIds | Rung::SingleId => Ok(CapabilitySet::all()),
    }
}

fn cut_bounding_set(kept: CapabilitySet) -> Result<(), Errno> {
    // Every one there can be, not every one that we know.
    for bit in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        if kept.contains(capability) {
            continue;
        }
        match remove_capability_from_bounding_set(capability) {
            // One that this kernel does not know.
            Ok(()) | Err(Errno::INVAL) => {}
            Err(errno) => return Err(errno),
        }
    }
    clear_ambient_capability_set()
}

/// Gives the step's user its own standard streams: `/dev/stdout` opens one anew, which for a pipe or a terminal asks for
/// its owner.
fn hand_over_streams(user: &User, stdio: Stdio) -> Result<(), Errno> {
    let owner = Some(Uid::from_raw(user.uid));
    if stdio != Stdio::Logged {
        fchown(stdin(), owner, None)?;
    }
    fchown(stdout(), owner, None)?;
    fchown(stderr(), owner, None)
}

fn become_user(user: &User, rung: Rung) -> Result<(), Failure> {
    // With one id nobody may change groups, and the plan has none.
    if rung != Rung::SingleId {
        let groups: Vec<Gid> = user.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
        set_thread_groups(&groups).step("setgroups")?;
    }
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    set_thread_res_gid(gid, gid, gid).step(&format!("become group {}", user.gid))?;
    set_thread_res_uid(uid, uid, uid).step(&format!("become user {}", user.uid))
}

fn drop_capabilities(kept: CapabilitySet, user: &User) -> Result<(), Errno> {
    let kept = if user.uid == 0 { kept } else { CapabilitySet::empty() };
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets)
}

fn capability_set(capabilities: &[Capability]) -> CapabilitySet {
    capabilities.iter().map(|capability| bit(*capability)).collect()
}

fn bit(capability: Capability) -> CapabilitySet {
    match capability {
        Capability::Chown => CapabilitySet::CHOWN,
        Capability::DacOverride => CapabilitySet::DAC_OVERRIDE,
        Capability::Fowner => CapabilitySet::FOWNER,
        Capability::Fsetid => CapabilitySet::FSETID,
        Capability::Kill => CapabilitySet::KILL,
        Capability::Setgid => CapabilitySet::SETGID,
        Capability::Setuid => CapabilitySet::SETUID,
        Capability::Setpcap => CapabilitySet::SETPCAP,
        Capability::NetBindService => CapabilitySet::NET_BIND_SERVICE,
        Capability::SysChroot => CapabilitySet::SYS_CHROOT,
        Capability::Mknod => CapabilitySet::MKNOD,
        Capability::Setfcap => CapabilitySet::SETFCAP,
    }
}

/// Where a command is looked for when the environment does not say; what images without a PATH get.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What is to be executed, as the kernel takes it.
struct Program {
    name: String,
    args: Vec<CString>,
    env: Vec<CString>,
    candidates: Vec<CString>,
}

impl Program {
    fn of(plan: &SandboxPlan) -> Result<Self, Failure> {
        fn strings(strings: Vec<impl Into<Vec<u8>>>) -> Result<Vec<CString>, Failure> {
            let made: Result<_, _> = strings.into_iter().map(CString::new).collect();
            made.map_err(|_| Failure::new("prepare arguments", "a NUL character"))
        }
        let open = plan.env.iter().map(|(name, value)| (name, value.as_bytes()));
        let secret = plan.secret_env.iter().map(|(name, SecretBytes(value))| (name, value.as_slice()));
        let env = open.chain(secret).map(|(name, value)| [name.as_bytes(), b"=", value].concat()).collect();
        Ok(Self {
            name: plan.args[0].clone(),
            args: strings(plan.args.clone())?,
            env: strings(env)?,
            candidates: strings(candidates(&plan.args[0], &plan.env))?,
        })
    }

    fn exec(&self) -> Report {
        let mut refusal = Errno::NOENT;
        for candidate in &self.candidates {
            match sys::execve(candidate, &self.args, &self.env) {
                Errno::NOENT | Errno::NOTDIR if !exists(candidate) => {}
                // Like a shell, remember a file that may not be executed but look for a better one.
                Errno::ACCESS => refusal = Errno::ACCESS,
                errno => return not_executed(&self.name, errno, Found::Yes),
            }
        }
        not_executed(&self.name, refusal, if refusal == Errno::NOENT { Found::No } else { Found::Yes })
    }
}

/// The paths that could be meant by a command: itself when it has a slash, else one for each directory of PATH, where
/// an empty one is the working directory.
fn candidates(command: &str, env: &[(String, String)]) -> Vec<String> {
    if command.contains('/') {
        return vec![command.to_owned()];
    }
    let path = env.iter().find(|(name, _)| name == "PATH").map_or(DEFAULT_PATH, |(_, value)| value);
    path.split(':')
        .map(|directory| if directory.is_empty() { "." } else { directory })
        .map(|directory| format!("{directory}/{command}"))
        .collect()
}

fn exists(path: &CString) -> bool {
    rustix::fs::statat(CWD, path, rustix::fs::AtFlags::empty()).is_ok()
}

/// Whether there is a file of that name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Yes,
    No,
}

fn not_executed(command: &str, errno: Errno, found: Found) -> Report {
    let reason = match (found, errno) {
        (Found::No, _) if command.contains('/') => "no such file".to_owned(),
        (Found::No, _) => "not found in PATH".to_owned(),
        (Found::Yes, Errno::NOENT) => "the interpreter or dynamic loader it names does not exist".to_owned(),
        (Found::Yes, Errno::NOEXEC) => {
            "not a program of this machine's architecture, nor a script with a #! line".to_owned()
        }
        (Found::Yes, errno) => errno.to_string(),
    };
    let code = if found == Found::No { 127 } else { 126 };
    Report::NotExecuted { code, message: format!("exec: {command:?}: {reason}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_looked_for_in_the_steps_own_path() {
        let env = |path: &str| vec![("PATH".to_owned(), path.to_owned())];
        let cases = [
            ("/bin/sh", env("/usr/bin"), vec!["/bin/sh"]),
            ("./a", env("/usr/bin"), vec!["./a"]),
            ("sh", env("/a:/b"), vec!["/a/sh", "/b/sh"]),
            ("sh", env(":/b"), vec!["./sh", "/b/sh"]),
            (
                "sh",
                vec![],
                vec![
                    "/usr/local/sbin/sh",
                    "/usr/local/bin/sh",
                    "/usr/sbin/sh",
                    "/usr/bin/sh",
                    "/sbin/sh",
                    "/bin/sh",
                ],
            ),
        ];
        for (command, env, expected) in cases {
            assert_eq!(candidates(command, &env), expected, "{command}");
        }
    }

    #[test]
    fn every_capability_has_its_own_bit() {
        assert_eq!(capability_set(&Capability::ALL).bits().count_ones(), 12);
    }
}
