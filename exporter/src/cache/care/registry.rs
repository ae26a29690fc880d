//! A repository of a registry: manifests are deleted by their digests, and blobs go with the registry's own garbage.

use oci::{Sha256Digest, registry::RegistryError};
use solver::Cancel;

use super::{Standing, Swept, Tidy};
use crate::cache::{
    registry::RegistryStorage,
    storage::{Storage, StorageError},
};

impl Tidy for RegistryStorage {
    fn names(&self, cancel: &Cancel) -> Result<Vec<String>, StorageError> {
        let listed = self.bringing(cancel).tags(self.repository());
        listed.map_err(|error| self.failed(format!("cannot list what {} holds", self.name()), error, cancel))
    }

    fn look(&self, name: &str, cancel: &Cancel) -> Result<Option<Standing>, StorageError> {
        let Some(fetched) = self.fetch(name, cancel)? else { return Ok(None) };
        let named = self.understand(name, &fetched, cancel);
        Ok(Some(Standing { digest: fetched.digest, size: fetched.bytes.len() as u64, named }))
    }

    fn remove(&self, _: &[String], digest: &Sha256Digest, cancel: &Cancel) -> Result<(), StorageError> {
        let failed = |error: RegistryError| {
            let why = match error.is_unsupported() {
                true => ": it deletes nothing",
                false => "",
            };
            self.failed(format!("cannot delete from {}{why}", self.name()), error, cancel)
        };
        self.bringing(cancel).delete(self.repository(), digest).map(drop).map_err(failed)
    }

    fn sweep(&self, _: &Cancel) -> Result<Swept, StorageError> {
        Ok(Swept::ByRegistry)
    }
}
