//! `--chmod`: octal, or the symbolic language of chmod(1). The umask of whoever builds never matters.

use solver::op::Chmod;

const SETUID: u32 = 0o4000;
const SETGID: u32 = 0o2000;
const STICKY: u32 = 0o1000;

/// A mode that is no mode.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid mode {0:?}")]
pub struct BadMode(pub String);

/// A mode to be set, or changes to be made to one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModeChange {
    /// These bits.
    To(u32),
    /// These changes, in order.
    By(Vec<Clause>),
}

/// One `who` with one operator: `go-w`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Clause {
    /// Which of 0o700, 0o070 and 0o007 it is about.
    who: u32,
    /// `+`, `-` or `=`.
    operator: Operator,
    permissions: Vec<Permission>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    Add,
    Remove,
    Set,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Permission {
    /// r, w or x for each class: 0o444, 0o222 or 0o111.
    Bits(u32),
    /// `X`: x where the file is a directory or anybody could execute it before.
    ExecuteIfAny,
    /// `s`: setuid for the user, setgid for the group.
    SetId,
    /// `t`
    Sticky,
    /// `u`, `g` or `o`: what that class has, by the shift of its bits.
    Class(u32),
}

impl ModeChange {
    /// Understands a `--chmod`.
    ///
    /// # Errors
    /// [`BadMode`] with the text.
    pub fn new(chmod: &Chmod) -> Result<Self, BadMode> {
        match chmod {
            Chmod::Octal(mode) if *mode <= 0o7777 => Ok(Self::To(*mode)),
            Chmod::Octal(mode) => Err(BadMode(format!("{mode:o}"))),
            Chmod::Symbolic(text) => {
                let clauses = text.split(',').map(|part| clauses(part).ok_or_else(|| BadMode(text.clone())));
                Ok(Self::By(clauses.collect::<Result<Vec<_>, _>>()?.concat()))
            }
        }
    }

    /// The mode that a file or directory gets instead of the one it has.
    pub fn apply(&self, mode: u32, is_directory: bool) -> u32 {
        match self {
            Self::To(mode) => *mode,
            Self::By(clauses) => {
                let may_execute = is_directory || mode & 0o111 != 0;
                clauses.iter().fold(mode, |mode, clause| clause.apply(mode, may_execute))
            }
        }
    }
}

impl Clause {
    fn apply(&self, mode: u32, may_execute: bool) -> u32 {
        let bits = self
            .permissions
            .iter()
            .fold(0, |bits, permission| bits | self.bits(*permission, mode, may_execute));
        match self.operator {
            Operator::Add => mode | bits,
            Operator::Remove => mode & !bits,
            Operator::Set => mode & !(self.who | self.set_ids()) | bits,
        }
    }

    fn set_ids(&self) -> u32 {
        let user = if self.who & 0o700 != 0 { SETUID } else { 0 };
        let group = if self.who & 0o070 != 0 { SETGID } else { 0 };
        user | group
    }

    fn bits(&self, permission: Permission, mode: u32, may_execute: bool) -> u32 {
        match permission {
            Permission::Bits(bits) => bits & self.who,
            Permission::ExecuteIfAny if may_execute => 0o111 & self.who,
            Permission::ExecuteIfAny => 0,
            Permission::SetId => self.set_ids(),
            Permission::Sticky => STICKY,
            Permission::Class(shift) => (((mode >> shift) & 0o7) * 0o111) & self.who,
        }
    }
}

/// The clauses of a part between commas: one `who`, then operators with permissions.
fn clauses(part: &str) -> Option<Vec<Clause>> {
    let start = part.find(['+', '-', '='])?;
    let who = part[..start].chars().try_fold(0, |who, class| {
        Some(
            who | match class {
                'u' => 0o700,
                'g' => 0o070,
                'o' => 0o007,
                'a' => 0o777,
                _ => return None,
            },
        )
    })?;
    let who = if start == 0 { 0o777 } else { who };
    let mut clauses: Vec<Clause> = Vec::new();
    for symbol in part[start..].chars() {
        let operator = match symbol {
            '+' => Operator::Add,
            '-' => Operator::Remove,
            '=' => Operator::Set,
            _ => {
                clauses.last_mut()?.permissions.push(permission(symbol)?);
                continue;
            }
        };
        clauses.push(Clause { who, operator, permissions: Vec::new() });
    }
    Some(clauses)
}

fn permission(symbol: char) -> Option<Permission> {
    Some(match symbol {
        'r' => Permission::Bits(0o444),
        'w' => Permission::Bits(0o222),
        'x' => Permission::Bits(0o111),
        'X' => Permission::ExecuteIfAny,
        's' => Permission::SetId,
        't' => Permission::Sticky,
        'u' => Permission::Class(6),
        'g' => Permission::Class(3),
        'o' => Permission::Class(0),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn symbolic_modes() {
        // mode of a file before, text, after; the same for a directory
        let rows = [
            (0o644, "u+x", 0o744, 0o744),
            (0o644, "+x", 0o755, 0o755),
            (0o644, "a=r", 0o444, 0o444),
            (0o640, "u=rwX,go=rX", 0o644, 0o755),
            (0o700, "u=rwX,go=rX", 0o755, 0o755),
            (0o777, "go-w", 0o755, 0o755),
            (0o4755, "u-s", 0o755, 0o755),
            (0o755, "ug+s", 0o6755, 0o6755),
            (0o755, "+t", 0o1755, 0o1755),
            (0o4755, "u=rw", 0o655, 0o655),
            (0o640, "o=g", 0o644, 0o644),
            (0o640, "go=u-w", 0o644, 0o644),
            (0o600, "g+rw-w", 0o640, 0o640),
            (0o644, "=", 0, 0),
            (0o644, "u+X", 0o644, 0o744),
        ];
        for (before, text, file, directory) in rows {
            let change = ModeChange::new(&Chmod::Symbolic(text.to_owned())).expect(text);
            assert_eq!(
                (change.apply(before, false), change.apply(before, true)),
                (file, directory),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_no_mode() {
        for text in ["", "x", "z+x", "u", "u+q", "u+x,", "755x"] {
            assert_eq!(ModeChange::new(&Chmod::Symbolic(text.to_owned())), Err(BadMode(text.to_owned())));
        }
        assert_eq!(ModeChange::new(&Chmod::Octal(0o10000)), Err(BadMode("10000".to_owned())));
        assert_eq!(ModeChange::new(&Chmod::Octal(0o4755)).map(|mode| mode.apply(0o600, false)), Ok(0o4755));
    }
}
