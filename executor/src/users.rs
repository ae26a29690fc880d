//! Users and groups of an image: names to ids from its own `/etc/passwd` and `/etc/group`, and nobody else's.
//!
//! Both files are data from outside. They are opened inside the image's root, must be regular files of at most 10 MiB
//! (RELIABILITY R8, R20), and no library of the image or the host is asked. An id is a decimal number below 2^32-1,
//! which the kernel reserves for "no change" (R10). A name that is not there is an error that says in which file, and
//! never root.

use std::{
    fs::File,
    io::{self, Read},
    os::fd::{AsFd, BorrowedFd},
};

use rustix::{
    fs::{FileType, OFlags, fstat},
    io::Errno,
};

use solver::pattern::suggest;

use crate::{copy::CopyError, rootfs::file_type, view::open_in_root};

const PASSWD: &str = "/etc/passwd";
const GROUP: &str = "/etc/group";
/// Larger files are refused.
pub(crate) const FILE_MAX: u64 = 10 << 20;

/// Whether a path, from the root on and without links, is that of one of the two files.
pub(crate) fn is_account_file(path: &[u8]) -> bool {
    [PASSWD, GROUP].iter().any(|file| file.as_bytes()[1..] == *path)
}

/// Where the two files are read.
pub trait Accounts: Copy {
    /// The text of one of them; empty where there is none.
    ///
    /// # Errors
    /// [`UserError::NotAFile`] or [`UserError::Read`].
    fn text(self, file: &'static str) -> Result<String, UserError>;
}

/// In the file system with this root directory.
impl Accounts for BorrowedFd<'_> {
    fn text(self, file: &'static str) -> Result<String, UserError> {
        read(self, file)
    }
}

/// Who a process runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups, the primary one among them: who drops to another primary group keeps no rights by it.
    pub groups: Vec<u32>,
    /// Home directory; `/` where `/etc/passwd` has none.
    pub home: String,
}

/// Why a user or group is nobody.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// No line of the file has the name, or there is no such file.
    #[error("no {what} {name:?} in {file} of the image")]
    Unknown {
        /// `user` or `group`.
        what: &'static str,
        /// The name.
        name: String,
        /// The file in the image.
        file: &'static str,
        /// The name in the file that is most like it.
        nearest: Option<String>,
    },
    /// A number that is no id.
    #[error("{what} id {number} is not between 0 and 4294967294")]
    Id {
        /// `user` or `group`.
        what: &'static str,
        /// The digits.
        number: String,
    },
    /// The line of the name cannot be understood.
    #[error("line {line} of {file} of the image is malformed")]
    Malformed {
        /// The file in the image.
        file: &'static str,
        /// Counted from 1.
        line: usize,
    },
    /// The file is a FIFO, a device, a directory, or too large.
    #[error("{file} of the image is not a regular file of at most 10 MiB")]
    NotAFile {
        /// The file in the image.
        file: &'static str,
    },
    /// What is below the step, where the file would be, cannot be looked at.
    #[error(transparent)]
    Below(Box<CopyError>),
    /// The file cannot be read.
    #[error("reading {file} of the image")]
    Read {
        /// The file in the image.
        file: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl UserError {
    /// What to do about it, as a sentence part without a period.
    pub fn hint(&self) -> Option<String> {
        let Self::Unknown { what, nearest, .. } = self else { return None };
        let number = format!("a {what} that is not there yet can be given by its number");
        Some(match nearest {
            Some(nearest) => format!("did you mean {nearest:?}? {number}"),
            None => number,
        })
    }
}

/// Who USER `user[:group]` names; an empty user is root. A number needs no line in `/etc/passwd`; its group is 0 then.
/// Supplementary groups are those of `/etc/group` that list the user's name, unless a group is given, and the primary
/// group: without it, a program that changes its group escapes what files deny to that group (CVE-2023-25173).
///
/// # Errors
/// See [`UserError`].
pub fn run_user(files: impl Accounts, user: &str) -> Result<User, UserError> {
    let (user, group) = halves(user);
    let id = number("user", user.unwrap_or("0"))?;
    let account = passwd(files, user.unwrap_or("0"), id)?;
    let account = match (account, id, user) {
        (Some(account), ..) => account,
        (None, Some(uid), _) => Account { name: None, uid, gid: 0, home: "/".to_owned() },
        (None, None, name) => return Err(unknown(files, "user", name.unwrap_or_default(), PASSWD)),
    };
    let (gid, mut groups) = match (group, &account.name) {
        (Some(group), _) => (group_id(files, group)?, Vec::new()),
        (None, Some(name)) => (account.gid, groups_of(files, name)?),
        (None, None) => (account.gid, Vec::new()),
    };
    if !groups.contains(&gid) {
        groups.insert(0, gid);
    }
    Ok(User { uid: account.uid, gid, groups, home: account.home })
}

/// Whose `--chown=user[:group]` makes a file. A number alone is the group too; a name alone brings its primary group; a
/// group alone (`:staff`) leaves the user root. `root` is 0 in every image.
///
/// # Errors
/// See [`UserError`].
pub fn file_owner(files: impl Accounts, owner: &str) -> Result<(u32, u32), UserError> {
    let (user, group) = halves(owner);
    let (uid, gid) = user.map_or(Ok((0, 0)), |user| user_ids(files, user))?;
    Ok((uid, group.map_or(Ok(gid), |group| owning_group(files, group))?))
}

/// Whose a directory is that WORKDIR makes for USER `user[:group]`: as with [`file_owner`], but a name that nobody knows
/// is told to `warn` and counts as not given, because BuildKit builds on with root.
///
/// # Errors
/// See [`UserError`]; never [`UserError::Unknown`].
pub fn workdir_owner(
    files: impl Accounts,
    owner: &str,
    warn: &dyn Fn(UserError),
) -> Result<(u32, u32), UserError> {
    let (user, group) = halves(owner);
    let known = |found: Result<_, UserError>| match found {
        Err(error @ UserError::Unknown { .. }) => {
            warn(error);
            Ok(None)
        }
        found => found.map(Some),
    };
    let ids = known(user.map_or(Ok((0, 0)), |user| user_ids(files, user)))?;
    let (uid, gid) = ids.unwrap_or_default();
    let group = group.map(|group| owning_group(files, group).map(|gid| (uid, gid)));
    Ok(known(group.unwrap_or(Ok((uid, gid))))?.unwrap_or((uid, gid)))
}

/// The user and group that the user of a `--chown` stands for.
fn user_ids(files: impl Accounts, user: &str) -> Result<(u32, u32), UserError> {
    if let Some(uid) = owning_number("user", user)? {
        return Ok((uid, uid));
    }
    let account = passwd(files, user, None)?;
    let account = account.map_or_else(|| Err(unknown(files, "user", user, PASSWD)), Ok)?;
    Ok((account.uid, account.gid))
}

fn owning_group(files: impl Accounts, group: &str) -> Result<u32, UserError> {
    match owning_number("group", group)? {
        Some(gid) => Ok(gid),
        None => group_id(files, group),
    }
}

fn owning_number(what: &'static str, text: &str) -> Result<Option<u32>, UserError> {
    if text == "root" { Ok(Some(0)) } else { number(what, text) }
}

/// A line of `/etc/passwd`.
struct Account {
    name: Option<String>,
    uid: u32,
    gid: u32,
    home: String,
}

/// User and group, where they are given.
fn halves(text: &str) -> (Option<&str>, Option<&str>) {
    let (user, group) = text.split_once(':').unwrap_or((text, ""));
    (Some(user).filter(|user| !user.is_empty()), Some(group).filter(|group| !group.is_empty()))
}

fn unknown(files: impl Accounts, what: &'static str, name: &str, file: &'static str) -> UserError {
    // That the file cannot be read was told when the name was looked up in it.
    let text = files.text(file).unwrap_or_default();
    let nearest = suggest::nearest(name, lines(&text).map(|(_, fields)| fields[0]));
    UserError::Unknown { what, name: name.to_owned(), file, nearest: nearest.map(str::to_owned) }
}

/// `Some` for digits, which are never a name.
fn number(what: &'static str, text: &str) -> Result<Option<u32>, UserError> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(None);
    }
    parse_id(text).map(Some).ok_or_else(|| UserError::Id { what, number: text.to_owned() })
}

fn parse_id(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|id| digits && *id != u32::MAX)
}

/// The first account with the name, or with the id where one is given.
fn passwd(files: impl Accounts, name: &str, id: Option<u32>) -> Result<Option<Account>, UserError> {
    let text = files.text(PASSWD)?;
    for (line, fields) in lines(&text) {
        let uid = fields.get(2).and_then(|uid| parse_id(uid));
        let found = match id {
            Some(id) => uid == Some(id),
            None => fields[0] == name,
        };
        if !found {
            continue;
        }
        let malformed = UserError::Malformed { file: PASSWD, line };
        let gid = fields.get(3).and_then(|gid| parse_id(gid));
        let (Some(uid), Some(gid)) = (uid, gid) else { return Err(malformed) };
        let home = fields.get(5).filter(|home| home.starts_with('/')).map_or("/", |home| home);
        return Ok(Some(Account { name: Some(fields[0].to_owned()), uid, gid, home: home.to_owned() }));
    }
    Ok(None)
}

fn group_id(files: impl Accounts, group: &str) -> Result<u32, UserError> {
    if let Some(gid) = number("group", group)? {
        return Ok(gid);
    }
    let text = files.text(GROUP)?;
    let found = lines(&text).find(|(_, fields)| fields[0] == group);
    let (line, fields) = found.map_or_else(|| Err(unknown(files, "group", group, GROUP)), Ok)?;
    fields.get(2).and_then(|gid| parse_id(gid)).ok_or(UserError::Malformed { file: GROUP, line })
}

/// Groups that list a name, sorted. Lines without a usable id are nobody's.
fn groups_of(files: impl Accounts, name: &str) -> Result<Vec<u32>, UserError> {
    let text = files.text(GROUP)?;
    let lists =
        |fields: &Vec<&str>| fields.get(3).is_some_and(|list| list.split(',').any(|user| user == name));
    let listing = lines(&text).filter(|(_, fields)| lists(fields));
    let mut groups: Vec<u32> = listing.filter_map(|(_, fields)| parse_id(fields.get(2)?)).collect();
    groups.sort_unstable();
    groups.dedup();
    Ok(groups)
}

/// The lines that hold something, counted from 1, split at their colons.
fn lines(text: &str) -> impl Iterator<Item = (usize, Vec<&str>)> {
    let lines = text.lines().enumerate().map(|(index, line)| (index + 1, line.trim()));
    let filled = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    filled.map(|(number, line)| (number, line.split(':').collect()))
}

/// Reads a file below a root directory; empty where there is none.
fn read(root: BorrowedFd<'_>, file: &'static str) -> Result<String, UserError> {
    let failed = |source: Errno| UserError::Read { file, source: source.into() };
    // Looked at before it is opened: opening a device can do things.
    let found = match open_in_root(root, file.as_bytes(), OFlags::PATH) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(String::new()),
        answer => answer.map_err(failed)?,
    };
    let fits = |file: BorrowedFd<'_>| -> Result<bool, Errno> {
        let stat = fstat(file)?;
        Ok(file_type(&stat) == FileType::RegularFile && stat.st_size as u64 <= FILE_MAX)
    };
    if !fits(found.as_fd()).map_err(failed)? {
        return Err(UserError::NotAFile { file });
    }
    let opened = open_in_root(root, file.as_bytes(), OFlags::RDONLY | OFlags::NONBLOCK).map_err(failed)?;
    if !fits(opened.as_fd()).map_err(failed)? {
        return Err(UserError::NotAFile { file });
    }
    let mut bytes = Vec::new();
    let read = File::from(opened).take(FILE_MAX).read_to_end(&mut bytes);
    read.map_err(|source| UserError::Read { file, source })?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use std::{fs, os::fd::OwnedFd, path::Path};

    use rustix::fs::Mode;

    use super::*;

    const PASSWD_TEXT: &str = "root:x:0:0:root:/root:/bin/sh\n# daemon comes next\n\ndaemon:x:1:1::/:\n\
        alice:x:1000:1001:Alice:/home/alice:/bin/sh\n1234:x:7:8::/odd:\nbroken:x:no:1::/:\n\
        huge:x:4294967296:1::/:\nminus:x:4294967295:1::/:\nshort\nnohome:x:44:45\n";
    const GROUP_TEXT: &str = "root:x:0:\nstaff:x:50:alice,bob\nusers:x:100:alice\nalone:x:1001:alice\nbad:x:-5:\nwheel:x:10:root,alicex\n";

    fn image(passwd: &str, group: &str) -> (tempfile::TempDir, OwnedFd) {
        let temp = tempfile::tempdir().expect("a temporary directory");
        fs::create_dir(temp.path().join("etc")).expect("made");
        fs::write(temp.path().join("etc/passwd"), passwd).expect("written");
        fs::write(temp.path().join("etc/group"), group).expect("written");
        let root = open(temp.path());
        (temp, root)
    }

    fn open(path: &Path) -> OwnedFd {
        rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).expect("it opens")
    }

    fn run(root: &OwnedFd, user: &str) -> String {
        match run_user(root.as_fd(), user) {
            Ok(User { uid, gid, groups, home }) => format!("{uid}:{gid} {groups:?} {home}"),
            Err(error) => error.to_string(),
        }
    }

    fn owner(root: &OwnedFd, owner: &str) -> String {
        match file_owner(root.as_fd(), owner) {
            Ok((uid, gid)) => format!("{uid}:{gid}"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn who_runs() {
        let (_temp, root) = image(PASSWD_TEXT, GROUP_TEXT);
        let rows = [
            ("", "0:0 [0, 10] /root"),
            ("root", "0:0 [0, 10] /root"),
            ("0", "0:0 [0, 10] /root"),
            ("alice", "1000:1001 [50, 100, 1001] /home/alice"),
            ("1000", "1000:1001 [50, 100, 1001] /home/alice"),
            ("alice:staff", "1000:50 [50] /home/alice"),
            ("alice:77", "1000:77 [77] /home/alice"),
            ("alice:", "1000:1001 [50, 100, 1001] /home/alice"),
            (":staff", "0:50 [50] /root"),
            ("66", "66:0 [0] /"),
            ("66:66", "66:66 [66] /"),
            ("daemon", "1:1 [1] /"),
            ("nohome", "44:45 [45] /"),
            ("1234", "1234:0 [0] /"),
            ("4294967294", "4294967294:0 [0] /"),
            ("4294967295", "user id 4294967295 is not between 0 and 4294967294"),
            ("4294967296", "user id 4294967296 is not between 0 and 4294967294"),
            ("0:4294967296", "group id 4294967296 is not between 0 and 4294967294"),
            ("nobody", "no user \"nobody\" in /etc/passwd of the image"),
            ("-1", "no user \"-1\" in /etc/passwd of the image"),
            ("+5", "no user \"+5\" in /etc/passwd of the image"),
            ("alice:nogroup", "no group \"nogroup\" in /etc/group of the image"),
            ("alice:bad", "line 5 of /etc/group of the image is malformed"),
            ("broken", "line 7 of /etc/passwd of the image is malformed"),
            ("huge", "line 8 of /etc/passwd of the image is malformed"),
            ("minus", "line 9 of /etc/passwd of the image is malformed"),
            ("short", "line 10 of /etc/passwd of the image is malformed"),
        ];
        for (user, expected) in rows {
            assert_eq!(run(&root, user), expected, "USER {user}");
        }
    }

    #[test]
    fn who_owns() {
        let (_temp, root) = image(PASSWD_TEXT, GROUP_TEXT);
        let rows = [
            ("55", "55:55"),
            ("55:66", "55:66"),
            ("alice", "1000:1001"),
            ("alice:staff", "1000:50"),
            ("1000:staff", "1000:50"),
            ("1000", "1000:1000"),
            (":staff", "0:50"),
            ("", "0:0"),
            (":", "0:0"),
            ("root", "0:0"),
            ("55:root", "55:0"),
            ("alice:", "1000:1001"),
            ("1234", "1234:1234"),
            ("nobody", "no user \"nobody\" in /etc/passwd of the image"),
            ("0:none", "no group \"none\" in /etc/group of the image"),
            ("4294967295", "user id 4294967295 is not between 0 and 4294967294"),
        ];
        for (chown, expected) in rows {
            assert_eq!(owner(&root, chown), expected, "--chown={chown}");
        }
    }

    #[test]
    fn who_is_nobody_is_told_what_to_do() {
        let (_temp, root) = image(PASSWD_TEXT, GROUP_TEXT);
        let rows = [
            ("alcie", "did you mean \"alice\"? a user that is not there yet can be given by its number"),
            ("0:staf", "did you mean \"staff\"? a group that is not there yet can be given by its number"),
            ("postgres", "a user that is not there yet can be given by its number"),
        ];
        for (chown, expected) in rows {
            let error = file_owner(root.as_fd(), chown).expect_err(chown);
            assert_eq!(error.hint().as_deref(), Some(expected), "--chown={chown}");
        }
    }

    #[test]
    fn an_image_without_the_files_has_numbers_only() {
        let temp = tempfile::tempdir().expect("a temporary directory");
        let root = open(temp.path());
        assert_eq!(run(&root, ""), "0:0 [0] /");
        assert_eq!(run(&root, "12:13"), "12:13 [13] /");
        assert_eq!(run(&root, "app"), "no user \"app\" in /etc/passwd of the image");
        assert_eq!(owner(&root, "root:root"), "0:0");
        assert_eq!(owner(&root, "app"), "no user \"app\" in /etc/passwd of the image");
    }

    #[test]
    fn the_files_are_files_of_the_image() {
        let (temp, root) = image("a:x:5:6::/:\n", "");
        let etc = temp.path().join("etc");
        fs::rename(etc.join("passwd"), temp.path().join("real")).expect("moved");
        std::os::unix::fs::symlink("/real", etc.join("passwd")).expect("a link");
        assert_eq!(run(&root, "a"), "5:6 [6] /", "an absolute link ends inside the image");

        fs::remove_file(etc.join("passwd")).expect("removed");
        rustix::fs::mkfifoat(&root, "etc/passwd", Mode::from_raw_mode(0o644)).expect("a FIFO");
        assert_eq!(run(&root, "a"), "/etc/passwd of the image is not a regular file of at most 10 MiB");

        fs::remove_file(etc.join("passwd")).expect("removed");
        let large = File::create(etc.join("passwd")).expect("created");
        large.set_len(FILE_MAX + 1).expect("sparse");
        assert_eq!(run(&root, "a"), "/etc/passwd of the image is not a regular file of at most 10 MiB");
    }
}
