//! One field after the other: which keys there are, and what may be given to them.

use super::{Kind, MountError};
use crate::ast::Sharing;
use crate::{go, suggest};

/// Every key, for slips of the pen.
const KEYS: [&str; 19] = [
    "type",
    "from",
    "source",
    "src",
    "target",
    "dst",
    "destination",
    "readonly",
    "ro",
    "readwrite",
    "rw",
    "required",
    "size",
    "id",
    "sharing",
    "mode",
    "uid",
    "gid",
    "env",
];

/// What the fields have said so far; an empty value is as good as none.
#[derive(Debug, Default)]
pub(super) struct Options {
    pub(super) kind: Kind,
    pub(super) from: Option<String>,
    pub(super) source: Option<String>,
    pub(super) target: Option<String>,
    pub(super) read_only: Option<bool>,
    pub(super) required: bool,
    pub(super) size: Option<u64>,
    pub(super) id: Option<String>,
    pub(super) sharing: Option<Sharing>,
    pub(super) env: Option<String>,
    pub(super) mode: Option<u32>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
}

impl Options {
    pub(super) fn read(
        fields: &[String],
        expand: &mut dyn FnMut(&str) -> Result<String, String>,
    ) -> Result<Self, MountError> {
        let mut options = Options::default();
        for field in fields {
            match field.split_once('=') {
                None => options.switch(&field.to_lowercase(), field)?,
                Some((key, value)) => {
                    let value = expand(value).map_err(MountError::new)?;
                    options.set(&key.to_lowercase(), value, field)?;
                }
            }
        }
        Ok(options)
    }

    /// A key without a value.
    fn switch(&mut self, key: &str, field: &str) -> Result<(), MountError> {
        match key {
            "readonly" | "ro" => self.read_only = Some(true),
            "readwrite" | "rw" => self.read_only = Some(false),
            "required" if self.can_be_required() => self.required = true,
            "required" => return Err(self.unexpected(key)),
            _ => {
                let error = MountError::new(format!("invalid field '{field}' must be a key=value pair"));
                return Err(near(error, key));
            }
        }
        Ok(())
    }

    fn set(&mut self, key: &str, value: String, field: &str) -> Result<(), MountError> {
        let text = || Some(value.clone()).filter(|value| !value.is_empty());
        match key {
            "type" => self.kind = kind(&value)?,
            "from" => self.from = text(),
            "source" | "src" => self.source = text(),
            "target" | "dst" | "destination" => self.target = text(),
            "readonly" | "ro" => self.read_only = Some(boolean(key, &value)?),
            "readwrite" | "rw" => self.read_only = Some(!boolean(key, &value)?),
            "required" if self.can_be_required() => self.required = boolean(key, &value)?,
            "size" if self.kind == Kind::Tmpfs => self.size = Some(size(&value)?).filter(|size| *size > 0),
            "required" | "size" => return Err(self.unexpected(key)),
            "id" => self.id = text(),
            "sharing" => self.sharing = Some(sharing(&value)?),
            "mode" => self.mode = Some(number(key, &value, 8)?),
            "uid" => self.uid = Some(number(key, &value, 10)?),
            "gid" => self.gid = Some(number(key, &value, 10)?),
            "env" => self.env = text(),
            _ => return Err(near(MountError::new(format!("unexpected key '{key}' in '{field}'")), key)),
        }
        Ok(())
    }

    fn can_be_required(&self) -> bool {
        matches!(self.kind, Kind::Secret | Kind::Ssh)
    }

    /// A key that belongs to another type: `type=` has to stand before it.
    fn unexpected(&self, key: &str) -> MountError {
        MountError::new(format!("unexpected key '{key}' for mount type '{}'", self.kind.name()))
    }
}

fn near(error: MountError, key: &str) -> MountError {
    let hint = suggest::nearest(key, KEYS).map(|near| format!("did you mean {near}?"));
    MountError { hint, ..error }
}

fn kind(value: &str) -> Result<Kind, MountError> {
    let lower = value.to_lowercase();
    let names = Kind::ALL.map(Kind::name);
    let known = Kind::ALL.into_iter().find(|kind| kind.name() == lower);
    known.ok_or_else(|| unsupported("mount type", value, &names))
}

fn sharing(value: &str) -> Result<Sharing, MountError> {
    match value.to_lowercase().as_str() {
        "shared" => Ok(Sharing::Shared),
        "private" => Ok(Sharing::Private),
        "locked" => Ok(Sharing::Locked),
        _ => Err(unsupported("sharing value", value, &["shared", "private", "locked"])),
    }
}

fn unsupported(what: &str, value: &str, known: &[&str]) -> MountError {
    let hint = match suggest::nearest(value, known.iter().copied()) {
        Some(near) => format!("did you mean {near}?"),
        None => format!("it may be {}", known.join(", ")),
    };
    MountError { message: format!("unsupported {what} {}", go::quote(value)), hint: Some(hint) }
}

fn boolean(key: &str, value: &str) -> Result<bool, MountError> {
    go::boolean(value).ok_or_else(|| MountError::new(format!("invalid value for {key}: {value}")))
}

fn number(key: &str, value: &str, radix: u32) -> Result<u32, MountError> {
    go::unsigned(value, radix).ok_or_else(|| MountError::new(format!("invalid value {value} for {key}")))
}

/// Bytes, as `docker run --memory` takes them.
fn size(value: &str) -> Result<u64, MountError> {
    crate::size::parse(value).ok_or_else(|| MountError::new(format!("invalid value for size: {value}")))
}
