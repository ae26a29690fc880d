//! `layerwright cache`: what a remote cache holds, and what of it goes. No store is needed, and no layer is read.

mod json;
mod prune;
mod remote;
mod show;
mod text;

pub use self::remote::RemoteSpec;
use std::{
    fs, io,
    path::{Path, PathBuf},
};

use exporter::cache::{
    DirectoryStorage, RegistryStorage, StorageError, TrustKeys,
    care::{Survey, Tidy, survey, survey_of},
};
use oci::registry::RegistryError;
use solver::Cancel;

use crate::{
    args::{CacheAt, CacheCommand, CacheLsArgs},
    call::pretty,
    client,
    failure::{self, Failure},
    history,
    spec::{
        cache::{CachePlace, CacheSource},
        call::Format,
    },
};

/// `layerwright cache`: the text for standard output.
///
/// # Errors
/// The cache cannot be read or tidied up, or does not have what is asked for.
pub fn run(command: &CacheCommand) -> Result<String, Failure> {
    match command {
        CacheCommand::Ls(args) => list(args),
        CacheCommand::Show(args) => show::run(args),
        CacheCommand::Prune(args) => prune::run(args),
    }
}

/// Why a cache is not looked after.
#[derive(Debug, thiserror::Error)]
pub enum CareError {
    /// It cannot be read or written.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// It has no such thing.
    #[error("{place} has {}", none_of(what))]
    Nothing {
        /// What was asked for.
        what: String,
        /// What the cache is called.
        place: String,
    },
    /// It has no such bundle.
    #[error("{place} has no bundle called {tag}: without a tag, `cache ls` lists all that it has")]
    NoBundle {
        /// Its name.
        tag: String,
        /// What the cache is called.
        place: String,
    },
    /// There is no such directory.
    #[error("cannot read the cache {}", path.display())]
    Directory {
        /// Where it should be.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It has several.
    #[error("{what} is the beginning of {} keys or names: {}", keys.len(), keys.join(", "))]
    Ambiguous {
        /// What was asked for.
        what: String,
        /// What there is, by the beginnings of the keys.
        keys: Vec<String>,
    },
    /// A bundle cannot be tidied up by itself.
    #[error("a whole cache is tidied up, not a bundle of it: leave out {0:?}")]
    Tag(String),
}

/// What to do about a registry that refuses to delete.
const ALLOW_DELETION: &str = "docker-registry deletes with storage: {delete: {enabled: true}} in its configuration, or with \
                              REGISTRY_STORAGE_DELETE_ENABLED=true in its environment";

impl CareError {
    /// The exit code, as the help lists them.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Storage(error) if registry_error(error).is_some() => failure::REGISTRY,
            Self::Storage(_) | Self::Directory { .. } => failure::MACHINE,
            Self::Nothing { .. } | Self::NoBundle { .. } | Self::Ambiguous { .. } | Self::Tag(_) => {
                failure::USAGE
            }
        }
    }

    /// What to do about it, if we know.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::Storage(error) => {
                registry_error(error).filter(|error| error.is_unsupported()).map(|_| ALLOW_DELETION)
            }
            _ => None,
        }
    }
}

fn registry_error(error: &StorageError) -> Option<&RegistryError> {
    error.source.as_deref()?.downcast_ref()
}

/// What there is not. Few digits are a name that does not exist, and more likely too short a beginning of a key.
fn none_of(what: &str) -> String {
    match show::Prefix::of(what) {
        None if show::is_short(what) => {
            format!(
                "nothing called {what}, and the beginning of a key has at least {} digits",
                show::PREFIX_MIN
            )
        }
        None => format!("nothing called {what}"),
        Some(prefix) if prefix.is_of_name() => format!("nothing whose name begins with {what}"),
        Some(_) => format!("no record of a key that begins with {what}, and nothing of that name"),
    }
}

/// Whether a directory is there; an empty one is an empty cache.
fn there(path: &Path) -> io::Result<()> {
    match fs::metadata(path)?.is_dir() {
        true => Ok(()),
        false => Err(io::ErrorKind::NotADirectory.into()),
    }
}

impl From<StorageError> for Failure {
    fn from(error: StorageError) -> Self {
        Self::Care(error.into())
    }
}

impl From<CareError> for Failure {
    fn from(error: CareError) -> Self {
        Self::Care(error)
    }
}

/// A cache that is looked after.
struct Place {
    tidy: Box<dyn Tidy>,
    trusted: TrustKeys,
    /// The bundle that is meant, where one is named.
    tag: Option<String>,
    /// Nobody stops us but by ending the process.
    cancel: Cancel,
}

impl Place {
    fn open(at: &CacheAt) -> Result<Self, Failure> {
        let RemoteSpec(CacheSource { place, insecure }) = &at.remote;
        let trusted = TrustKeys::read(&at.trust_keys)?;
        let (tidy, tag): (Box<dyn Tidy>, _) = match place {
            CachePlace::Registry(reference) => {
                let insecure = insecure.then(|| reference.registry.clone());
                let registry = client::asking_insecure(&at.registries, insecure.into_iter().collect())?;
                let digest = reference.digest.map(|digest| digest.to_string());
                (Box::new(RegistryStorage::new(&registry, reference)), digest.or(reference.tag.clone()))
            }
            CachePlace::Directory { path, tag } => {
                there(path).map_err(|source| CareError::Directory { path: path.clone(), source })?;
                (Box::new(DirectoryStorage::new(path)), tag.clone())
            }
        };
        Ok(Self { tidy, trusted, tag, cancel: Cancel::default() })
    }

    /// All that is there; of the bundle only, where one is meant.
    fn survey(&self) -> Result<Survey, Failure> {
        let Some(tag) = &self.tag else { return Ok(survey(&*self.tidy, &self.trusted, &self.cancel)?) };
        let found = self.named(std::slice::from_ref(tag))?;
        match found.entries.is_empty() {
            true => {
                let (tag, place) = (tag.clone(), self.tidy.name().to_owned());
                Err(CareError::NoBundle { tag, place }.into())
            }
            false => Ok(found),
        }
    }

    /// What these names stand for.
    fn named(&self, names: &[String]) -> Result<Survey, Failure> {
        Ok(survey_of(&*self.tidy, names, &self.trusted, &self.cancel)?)
    }

    fn nothing(&self, what: &str) -> Failure {
        let (what, place) = (what.to_owned(), self.tidy.name().to_owned());
        CareError::Nothing { what, place }.into()
    }
}

fn list(args: &CacheLsArgs) -> Result<String, Failure> {
    let place = Place::open(&args.at)?;
    let survey = place.survey()?;
    Ok(match args.at.format() {
        Format::Json => pretty(&json::list(place.tidy.name(), &survey)),
        Format::Text => text::list(&survey, history::now()),
    })
}
