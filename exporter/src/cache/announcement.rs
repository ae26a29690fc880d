//! What builders say to each other of a step that one of them runs: the content of an announcement and its signature.
//!
//! There is nothing in it that anybody would have to believe: not when it was said, since clocks differ, and not what came of
//! the step, which is for a record to say. Who reads it sees whether it changes.

use std::{collections::BTreeMap, fmt, str::FromStr};

use super::sign::{SignKey, Subject, TrustKeys};

/// The version of what is signed.
pub const VERSION: u32 = 1;
/// The annotations of an announcement.
pub const BUILDER: &str = "dev.layerwright.cache.builder";
/// See [`BUILDER`].
pub const COUNT: &str = "dev.layerwright.cache.count";
/// See [`BUILDER`].
pub const STATE: &str = "dev.layerwright.cache.state";

/// A build that announces steps: a random number, so that no two have the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Builder(pub u128);

/// What is said of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Said {
    /// By whom.
    pub builder: Builder,
    /// Greater each time the same builder says something of the step.
    pub count: u64,
    /// What.
    pub state: State,
}

/// How it is about a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// The builder runs it, or its record is on its way.
    Running,
    /// The record is there.
    Done,
    /// It has failed by itself, or its record will not get there.
    Failed,
    /// The builder has stopped it, since another step failed, or was stopped itself.
    Left,
}

/// One as it lies in a cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announcement {
    /// What it says.
    pub said: Said,
    /// Ed25519 signature of that and of the name it lies under.
    pub signature: Option<Vec<u8>>,
}

impl Announcement {
    /// Of the step that `name` stands for.
    pub fn new(said: Said, name: &str, sign: Option<&SignKey>) -> Self {
        let signature = sign.map(|key| key.sign(Subject::Announcement, &said.message(name)));
        Self { said, signature }
    }

    /// What is said, if somebody says it who is trusted.
    pub fn open(&self, name: &str, trust: &TrustKeys) -> Option<Said> {
        let message = self.said.message(name);
        trust.verify(Subject::Announcement, &message, self.signature.as_deref()).then_some(self.said)
    }
}

impl Said {
    fn message(&self, name: &str) -> Vec<u8> {
        let Self { builder, count, state } = self;
        format!("{name} {builder} {count} {state}").into_bytes()
    }

    /// The annotations that say it.
    pub fn annotations(&self) -> impl Iterator<Item = (String, String)> {
        let Self { builder, count, state } = self;
        let all = [(BUILDER, builder.to_string()), (COUNT, count.to_string()), (STATE, state.to_string())];
        all.into_iter().map(|(name, text)| (name.to_owned(), text))
    }

    /// What annotations say; `None` where one is missing or of another form.
    pub fn of(annotations: &BTreeMap<String, String>) -> Option<Self> {
        let text = |name: &str| annotations.get(name).map(String::as_str);
        let builder = text(BUILDER)?;
        let are_digits = builder.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let builder = Some(builder).filter(|text| text.len() == 32 && are_digits)?;
        let builder = Builder(u128::from_str_radix(builder, 16).ok()?);
        let count = text(COUNT)?;
        let is_plain = count == "0" || !count.starts_with(['0', '+']);
        let count = count.parse().ok().filter(|_| is_plain)?;
        Some(Self { builder, count, state: text(STATE)?.parse().ok()? })
    }
}

impl fmt::Display for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Left => "left",
        })
    }
}

/// Not one of the words for a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is none of running, done, failed and left")]
pub struct UnknownState;

impl FromStr for State {
    type Err = UnknownState;

    fn from_str(text: &str) -> Result<Self, UnknownState> {
        let all = [Self::Running, Self::Done, Self::Failed, Self::Left];
        all.into_iter().find(|state| state.to_string() == text).ok_or(UnknownState)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::sign::tests::pair;

    const NAME: &str = "lw1-r-0123";

    fn said() -> Said {
        Said { builder: Builder(0xabc), count: 7, state: State::Running }
    }

    #[test]
    fn what_is_said_is_read_back() {
        for state in [State::Running, State::Done, State::Failed, State::Left] {
            let said = Said { state, ..said() };
            assert_eq!(Said::of(&said.annotations().collect()), Some(said));
        }
    }

    #[test]
    fn what_is_of_another_form_says_nothing() {
        let long = format!("{}0", Builder(1));
        for (name, text) in [
            (BUILDER, ""),
            (BUILDER, "abc"),
            (BUILDER, long.as_str()),
            (BUILDER, "0000000000000000000000000000000G"),
            (COUNT, "-1"),
            (COUNT, "+1"),
            (COUNT, "01"),
            (COUNT, "18446744073709551616"),
            (STATE, "Running"),
        ] {
            let mut annotations: BTreeMap<String, String> = said().annotations().collect();
            annotations.insert(name.to_owned(), text.to_owned());
            assert_eq!(Said::of(&annotations), None, "{name}={text}");
            annotations.remove(name);
            assert_eq!(Said::of(&annotations), None, "without {name}");
        }
    }

    #[test]
    fn with_a_trust_key_nobody_else_says_anything() {
        let (key, trust) = pair();
        let (unsigned, signed) =
            (Announcement::new(said(), NAME, None), Announcement::new(said(), NAME, Some(&key)));
        let nobody = TrustKeys::default();
        assert_eq!(unsigned.open(NAME, &nobody), Some(said()));
        assert_eq!(unsigned.open(NAME, &trust), None);
        assert_eq!(signed.open(NAME, &trust), Some(said()));
        assert_eq!(signed.open("lw1-r-4567", &trust), None, "it was said of another step");
        let changed = Announcement { said: Said { count: 8, ..said() }, ..signed };
        assert_eq!(changed.open(NAME, &trust), None);
    }
}
