//! The file of the store that keeps a catalogue: parts with their lengths in front, a BLAKE3 of all at the end.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use oci::{
    ContentDigest, DiffId, Entry, EntryKind, Metadata, Tree,
    store::{
        Store, StoreError,
        checked::{self, CheckedError},
    },
    tree::TreeError,
};

use super::Catalogue;

/// Where catalogues lie in the store, named after diff IDs.
pub const AREA: &str = "catalogues";

/// Raised when anything is written, or any archive read, in another way.
const VERSION: u8 = 1;

/// Why a file is no catalogue.
#[derive(Debug, thiserror::Error)]
pub enum CatalogueError {
    /// It cannot be read, or is damaged.
    #[error(transparent)]
    File(#[from] CheckedError),
    /// It was written by another version of this program.
    #[error("it has version {0}, and this program reads version {VERSION}")]
    Version(u8),
    /// Its parts are not those of a catalogue.
    #[error("it is cut, or no catalogue")]
    Form,
    /// What the layer holds is no tree.
    #[error(transparent)]
    Tree(#[from] TreeError),
}

impl CatalogueError {
    /// Whether the error says something about the file, which can be made again, and not about this machine at the
    /// moment.
    pub fn is_useless(&self) -> bool {
        match self {
            Self::File(error) => error.is_damage(),
            Self::Version(_) | Self::Form | Self::Tree(_) => true,
        }
    }
}

/// Where the catalogue of a layer lies, from the root of the store on.
pub(crate) fn path(layer: &DiffId) -> PathBuf {
    Path::new(AREA).join(layer.hex())
}

impl Catalogue {
    /// Reads what [`Catalogue::keep`] has kept; `None` where there is none.
    ///
    /// # Errors
    /// [`CatalogueError`].
    pub fn kept(file: &Path) -> Result<Option<Self>, CatalogueError> {
        checked::read_binary(file)?.map(|bytes| Self::from_bytes(&bytes)).transpose()
    }

    /// Keeps the catalogue of a layer.
    ///
    /// # Errors
    /// The store cannot be written.
    pub fn keep(&self, store: &Store, layer: &DiffId) -> Result<(), StoreError> {
        checked::put_binary(store, &path(layer), self.to_bytes())
    }

    fn to_bytes(&self) -> Vec<u8> {
        let Self { tree, implied, hides_all, accounts, needs_disk } = self;
        let directory = |path: &Vec<u8>| Entry {
            path: path.clone(),
            kind: EntryKind::Directory,
            metadata: Metadata::default(),
        };
        let implied = implied.iter().map(directory).collect();
        let implied = Tree::new(implied).expect("paths of directories, each once");
        let mut bytes = vec![VERSION, u8::from(*hides_all), u8::from(*needs_disk)];
        let mut put = |part: &[u8]| {
            bytes.extend((part.len() as u64).to_le_bytes());
            bytes.extend(part);
        };
        put(&tree.to_bytes());
        put(&implied.to_bytes());
        accounts.values().for_each(|account| put(account));
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, CatalogueError> {
        let ([version, hides_all, needs_disk], mut rest) =
            bytes.split_first_chunk::<3>().ok_or(CatalogueError::Form)?;
        if *version != VERSION {
            return Err(CatalogueError::Version(*version));
        }
        let tree = Tree::from_bytes(part(&mut rest)?)?;
        let implied = Tree::from_bytes(part(&mut rest)?)?;
        let mut accounts = BTreeMap::new();
        while !rest.is_empty() {
            let account = part(&mut rest)?;
            accounts.insert(ContentDigest::of(account), account.to_vec());
        }
        Ok(Self {
            tree,
            implied: implied.entries().iter().map(|entry| entry.path.clone()).collect(),
            hides_all: *hides_all != 0,
            accounts,
            needs_disk: *needs_disk != 0,
        })
    }
}

/// Cuts the first part off.
fn part<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], CatalogueError> {
    let (length, behind) = rest.split_first_chunk::<8>().ok_or(CatalogueError::Form)?;
    let length = usize::try_from(u64::from_le_bytes(*length)).map_err(|_| CatalogueError::Form)?;
    let (part, behind) = behind.split_at_checked(length).ok_or(CatalogueError::Form)?;
    *rest = behind;
    Ok(part)
}
