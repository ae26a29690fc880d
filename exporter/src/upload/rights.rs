//! Whether we may push, asked before a build does anything for it.

use std::collections::BTreeMap;

use oci::{Reference, registry::Registry};

use crate::{outputs::ExportError, parallel::in_parallel};

/// Repositories that are asked at the same time.
const PARALLEL: usize = 8;

/// Tests the right to push to the repository of each name, by opening an upload there and ending it.
///
/// # Errors
/// [`ExportError::Push`] with the first name of the first repository that refuses or cannot be asked.
pub fn check_rights<'a>(
    registry: &Registry,
    names: impl IntoIterator<Item = &'a Reference>,
) -> Result<(), ExportError> {
    let mut repositories = BTreeMap::new();
    for name in names {
        repositories.entry((&name.registry, &name.repository)).or_insert(name);
    }
    let repositories: Vec<_> = repositories.into_values().collect();
    in_parallel(&repositories, PARALLEL, |name| {
        let checked = registry.check_push(name);
        checked.map_err(|source| ExportError::Push {
            reference: Box::new(name.with_default_tag()),
            source: Box::new(source),
        })
    })
}
