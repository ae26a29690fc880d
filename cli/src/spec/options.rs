//! The `key=value` pairs of a record, as `--output`, `--cache-from` and `--cache-to` have them: each is asked for by whoever
//! knows it, and what nobody has asked for is refused by name. The last of two equal keys wins, as in BuildKit.

use exporter::{BaseLayers, Encoder, GzipLevel, ZstdLevel};

use super::csv;

/// Why the pairs of a record make no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// The record cannot be read.
    #[error(transparent)]
    Csv(#[from] csv::CsvError),
    /// A field without `=`.
    #[error("{0:?} is not a key=value pair")]
    NotAPair(String),
    /// A key that does not exist here.
    #[error("type={kind} has no option {key}={why}")]
    Key {
        /// The type.
        kind: String,
        /// The key.
        key: String,
        /// More about it, where there is more to say.
        why: String,
    },
    /// A value its key does not take.
    #[error("{key}={value} is not supported: expected {expected}")]
    Value {
        /// The key.
        key: &'static str,
        /// The value.
        value: String,
        /// What it takes.
        expected: &'static str,
    },
}

impl OptionError {
    /// A value that its key does not take.
    pub fn value(key: &'static str, value: &str, expected: &'static str) -> Self {
        Self::Value { key, value: value.to_owned(), expected }
    }
}

/// The pairs that nobody has asked for yet.
pub struct Options {
    pub(super) pairs: Vec<(String, String)>,
    /// The keys that were asked for, whether they were there or not: those that the type has.
    known: Vec<&'static str>,
}

impl Options {
    /// The pairs of the fields of a record. Keys are small, whatever was typed.
    ///
    /// # Errors
    /// [`OptionError::NotAPair`]
    pub fn read(fields: &[String]) -> Result<Self, OptionError> {
        let pair = |field: &String| {
            let (key, value) = field.split_once('=').ok_or_else(|| OptionError::NotAPair(field.clone()))?;
            // What an annotation is called is not ours to change; buildx makes it small, too.
            let key = match key.trim().split_once('.') {
                Some((option, rest)) if option.to_ascii_lowercase().starts_with("annotation") => {
                    format!("{}.{rest}", option.to_ascii_lowercase())
                }
                _ => key.trim().to_ascii_lowercase(),
            };
            Ok((key, value.to_owned()))
        };
        let pairs: Result<_, OptionError> = fields.iter().map(pair).collect();
        Ok(Self { pairs: pairs?, known: Vec::new() })
    }

    /// The value of a key.
    pub fn take(&mut self, key: &'static str) -> Option<String> {
        self.known.push(key);
        let value = self.pairs.iter().rev().find(|(name, _)| name == key).map(|(_, value)| value.clone());
        self.pairs.retain(|(name, _)| name != key);
        value
    }

    /// Whether a key was given.
    pub fn has(&mut self, key: &'static str) -> bool {
        self.known.push(key);
        self.pairs.iter().any(|(name, _)| name == key)
    }

    /// The value of a key that is true or false, in Go's words.
    ///
    /// # Errors
    /// [`OptionError::Value`]
    pub fn boolean(&mut self, key: &'static str, default: &str) -> Result<bool, OptionError> {
        let value = self.take(key).unwrap_or_else(|| default.to_owned());
        match value.as_str() {
            "true" | "1" | "t" | "True" | "TRUE" | "T" => Ok(true),
            "false" | "0" | "f" | "False" | "FALSE" | "F" => Ok(false),
            _ => Err(OptionError::value(key, &value, "true or false")),
        }
    }

    /// What some keys of BuildKit are where they have no value.
    pub fn empty_is_true(&mut self, key: &str) {
        let empty = self.pairs.iter_mut().filter(|(name, value)| name == key && value.is_empty());
        empty.for_each(|(_, value)| value.push_str("true"));
    }

    /// An option of BuildKit that has one value here: to ask for that says nothing new, the other cannot be had.
    ///
    /// # Errors
    /// [`OptionError::Value`]
    pub fn only(&mut self, key: &'static str, had: &'static str) -> Result<(), OptionError> {
        let asked = self.boolean(key, had)?;
        match (asked.to_string() == had, asked) {
            (true, _) => Ok(()),
            (false, true) => Err(OptionError::value(key, "true", "false, or leave it out")),
            (false, false) => Err(OptionError::value(key, "false", "true, or leave it out")),
        }
    }

    /// `compression=` and `compression-level=`, whose numbers are BuildKit's.
    ///
    /// # Errors
    /// [`OptionError::Value`]
    pub fn encoder(&mut self) -> Result<Encoder, OptionError> {
        let refused = |key, value: &str, expected| Err(OptionError::value(key, value, expected));
        let level = self.take("compression-level");
        let number = || level.as_deref().map(|level| level.parse().ok());
        let (encoder, expected) = match self.take("compression").as_deref() {
            None | Some("gzip") => match number() {
                None => (Some(Encoder::GZIP), ""),
                Some(level) => (level.and_then(GzipLevel::new).map(Encoder::Gzip), "0 to 9 for gzip"),
            },
            Some("zstd") => match number() {
                None => (Some(Encoder::ZSTD), ""),
                Some(level) => (level.and_then(ZstdLevel::new).map(Encoder::Zstd), "0 to 22 for zstd"),
            },
            Some("uncompressed") => {
                (level.is_none().then_some(Encoder::Uncompressed), "no level for what is not compressed")
            }
            Some(other) => return refused("compression", other, "gzip, zstd or uncompressed"),
        };
        encoder.map_or_else(|| refused("compression-level", &level.unwrap_or_default(), expected), Ok)
    }

    /// The same, where one of them is there.
    ///
    /// # Errors
    /// [`OptionError::Value`]
    pub fn wanted_encoder(&mut self) -> Result<Option<Encoder>, OptionError> {
        let is_said = self.has("compression") || self.has("compression-level");
        let encoder = self.encoder()?;
        Ok(is_said.then_some(encoder))
    }

    /// `force-compression=`
    ///
    /// # Errors
    /// [`OptionError::Value`]
    pub fn base_layers(&mut self) -> Result<BaseLayers, OptionError> {
        self.empty_is_true("force-compression");
        Ok(match self.boolean("force-compression", "false")? {
            true => BaseLayers::Repacked,
            false => BaseLayers::Kept,
        })
    }

    /// Refuses the first key that nobody has asked for; `why` says more of some.
    ///
    /// # Errors
    /// [`OptionError::Key`]
    pub fn refuse_rest(&self, kind: &str, why: impl Fn(&str) -> &'static str) -> Result<(), OptionError> {
        let Some((key, _)) = self.pairs.first() else { return Ok(()) };
        let why = why(key);
        let near =
            solver::pattern::suggest::nearest(key, self.known.iter().copied()).filter(|_| why.is_empty());
        let hint = near.map(|near| format!(" (did you mean {near}=?)")).unwrap_or_default();
        Err(OptionError::Key { kind: kind.to_owned(), key: key.clone(), why: format!("{why}{hint}") })
    }
}
