//! An image into an OCI layout directory (image-spec, image-layout.md), beside the images that are there already.
//!
//! Order: `oci-layout`, blobs, and, once those are durable, `index.json`, which is replaced in one step under a lock, so
//! that several builds can write to one layout. A blob that is there with its size is taken as it is. Names are written as
//! BuildKit writes them: `org.opencontainers.image.ref.name` has the tag, `io.containerd.image.name` the whole reference.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs::{self, File},
    io::{self, Read, Write},
    os::fd::OwnedFd,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use oci::{Descriptor, MediaType, Reference, manifest::Index};
use rustix::{
    fs::{AtFlags, FileType, FlockOperation},
    io::Errno,
};
use serde_json::Value;
use solver::Event;

use super::{
    ExportError, Interrupted, Tools,
    blobs::{self, Blob},
    failed,
    file::{NewFile, open_directory, write_file},
    go_on,
};
use crate::assemble::{Assembled, rfc3339};

/// Content of the file that marks a directory as a layout.
pub const LAYOUT_FILE: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;
const REF_NAME: &str = "org.opencontainers.image.ref.name";
const IMAGE_NAME: &str = "io.containerd.image.name";
const CREATED: &str = "org.opencontainers.image.created";
/// An `index.json` that is larger is not read (RELIABILITY R20).
const MAX_INDEX: u64 = 4 * 1024 * 1024;

/// Refuses a directory that holds something else than a layout.
///
/// # Errors
/// [`ExportError::NotALayout`], or the directory cannot be read.
pub fn check_directory(directory: &Path) -> Result<(), ExportError> {
    let mut entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(failed("read", directory))?,
    };
    let marker = directory.join("oci-layout");
    match fs::read(&marker) {
        Ok(bytes) => check_marker(&marker, &bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound && entries.next().is_none() => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(ExportError::NotALayout(directory.to_owned()))
        }
        Err(error) => Err(failed("read", &marker)(error)),
    }
}

fn check_marker(path: &Path, bytes: &[u8]) -> Result<(), ExportError> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Marker {
        image_layout_version: String,
    }
    let damaged = |reason| ExportError::DamagedLayout { path: path.to_owned(), reason };
    let marker: Marker = serde_json::from_slice(bytes).map_err(|error| damaged(error.to_string()))?;
    match marker.image_layout_version.as_str() {
        "1.0.0" => Ok(()),
        other => Err(damaged(format!("unknown layout version {other:?}"))),
    }
}

/// Refuses names that a layout cannot keep apart.
///
/// # Errors
/// [`ExportError::SameTag`].
pub fn check_tags(names: &[Reference]) -> Result<(), ExportError> {
    for (index, name) in names.iter().enumerate() {
        let same = |other: &&Reference| other.selector() == name.selector() && *other != name;
        if let Some(other) = names[..index].iter().find(same) {
            return Err(ExportError::SameTag(Box::new(other.clone()), Box::new(name.clone())));
        }
    }
    Ok(())
}

/// Adds an image to the layout in a directory.
pub fn export(
    assembled: &Assembled,
    directory: &Path,
    names: &[Reference],
    tools: &Tools<'_>,
) -> Result<(), ExportError> {
    let blob_directory = directory.join("blobs/sha256");
    fs::create_dir_all(&blob_directory).map_err(failed("create", &blob_directory))?;
    let marker = directory.join("oci-layout");
    if !marker.exists() {
        write_file(&marker, LAYOUT_FILE.as_bytes()).map_err(failed("write", &marker))?;
    }
    let parent = open_directory(&blob_directory).map_err(failed("open", &blob_directory))?;
    let written = AtomicBool::new(false);
    let write = |blob: &Blob<'_>| {
        if !is_present(blob, &parent) {
            written.store(true, Ordering::SeqCst);
            write_blob(blob, &parent, &blob_directory, tools)?;
        }
        Ok(())
    };
    blobs::in_parallel(blobs::contents(assembled).into_values(), write)?;
    blobs::manifests(assembled).iter().try_for_each(write)?;
    if written.load(Ordering::SeqCst) {
        rustix::fs::syncfs(&parent).map_err(|error| failed("sync", &blob_directory)(error.into()))?;
    }
    name_image(assembled, directory, names, tools)
}

fn is_present(blob: &Blob<'_>, parent: &OwnedFd) -> bool {
    let name = blob.descriptor.digest.hex();
    rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|stat| {
        FileType::from_raw_mode(stat.st_mode).is_file() && stat.st_size as u64 == blob.descriptor.size
    })
}

fn write_blob(
    blob: &Blob<'_>,
    parent: &OwnedFd,
    directory: &Path,
    tools: &Tools<'_>,
) -> Result<(), ExportError> {
    let name = blob.descriptor.digest.hex();
    let path = directory.join(&name);
    let mut file = NewFile::create(parent, OsStr::new(&name)).map_err(failed("write", &path))?;
    match blob.own_file(tools).map_err(blob.failed())? {
        Some(own) => copy_own(&own, &mut file, tools).map_err(|error| match error {
            Interrupted::Export(error) => error,
            Interrupted::Io(error) => failed("write", &path)(error),
        })?,
        None => copy_verified(blob, &mut file, &path, tools)?,
    }
    file.commit().map_err(failed("write", &path))
}

fn copy_own(own: &File, file: &mut NewFile<'_>, tools: &Tools<'_>) -> Result<(), Interrupted> {
    file.copy_from(own, || go_on(tools.cancel).map_err(Interrupted::Export))
}

fn copy_verified(
    blob: &Blob<'_>,
    file: &mut NewFile<'_>,
    path: &Path,
    tools: &Tools<'_>,
) -> Result<(), ExportError> {
    let mut content = blob.open(tools).map_err(blob.failed())?;
    let mut buffer = vec![0; 256 * 1024];
    loop {
        go_on(tools.cancel)?;
        let count = content.read(&mut buffer).map_err(blob.failed())?;
        if count == 0 {
            return Ok(());
        }
        file.write_all(&buffer[..count]).map_err(failed("write", path))?;
    }
}

/// Puts the image in `index.json`, in place of what had one of its names.
fn name_image(
    assembled: &Assembled,
    directory: &Path,
    names: &[Reference],
    tools: &Tools<'_>,
) -> Result<(), ExportError> {
    let marker = directory.join("oci-layout");
    let _lock = lock(&marker, tools)?;
    let path = directory.join("index.json");
    let old = read_index(&path)?;
    let new = match &old {
        None => index_json(assembled, names),
        Some(old) => replaced(old, assembled, names)
            .map_err(|reason| ExportError::DamagedLayout { path: path.clone(), reason })?,
    };
    if old.as_ref() == Some(&new) {
        return Ok(());
    }
    write_file(&path, &new).map_err(failed("write", &path))
}

/// The lock of a layout. Whoever holds it writes one small file, so a wait that can be seen is worth a word.
fn lock(marker: &Path, tools: &Tools<'_>) -> Result<File, ExportError> {
    const PATIENCE: Duration = Duration::from_secs(1);
    let file = File::open(marker).map_err(failed("open", marker))?;
    let (began, mut is_told) = (Instant::now(), false);
    loop {
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(Errno::WOULDBLOCK | Errno::INTR) => {}
            Err(error) => return Err(failed("lock", marker)(error.into())),
        }
        go_on(tools.cancel)?;
        if began.elapsed() >= PATIENCE && !is_told {
            is_told = true;
            let told = format!("waiting for another program that holds the lock of {}", marker.display());
            (tools.events)(Event::Warning(told));
        }
        thread::sleep(Duration::from_millis(20));
    }
}

fn read_index(path: &Path) -> Result<Option<Vec<u8>>, ExportError> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(failed("read", path))?,
    };
    let mut bytes = Vec::new();
    file.take(MAX_INDEX + 1).read_to_end(&mut bytes).map_err(failed("read", path))?;
    Ok(Some(bytes))
}

/// An index with this image in place of what had one of its names. Of the others nothing is lost, whatever their
/// descriptors hold.
fn replaced(old: &[u8], assembled: &Assembled, names: &[Reference]) -> Result<Vec<u8>, String> {
    if old.len() as u64 > MAX_INDEX {
        return Err("it is larger than 4 MiB".to_owned());
    }
    let mut index: Value = serde_json::from_slice(old).map_err(|error| error.to_string())?;
    let manifests = index.get_mut("manifests").and_then(Value::as_array_mut);
    let manifests = manifests.ok_or("it has no list of manifests")?;
    let new = named(assembled, names);
    let has_name = |old: &Value, new: &Descriptor| {
        old["annotations"][REF_NAME].as_str() == new.annotations.get(REF_NAME).map(String::as_str)
    };
    manifests.retain(|old| !new.iter().any(|new| has_name(old, new)));
    if manifests.is_empty() {
        return Ok(index_json(assembled, names));
    }
    manifests.extend(new.iter().map(|new| serde_json::to_value(new).expect("plain data with string keys")));
    Ok(serde_json::to_vec(&index).expect("plain data with string keys"))
}

/// The `index.json` of a layout that holds just this image.
pub fn index_json(assembled: &Assembled, names: &[Reference]) -> Vec<u8> {
    let index = Index {
        schema_version: 2,
        media_type: Some(MediaType::OciIndex),
        manifests: named(assembled, names),
        annotations: BTreeMap::new(),
    };
    serde_json::to_vec(&index).expect("plain data with string keys")
}

/// The image's descriptor under each of its names, or once without a name.
fn named(assembled: &Assembled, names: &[Reference]) -> Vec<Descriptor> {
    let mut image = assembled.root.clone();
    if let ([only], None) = (assembled.images.as_slice(), &assembled.index) {
        image.platform = Some(only.platform.clone());
    }
    image.annotations.insert(CREATED.to_owned(), rfc3339(assembled.created));
    if names.is_empty() {
        return vec![image];
    }
    let name = |name: &Reference| {
        let mut named = image.clone();
        named.annotations.insert(REF_NAME.to_owned(), name.selector());
        named.annotations.insert(IMAGE_NAME.to_owned(), name.with_default_tag().to_string());
        named
    };
    names.iter().collect::<BTreeSet<_>>().into_iter().map(name).collect()
}
