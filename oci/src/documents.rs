//! Where an image is looked at: one door to a registry, an OCI layout and an OCI layout in a tar. All that comes through it
//! is verified against what names it. No store is needed.

use std::{
    io::{self, Read},
    path::{Path, PathBuf},
};

use crate::{
    descriptor::Descriptor,
    document::{Document, DocumentError, Found, MAX_DEPTH},
    image::{ImageError, RegistryImage},
    layout::{self, LayoutArchive, LayoutError},
    reference::Reference,
    registry::Registry,
    verify::Verified,
};

/// The place of one image or index.
#[derive(Debug, Clone)]
pub struct Documents {
    place: Place,
    /// The tag or digest in a layout.
    selector: Option<String>,
}

#[derive(Debug, Clone)]
enum Place {
    Registry(Registry, Reference),
    Layout(PathBuf),
    Archive(LayoutArchive),
}

impl Documents {
    /// Of a registry; nothing is asked yet. A reference without tag and digest means `latest`.
    pub fn of_registry(registry: &Registry, reference: &Reference) -> Self {
        let place = Place::Registry(registry.clone(), reference.with_default_tag());
        Self { place, selector: None }
    }

    /// Of a path: an OCI layout directory, or a tar that holds one.
    ///
    /// # Errors
    /// [`ImageError::Layout`], where the file is no such tar.
    pub fn of_path(path: &Path, selector: Option<String>) -> Result<Self, ImageError> {
        let place = match path.is_dir() {
            true => Place::Layout(path.to_owned()),
            false => Place::Archive(LayoutArchive::open(path)?),
        };
        Ok(Self { place, selector })
    }

    /// What the name stands for: an index or a manifest.
    ///
    /// # Errors
    /// [`ImageError`].
    pub fn root(&self) -> Result<Found, ImageError> {
        let selector = self.selector.as_deref();
        match &self.place {
            Place::Registry(registry, reference) => {
                RegistryImage { registry, reference, store: None, find: &|_| None }.root()
            }
            Place::Layout(directory) => Ok(layout::find_root(directory, selector)?),
            Place::Archive(archive) => Ok(archive.find_root(selector)?),
        }
    }

    /// A manifest or index that the root names, verified.
    ///
    /// # Errors
    /// [`ImageError`].
    pub fn document(&self, descriptor: &Descriptor) -> Result<Vec<u8>, ImageError> {
        match &self.place {
            Place::Registry(registry, reference) => {
                RegistryImage { registry, reference, store: None, find: &|_| None }.document(descriptor)
            }
            _ => self.config(descriptor),
        }
    }

    /// The descriptors of all manifests that a root names, in its order and each once; an index in an index is looked
    /// through. A manifest names itself.
    ///
    /// # Errors
    /// [`ImageError`].
    pub fn manifests(&self, root: &Found) -> Result<Vec<Descriptor>, ImageError> {
        let mut found: Vec<Descriptor> = Vec::new();
        self.flatten(root, 0, &mut found)?;
        Ok(found)
    }

    fn flatten(&self, root: &Found, depth: usize, found: &mut Vec<Descriptor>) -> Result<(), ImageError> {
        if depth > MAX_DEPTH {
            return Err(self.unusable(DocumentError::TooDeep));
        }
        let parsed = Document::parse(&root.descriptor.media_type, &root.bytes);
        let Document::Index(index) = parsed.map_err(|error| self.unusable(error))? else {
            if !found.iter().any(|other| other.digest == root.descriptor.digest) {
                found.push(root.descriptor.clone());
            }
            return Ok(());
        };
        for descriptor in index.manifests {
            if descriptor.media_type.is_index() {
                let bytes = self.document(&descriptor)?;
                self.flatten(&Found { descriptor, bytes }, depth + 1, found)?;
            } else if !found.iter().any(|other| other.digest == descriptor.digest) {
                found.push(descriptor);
            }
        }
        Ok(())
    }

    /// The failure of a document that makes no sense.
    pub fn unusable(&self, source: DocumentError) -> ImageError {
        let source = Box::new(source);
        let directory = match &self.place {
            Place::Registry(_, reference) => {
                return ImageError::Document { reference: Box::new(reference.clone()), source };
            }
            Place::Layout(directory) => directory,
            Place::Archive(archive) => archive.path(),
        };
        LayoutError::Document { directory: directory.to_owned(), source }.into()
    }

    /// A config, verified.
    ///
    /// # Errors
    /// [`ImageError`].
    pub fn config(&self, descriptor: &Descriptor) -> Result<Vec<u8>, ImageError> {
        match &self.place {
            Place::Registry(registry, reference) => {
                RegistryImage { registry, reference, store: None, find: &|_| None }.config(descriptor)
            }
            Place::Layout(directory) => Ok(layout::read_document(directory, descriptor)?),
            Place::Archive(archive) => Ok(archive.read_document(descriptor)?),
        }
    }

    /// A stream of a blob, which fails at its end if it was not what the descriptor says.
    ///
    /// # Errors
    /// It cannot be had.
    pub fn open_blob(&self, descriptor: &Descriptor) -> io::Result<Box<dyn Read + Send>> {
        match &self.place {
            Place::Registry(registry, reference) => {
                registry.pull_blob(reference, descriptor).map_err(io::Error::other)
            }
            Place::Layout(directory) => {
                let blob = layout::open_blob(directory, &descriptor.digest).map_err(io::Error::other)?;
                Ok(Box::new(Verified::new(blob, descriptor)))
            }
            Place::Archive(archive) => {
                let blob = archive.open_blob(&descriptor.digest).map_err(io::Error::other)?;
                Ok(Box::new(Verified::new(blob, descriptor)))
            }
        }
    }

    /// The repository it lies in, where that is one of a registry: blobs can be mounted from there.
    pub fn repository(&self) -> Option<&Reference> {
        match &self.place {
            Place::Registry(_, reference) => Some(reference),
            _ => None,
        }
    }
}
