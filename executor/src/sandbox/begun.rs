//! What the file systems of a store are to be: what it was begun with decides, and what this machine says to overlays where it
//! was begun with nothing. A build and `layerwright doctor` both ask here, so that they cannot disagree.

use std::{
    fs,
    io::{self, ErrorKind},
    path::Path,
};

use crate::sandbox::{SandboxError, plan::Files};

/// The file in a store that says that its snapshots are copies.
pub const MARKER: &str = "copies";

/// The file in a store that says that its layers are marked for fuse-overlayfs.
pub const FUSED: &str = "fuse-overlayfs";

/// What helps where a store was begun with what does not do.
pub const BEGIN_ANEW: &str = "let --root name another directory, or remove this one";

/// What a store was begun with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begun {
    /// Nothing: it is empty, or not there.
    Not,
    /// Layers that the kernel merges.
    Merged,
    /// Layers that fuse-overlayfs merges.
    Fused,
    /// Copies.
    Copied,
}

impl Begun {
    /// What the store in this directory was begun with.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn of(root: &Path) -> Result<Self, SandboxError> {
        let failed = |error: io::Error| SandboxError::io("look for snapshots", &error);
        if root.join(FUSED).exists() {
            return Ok(Self::Fused);
        }
        if root.join(MARKER).exists() {
            return Ok(Self::Copied);
        }
        match fs::read_dir(root.join("snapshots")) {
            Ok(mut snapshots) => Ok(if snapshots.next().is_some() { Self::Merged } else { Self::Not }),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                Ok(Self::Not)
            }
            Err(error) => Err(failed(error)),
        }
    }

    /// What a build with such a store takes. `overlay` and `fuse` try what their names say, and give the refusal.
    ///
    /// # Errors
    /// A trial failed by itself, or what the store was begun with does not work.
    pub fn decide<E: From<SandboxError>>(
        self,
        overlay: impl FnOnce() -> Result<Option<SandboxError>, E>,
        fuse: impl FnOnce() -> Result<Option<SandboxError>, E>,
    ) -> Result<Decided, E> {
        match self {
            Self::Merged => return Ok(Decided::without_copies(Files::Merged, None)),
            Self::Fused => {
                return match fuse()? {
                    None => Ok(Decided::without_copies(Files::Fused, None)),
                    Some(lack) => Err(not_any_more("fuse-overlayfs", &lack).into()),
                };
            }
            Self::Not | Self::Copied => {}
        }
        let Some(refusal) = overlay()? else {
            return Ok(match self {
                Self::Copied => Decided::copied(&kept_copies("overlay"), Vec::new()),
                _ => Decided::without_copies(Files::Merged, None),
            });
        };
        Ok(match fuse()? {
            None if self == Self::Copied => Decided::copied(&kept_copies("fuse-overlayfs"), vec![refusal]),
            None => Decided::without_copies(Files::Fused, Some(refusal)),
            Some(lack) => {
                let why = format!("{}; and {}", with_hint(&refusal), with_hint(&lack));
                Decided::copied(&why, vec![refusal, lack])
            }
        })
    }

    /// What a build with such a store takes that has nothing but what the kernel merges.
    ///
    /// # Errors
    /// A trial failed by itself, the kernel refuses, or the store was begun with something else.
    pub fn decide_strictly<E: From<SandboxError>>(
        self,
        overlay: impl FnOnce() -> Result<Option<SandboxError>, E>,
    ) -> Result<Decided, E> {
        let begun_with = |what: &str| {
            let begun = SandboxError::step("this store", "was begun with it", Some(BEGIN_ANEW.to_owned()));
            Err(begun.refused_by_strict(what).into())
        };
        match self {
            Self::Merged => {}
            Self::Fused => return begun_with("fuse-overlayfs"),
            Self::Not | Self::Copied => match overlay()? {
                Some(refusal) => {
                    return Err(refusal
                        .refused_by_strict("what stands in for overlay (fuse-overlayfs, copies)")
                        .into());
                }
                None if self == Self::Copied => return begun_with("a store of copies"),
                None => {}
            },
        }
        Ok(Decided::without_copies(Files::Merged, None))
    }

    /// Whether a chroot can build with it, which takes copies.
    ///
    /// # Errors
    /// It was begun with layers.
    pub fn for_chroot(self) -> Result<Decided, SandboxError> {
        match self {
            Self::Not | Self::Copied => Ok(Decided::copied("a chroot has no overlays", Vec::new())),
            Self::Merged | Self::Fused => {
                let message = "this store was begun with overlays, and a chroot takes copies";
                Err(SandboxError::step("chroot", message, Some(BEGIN_ANEW.to_owned())))
            }
        }
    }
}

/// What a build takes, and why.
#[derive(Debug)]
pub struct Decided {
    /// Where file systems come from.
    pub files: Files,
    /// What a person should know: that file systems are copied, why, and what would change that.
    pub note: Option<String>,
    /// What this machine refused on the way.
    pub refusals: Vec<SandboxError>,
}

impl Decided {
    fn without_copies(files: Files, refusal: Option<SandboxError>) -> Self {
        Self { files, note: None, refusals: refusal.into_iter().collect() }
    }

    fn copied(why: &str, refusals: Vec<SandboxError>) -> Self {
        let note = format!("each step copies the whole file system, which takes time and room: {why}");
        Self { files: Files::Copied, note: Some(note), refusals }
    }
}

/// Why there are copies where something better can be had.
fn kept_copies(better: &str) -> String {
    format!("this store was begun with copies, and keeps to them (a new --root here gets {better})")
}

/// The refusal of a store whose layers can be merged no more.
pub fn not_any_more(what: &str, refusal: &SandboxError) -> SandboxError {
    let message = format!("this store was begun with {what}, which does not work now: {refusal}");
    let lift = refusal.hint().map(|hint| format!("{hint}; or ")).unwrap_or_default();
    SandboxError::step("store", &message, Some(format!("{lift}{BEGIN_ANEW}")))
}

fn with_hint(error: &SandboxError) -> String {
    format!("{error}{}", error.hint().map(|hint| format!(" ({hint})")).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decided(begun: Begun, overlay_works: bool, fuse_works: bool) -> Result<Decided, SandboxError> {
        let trial = |name: &str, works: bool| {
            Ok((!works).then(|| SandboxError::step(name, "no", Some("do".to_owned()))))
        };
        begun.decide(|| trial("overlay", overlay_works), || trial("fuse", fuse_works))
    }

    #[test]
    fn what_a_store_was_begun_with_decides() {
        use Files::{Copied, Fused, Merged};
        for (begun, expected) in [
            (Begun::Not, [Some(Merged), Some(Merged), Some(Fused), Some(Copied)]),
            (Begun::Merged, [Some(Merged); 4]),
            (Begun::Fused, [Some(Fused), None, Some(Fused), None]),
            (Begun::Copied, [Some(Copied); 4]),
        ] {
            let machines = [(true, true), (true, false), (false, true), (false, false)];
            let found =
                machines.map(|(overlay, fuse)| decided(begun, overlay, fuse).ok().map(|found| found.files));
            assert_eq!(found, expected, "{begun:?}");
        }
    }

    #[test]
    fn copies_that_need_not_be_are_told_as_such() {
        let note = |overlay, fuse| {
            decided(Begun::Copied, overlay, fuse).ok().and_then(|found| found.note).unwrap_or_default()
        };
        assert!(note(true, false).contains("a new --root here gets overlay)"), "{}", note(true, false));
        assert!(
            note(false, true).contains("a new --root here gets fuse-overlayfs)"),
            "{}",
            note(false, true)
        );
        assert!(
            note(false, false).ends_with("overlay: no (do); and sandbox: fuse: no (do)"),
            "{}",
            note(false, false)
        );
    }

    #[test]
    fn a_store_says_what_it_was_begun_with() {
        let store = tempfile::tempdir().expect("a directory");
        let begun = || Begun::of(store.path()).expect("it can be read");
        assert_eq!(begun(), Begun::Not);
        fs::create_dir_all(store.path().join("snapshots/x")).expect("made");
        assert_eq!(begun(), Begun::Merged);
        assert!(begun().for_chroot().is_err());
        fs::write(store.path().join(MARKER), "").expect("written");
        assert_eq!(begun(), Begun::Copied);
        assert!(begun().for_chroot().is_ok());
    }
}
