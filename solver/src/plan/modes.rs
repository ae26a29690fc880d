//! `--chmod`: permission bits in octal, or the language of chmod(1).

use crate::op::Chmod;

/// What a value of `--chmod` means, if it means anything.
pub(super) fn chmod(mode: &str) -> Option<Chmod> {
    if mode.bytes().all(|byte| byte.is_ascii_digit()) {
        return u32::from_str_radix(mode, 8).ok().filter(|bits| *bits <= 0o7777).map(Chmod::Octal);
    }
    mode.split(',').all(is_symbolic).then(|| Chmod::Symbolic(mode.to_owned()))
}

/// `[ugoa]*([-+=]([rwxXst]*|[ugo]))+`, the language of chmod(1).
fn is_symbolic(clause: &str) -> bool {
    let actions = clause.trim_start_matches(['u', 'g', 'o', 'a']);
    let Some(first) = actions.chars().next() else { return false };
    let mut perms = actions.split(['+', '-', '=']);
    let is_perm =
        |text: &str| matches!(text, "u" | "g" | "o") || text.chars().all(|bit| "rwxXst".contains(bit));
    matches!(first, '+' | '-' | '=') && perms.next() == Some("") && perms.all(is_perm)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_octal_or_symbolic() {
        assert_eq!(chmod("0755"), Some(Chmod::Octal(0o755)));
        for mode in ["u+x", "a=rX,go-w", "+x", "u=rwx,g=u", "ug+s-w", "o="] {
            assert_eq!(chmod(mode), Some(Chmod::Symbolic(mode.to_owned())), "{mode}");
        }
        for mode in ["", "10000", "888", "rwx", "u", "u+q", "u+x,", "u+gx", "-9"] {
            assert_eq!(chmod(mode), None, "{mode}");
        }
    }
}
