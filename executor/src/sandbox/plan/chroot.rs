//! What a step can ask for and a chroot cannot give: each needs a mount, a namespace or a capability. It is refused by name, for
//! all steps of a build before the first one runs.

use solver::{
    Graph,
    op::{self, Mount, Op, Relaxation},
};

use super::{Footing, Naming, PlannedMount, Rung};
use crate::sandbox::SandboxError;

/// Refuses a build that has a step which asks for what [`Rung::Chroot`] does not have; names all of them.
///
/// # Errors
/// There is one, and that is the rung.
pub fn refuse_beyond_chroot(footing: Footing, graph: &Graph) -> Result<(), SandboxError> {
    if footing.rung != Rung::Chroot {
        return Ok(());
    }
    let asked: Vec<String> = graph
        .vertices()
        .filter_map(|(_, vertex)| match &vertex.op {
            Op::Exec(exec) => Some((&vertex.label, exec)),
            _ => None,
        })
        .flat_map(|(label, exec)| {
            let named = Naming::of(exec.hostname.as_deref()) == Naming::Asked;
            let name = named.then(|| "a host name (BUILDKIT_SANDBOX_HOSTNAME)".to_owned());
            let asked = beyond_chroot(exec, &[]).into_iter().chain(name);
            asked.map(move |what| format!("{label}: {what}"))
        })
        .collect();
    if asked.is_empty() {
        return Ok(());
    }
    let message = format!("it has no mounts and no namespaces, and so nothing for\n  {}", asked.join("\n  "));
    let hint = "build where user namespaces are allowed, without --sandbox=chroot; a secret in an environment variable can be had \
                (--mount=type=secret,env=NAME)";
    Err(SandboxError::step("chroot", &message, Some(hint.to_owned())))
}

/// What is asked for beyond a chroot, as people write it. Whether a name was asked for only [`super::SandboxPlan::naming`] says.
pub(super) fn beyond_chroot(exec: &op::Exec, mounts: &[PlannedMount]) -> Vec<String> {
    let mut asked: Vec<String> = exec.mounts.iter().filter_map(mount).collect();
    if asked.is_empty() {
        asked.extend(mounts.iter().map(|mount| format!("something mounted at {}", mount.target)));
    }
    let others = [
        (exec.network == op::Network::None, "--network=none"),
        (exec.network == op::Network::Isolated, "--network=isolated"),
        (exec.security == op::Security::Insecure, "--security=insecure"),
        (!exec.devices.is_empty(), "--device"),
        (exec.shared_memory.is_some(), "--shm-size"),
        (exec.relaxed.contain(Relaxation::Userns), "--sandbox-allow=userns"),
    ];
    asked.extend(others.into_iter().filter(|(is_asked, _)| *is_asked).map(|(_, what)| what.to_owned()));
    asked
}

fn mount(mount: &Mount) -> Option<String> {
    let (kind, target) = match mount {
        Mount::Bind(bind) => ("bind", &bind.target),
        Mount::Cache(cache) => ("cache", &cache.target),
        Mount::Tmpfs { target, .. } => ("tmpfs", target),
        // In a variable alone it needs no mount.
        Mount::Secret(secret) => ("secret", &secret.file.as_ref()?.target),
        Mount::Ssh(ssh) => ("ssh", &ssh.socket.target),
    };
    Some(format!("--mount=type={kind} ({target})"))
}

#[cfg(test)]
mod tests {
    use solver::op::{Exec, Security};

    use super::*;
    use crate::sandbox::plan::MountSource;

    #[test]
    fn everything_that_is_asked_for_is_named() {
        let tmpfs = Mount::Tmpfs { target: "/t".to_owned(), size: None };
        let exec = Exec {
            mounts: vec![tmpfs],
            network: op::Network::None,
            security: Security::Insecure,
            shared_memory: Some(1),
            ..Exec::new(["true"])
        };
        let asked = beyond_chroot(&exec, &[]);
        let named = ["--mount=type=tmpfs (/t)", "--network=none", "--security=insecure", "--shm-size"];
        assert_eq!(asked, named);
        let plain = Exec::new(["true"]);
        assert_eq!(beyond_chroot(&plain, &[]), Vec::<String>::new());
        let volume = PlannedMount { target: "/v".to_owned(), source: MountSource::Tmpfs { size: None } };
        assert_eq!(beyond_chroot(&plain, &[volume]), ["something mounted at /v"]);
    }
}
