//! `layerwright login` and `layerwright logout`: who we are to registries, kept where docker keeps it.
//!
//! A login is tried before it is kept, so that one which fails changes nothing. What people must know beside the result
//! goes to standard error; no password is ever part of it.

mod terminal;

use std::io::{self, Read, Write};

use oci::registry::{
    CredentialError, Keeper, KeptLogin, Login, LoginFile, LoginName, Proof, RegistryOptions, Secret, Welcome,
    verify, verify_kept,
};

use crate::{
    args::{LoginArgs, LogoutArgs},
    failure::{Failure, chain},
    redact::redact,
    request::Environment,
    signals::Signal,
};

/// Longest password that is read.
const MAX_PASSWORD: u64 = 64 << 10;
/// As docker says it; scripts look for it.
const SUCCEEDED: &str = "Login Succeeded\n";

/// Why somebody is not logged in or out.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    /// Nobody is there to be asked.
    #[error("cannot ask for {what}: standard input is no terminal")]
    NoTerminal {
        /// What is missing.
        what: &'static str,
    },
    /// Nothing was typed.
    #[error("no {what} was given")]
    Empty {
        /// What is missing.
        what: &'static str,
    },
    /// Standard input.
    #[error("cannot read {what}")]
    Read {
        /// What was expected there.
        what: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The file or its helper.
    #[error(transparent)]
    Credentials(#[from] CredentialError),
}

impl LoginError {
    /// Whether the command line can mend it.
    pub fn is_usage(&self) -> bool {
        match self {
            Self::NoTerminal { .. } | Self::Empty { .. } => true,
            Self::Read { .. } => false,
            Self::Credentials(error) => {
                matches!(error, CredentialError::NoPlace | CredentialError::Scoped { .. })
            }
        }
    }

    /// What to do about it, if we know.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::NoTerminal { .. } => {
                Some("give --username, and the password on standard input with --password-stdin")
            }
            Self::Credentials(CredentialError::NoPlace) => Some("--authfile names the file to keep them in"),
            Self::Credentials(CredentialError::Scoped { .. }) => {
                Some("log in to the whole registry, or name a file without that helper with --authfile")
            }
            Self::Credentials(CredentialError::Write { .. }) => {
                Some("--authfile or DOCKER_CONFIG puts them elsewhere; the login itself was right")
            }
            Self::Empty { .. } | Self::Read { .. } | Self::Credentials(_) => None,
        }
    }
}

/// `layerwright login`: the text for standard output.
///
/// # Errors
/// The registry refuses, or the login cannot be kept.
pub fn login(args: &LoginArgs) -> Result<String, Failure> {
    let environment = Environment::of_process();
    let given = Given::read(args)?;
    let name = args.registry.clone().unwrap_or_default();
    let file = file(args.registries.auth_file.as_deref(), &environment)?;
    // What cannot be kept need not be asked for.
    file.keeper(name.as_str()).map_err(LoginError::from)?;
    warn_of_environment(&environment, &file);
    let options = || -> Result<_, Failure> {
        let hosts = args.registries.hosts(&environment)?;
        Ok(RegistryOptions { hosts, ..RegistryOptions::default() })
    };
    let (user, password) = match given {
        Given { user: Some(user), password: Some(password) } => (user, password),
        Given { user: None, password: None } => match verify_kept(options()?, &file, &name)? {
            Some(KeptLogin { refusal: None, user }) => return Ok(greet_again(&name, user)),
            Some(KeptLogin { refusal: Some(refusal), user }) => {
                tell(&format!("the login that is kept is good no more: {}", chain(&refusal)));
                ask(&name, Given { user: None, password: None }, user)?
            }
            None => ask(&name, Given { user: None, password: None }, None)?,
        },
        given => ask(&name, given, None)?,
    };
    let proof = match verify(options()?, &name, &user, &password)? {
        Welcome::Known(proof) => proof,
        Welcome::NotAsked => {
            tell(&format!("{} does not ask who one is: the password was not checked", name.registry()));
            Proof::Password(password)
        }
    };
    let keeper = file.keep(name.as_str(), &Login { user, proof }).map_err(LoginError::from)?;
    if keeper == Keeper::File {
        let path = file.path().display();
        tell(&format!(
            "the login is kept unencrypted in {path}: a credential helper (credsStore there) would not"
        ));
    }
    Ok(SUCCEEDED.to_owned())
}

/// `layerwright logout`: the text for standard output.
///
/// # Errors
/// The file or a helper fails.
pub fn logout(args: &LogoutArgs) -> Result<String, Failure> {
    let environment = Environment::of_process();
    let file = file(args.auth_file.as_deref(), &environment)?;
    warn_of_environment(&environment, &file);
    if args.all {
        let gone = file.forget_all().map_err(LoginError::from)?;
        let lines: String = gone.iter().map(|name| removed(name)).collect();
        return Ok(if lines.is_empty() { "Not logged in to any registry\n".to_owned() } else { lines });
    }
    let name = args.registry.clone().unwrap_or_default();
    let was_there = file.forget(name.as_str()).map_err(LoginError::from)?;
    Ok(match was_there {
        true => removed(name.as_str()),
        false => format!("Not logged in to {}\n", name.as_str()),
    })
}

fn removed(name: &str) -> String {
    format!("Removing login credentials for {name}\n")
}

fn greet_again(name: &LoginName, user: Option<String>) -> String {
    let user = user.map(|user| format!(" [Username: {user}]")).unwrap_or_default();
    tell_plainly(&format!("Authenticating with existing credentials for {}...{user}", name.as_str()));
    SUCCEEDED.to_owned()
}

fn file(named: Option<&std::path::Path>, environment: &Environment) -> Result<LoginFile, LoginError> {
    let variable = |name: &str| environment.get(name).map(std::ffi::OsStr::to_os_string);
    Ok(LoginFile::choose(named, &variable)?)
}

/// A variable that hides what the file says.
fn warn_of_environment(environment: &Environment, file: &LoginFile) {
    if environment.text("DOCKER_AUTH_CONFIG").is_some() {
        tell(&format!("DOCKER_AUTH_CONFIG is set, and goes before {}", file.path().display()));
    }
}

fn tell(warning: &str) {
    tell_plainly(&format!("warning: {warning}"));
}

fn tell_plainly(text: &str) {
    let _ = writeln!(anstream::stderr(), "{}", redact(text));
}

/// What the command line and standard input say.
struct Given {
    user: Option<String>,
    password: Option<Secret>,
}

impl Given {
    fn read(args: &LoginArgs) -> Result<Self, LoginError> {
        if args.password.is_some() {
            tell("--password can be seen by every user of this machine: use --password-stdin");
        }
        let password = match args.password_stdin {
            true => Some(read_password(&mut io::stdin().lock())?),
            false => args.password.clone(),
        };
        let user = args.username.clone();
        if user.as_deref() == Some("") {
            return Err(LoginError::Empty { what: "user name" });
        }
        match password {
            Some(password) if password.is_empty() => Err(LoginError::Empty { what: "password" }),
            password => Ok(Self { user, password }),
        }
    }
}

/// All there is, without the end of its only line.
fn read_password(input: &mut dyn Read) -> Result<Secret, LoginError> {
    let read = |source| LoginError::Read { what: "the password from standard input", source };
    let mut text = String::new();
    input.take(MAX_PASSWORD + 1).read_to_string(&mut text).map_err(read)?;
    if text.len() as u64 > MAX_PASSWORD {
        return Err(read(io::Error::other(format!("longer than {MAX_PASSWORD} bytes"))));
    }
    let text = text.strip_suffix('\n').unwrap_or(&text);
    Ok(Secret::new(text.strip_suffix('\r').unwrap_or(text).to_owned()))
}

/// Asks for what was not given.
fn ask(name: &LoginName, given: Given, kept: Option<String>) -> Result<(String, Secret), Failure> {
    let user = match (given.user, &kept) {
        (Some(user), _) => user,
        (None, kept) => {
            let known = kept.as_ref().map(|user| format!(" ({user})")).unwrap_or_default();
            let typed = prompt("the user name", || {
                terminal::ask(&format!("Username for {}{known}: ", name.as_str()))
            })?;
            Some(typed).filter(|typed| !typed.is_empty()).or_else(|| kept.clone()).unwrap_or_default()
        }
    };
    if user.is_empty() {
        return Err(LoginError::Empty { what: "user name" }.into());
    }
    let password = match given.password {
        Some(password) => password,
        None => Secret::new(prompt("the password", || terminal::ask_secretly("Password: "))?),
    };
    match password.is_empty() {
        true => Err(LoginError::Empty { what: "password" }.into()),
        false => Ok((user, password)),
    }
}

/// What somebody types.
fn prompt(what: &'static str, ask: impl FnOnce() -> io::Result<String>) -> Result<String, Failure> {
    ask().map_err(|source| match source.kind() {
        io::ErrorKind::Interrupted => Failure::Stopped(Signal::Interrupt),
        io::ErrorKind::Unsupported => LoginError::NoTerminal { what }.into(),
        _ => LoginError::Read { what, source }.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_a_line_or_all_there_is() {
        for (text, want) in [("pw\n", "pw"), ("pw\r\n", "pw"), ("pw", "pw"), ("p w\n\n", "p w\n"), ("\n", "")]
        {
            let read = read_password(&mut text.as_bytes()).expect("it is read");
            assert_eq!(read, Secret::new(want.to_owned()), "{text:?}");
        }
        let endless = read_password(&mut io::repeat(b'x')).expect_err("too long");
        assert!(matches!(endless, LoginError::Read { .. }));
    }
}
