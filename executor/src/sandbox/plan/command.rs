//! What a command is given as texts: its arguments and its environment.

use solver::op;

use super::{PlanError, SecretBytes};

/// Refuses what no process can be given.
pub(super) fn check_strings(exec: &op::Exec, ambient_env: &[(String, String)]) -> Result<(), PlanError> {
    if exec.args.first().is_none_or(String::is_empty) {
        return Err(PlanError::NoCommand);
    }
    if !exec.workdir.starts_with('/') {
        return Err(PlanError::RelativeDirectory(exec.workdir.clone()));
    }
    let variables = exec.env.iter().chain(ambient_env);
    let has_nul = |text: &str| text.contains('\0');
    let nul = [
        ("an argument", exec.args.iter().any(|arg| has_nul(arg))),
        (
            "an environment variable",
            variables.into_iter().any(|(name, value)| has_nul(name) || has_nul(value)),
        ),
        ("the working directory", has_nul(&exec.workdir)),
    ];
    nul.into_iter().find(|(_, found)| *found).map_or(Ok(()), |(what, _)| Err(PlanError::Nul { what }))
}

/// Every name once, at the place of its first mention, with its last value.
pub(super) fn environment(
    env: &[(String, String)],
    ambient: &[(String, String)],
    home: Option<&str>,
) -> Vec<(String, String)> {
    let mut merged: Vec<(String, String)> = Vec::with_capacity(env.len() + ambient.len() + 1);
    for (name, value) in env {
        match merged.iter_mut().find(|(known, _)| known == name) {
            Some((_, old)) => old.clone_from(value),
            None => merged.push((name.clone(), value.clone())),
        }
    }
    for (name, value) in ambient {
        if !merged.iter().any(|(known, _)| known == name) {
            merged.push((name.clone(), value.clone()));
        }
    }
    if let Some(home) = home
        && !merged.iter().any(|(name, value)| name == "HOME" && !value.is_empty())
    {
        merged.retain(|(name, _)| name != "HOME");
        merged.push(("HOME".to_owned(), home.to_owned()));
    }
    merged
}

/// The variable by which SSH finds its agent names the first socket, as BuildKit has it: whether or not there is an
/// agent, and unless the image has its own.
pub(super) fn add_agent(env: &mut Vec<(String, String)>, mounts: &[op::Mount]) {
    let socket = mounts.iter().find_map(|mount| match mount {
        op::Mount::Ssh(ssh) => Some(&ssh.socket.target),
        _ => None,
    });
    let Some(socket) = socket else { return };
    if !env.iter().any(|(name, _)| name == SSH_AUTH_SOCK) {
        env.push((SSH_AUTH_SOCK.to_owned(), socket.clone()));
    }
}

const SSH_AUTH_SOCK: &str = "SSH_AUTH_SOCK";

/// Refuses values that no variable can have.
pub(super) fn checked_secrets(
    secrets: Vec<(String, SecretBytes)>,
) -> Result<Vec<(String, SecretBytes)>, PlanError> {
    match secrets.iter().any(|(name, SecretBytes(value))| name.contains('\0') || value.contains(&0)) {
        true => Err(PlanError::Nul { what: "a secret in an environment variable" }),
        false => Ok(secrets),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `a=1 b=2` as variables.
    fn variables(text: &str) -> Vec<(String, String)> {
        let pairs = text.split_whitespace().filter_map(|pair| pair.split_once('='));
        pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    #[test]
    fn every_variable_is_there_once() {
        let cases = [
            ("a=1 b=2 a=3", "", None, "a=3 b=2"),
            ("a=1", "a=2 proxy=3", None, "a=1 proxy=3"),
            ("a=1", "", Some("/root"), "a=1 HOME=/root"),
            ("HOME=/x", "", Some("/root"), "HOME=/x"),
            ("HOME= a=1", "", Some("/root"), "a=1 HOME=/root"),
        ];
        for (env, ambient, home, expected) in cases {
            assert_eq!(
                environment(&variables(env), &variables(ambient), home),
                variables(expected),
                "{env} {ambient}"
            );
        }
    }
}
