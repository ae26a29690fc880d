//! Devices of the machine by the names of the Container Device Interface (cncf-tags/container-device-interface, SPEC.md):
//! `RUN --device`.
//!
//! Vendors leave a file for each kind of device that says what a container with one of them needs. Of that we give device
//! nodes, mounts and variables; whoever needs more (hooks, which would run programs outside of the sandbox, network
//! devices, groups) is refused by name. Files are read as JSON; one in YAML is named where a device is missing.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use serde_json::Value;
use solver::op::Device;

use crate::sandbox::{Access, MountSource, PlannedMount};

/// Where specifications lie; what stands in a later one wins.
pub const DIRECTORIES: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];

/// A longer file is no specification.
const SPEC_MAX: u64 = 4 << 20;

/// By this annotation several devices of a kind have one name, as BuildKit has it.
const CLASS: &str = "org.mobyproject.buildkit.device.class";

/// What devices bring into a step.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Edits {
    /// Device nodes and files.
    pub mounts: Vec<PlannedMount>,
    /// Variables, which win over those of the step.
    pub env: Vec<(String, String)>,
    /// Devices that are missing and need not be there.
    pub missing: Vec<String>,
}

/// Why a device cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum CdiError {
    /// No name of a kind of device.
    #[error("invalid device {0:?}: a device is called vendor/class=name")]
    Name(String),
    /// Not on this machine.
    #[error("required device {name:?} is not registered")]
    Missing {
        /// Its name.
        name: String,
        /// Files that could name it and cannot be read.
        unread: Vec<PathBuf>,
    },
    /// Two files of one directory name it.
    #[error("device {name:?} is named by {} and {}", first.display(), second.display())]
    Twice {
        /// Its name.
        name: String,
        /// One file.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
    /// It needs what a step cannot be given.
    #[error("device {name:?} needs {what}, which a step cannot be given")]
    Unsupported {
        /// Its name.
        name: String,
        /// What it needs.
        what: String,
    },
    /// A specification cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system or the parser said.
        #[source]
        source: io::Error,
    },
}

impl CdiError {
    /// What to do next.
    pub fn hint(&self) -> Option<String> {
        let CdiError::Missing { unread, .. } = self else { return None };
        let places = format!("no JSON file in {} names it", DIRECTORIES.join(" or "));
        let Some(yaml) = unread.first() else { return Some(places) };
        Some(format!("{places}, and YAML is not read: {} could be written as JSON", yaml.display()))
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    kind: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    #[serde(default)]
    devices: Vec<SpecDevice>,
    #[serde(default)]
    container_edits: ContainerEdits,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SpecDevice {
    name: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    #[serde(default)]
    container_edits: ContainerEdits,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ContainerEdits {
    #[serde(default)]
    env: Vec<String>,
    #[serde(default)]
    device_nodes: Vec<DeviceNode>,
    #[serde(default)]
    mounts: Vec<SpecMount>,
    /// What there is besides, and is not given.
    #[serde(flatten)]
    rest: BTreeMap<String, Value>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct DeviceNode {
    path: String,
    host_path: Option<PathBuf>,
    permissions: Option<String>,
    /// Kind and number are looked at by nobody: the node is the machine's own.
    #[serde(rename = "type")]
    _kind: Option<String>,
    #[serde(rename = "major")]
    _major: Option<i64>,
    #[serde(rename = "minor")]
    _minor: Option<i64>,
    #[serde(flatten)]
    rest: BTreeMap<String, Value>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SpecMount {
    host_path: PathBuf,
    container_path: String,
    #[serde(default)]
    options: Vec<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
}

/// A device that a file names.
struct Found {
    file: PathBuf,
    /// Which of the directories that file is in.
    directory: usize,
    class: Option<String>,
    common: ContainerEdits,
    own: ContainerEdits,
}

/// What the devices bring into a step, from the specifications in these directories.
///
/// # Errors
/// A required device is not there, one of them needs what cannot be given, or a specification cannot be read.
pub fn edits(devices: &[Device], directories: &[&Path]) -> Result<Edits, CdiError> {
    let mut edits = Edits::default();
    if devices.is_empty() {
        return Ok(edits);
    }
    let (known, unread) = read_all(directories)?;
    let mut names = BTreeSet::new();
    for device in devices {
        let chosen = choose(&device.name, &known)?;
        if chosen.is_empty() && device.required {
            return Err(CdiError::Missing { name: device.name.clone(), unread });
        }
        if chosen.is_empty() {
            edits.missing.push(device.name.clone());
        }
        names.extend(chosen);
    }
    let mut files = BTreeSet::new();
    for name in names {
        let found = &known[name];
        if files.insert(&found.file) {
            apply(name, &found.common, &mut edits)?;
        }
        apply(name, &found.own, &mut edits)?;
    }
    Ok(edits)
}

/// The devices that a name stands for: the first of a kind, all of it, one, or those of a class.
fn choose<'a>(wanted: &str, known: &'a BTreeMap<String, Found>) -> Result<Vec<&'a str>, CdiError> {
    let (kind, name) = wanted.split_once('=').unwrap_or((wanted, ""));
    if !kind.split_once('/').is_some_and(|(vendor, class)| !vendor.is_empty() && !class.is_empty()) {
        return Err(CdiError::Name(wanted.to_owned()));
    }
    let of_kind = known.iter().filter(|(device, _)| device.split_once('=').is_some_and(|(of, _)| of == kind));
    let of_kind = of_kind.map(|(device, found)| (device.as_str(), found));
    let names = |(device, _): (&'a str, &Found)| device;
    Ok(match name {
        "" => of_kind.take(1).map(names).collect(),
        "*" => of_kind.map(names).collect(),
        _ if known.contains_key(wanted) => of_kind.map(names).filter(|device| *device == wanted).collect(),
        class => of_kind.filter(|(_, found)| found.class.as_deref() == Some(class)).map(names).collect(),
    })
}

fn apply(name: &str, from: &ContainerEdits, to: &mut Edits) -> Result<(), CdiError> {
    let unsupported = |what: String| CdiError::Unsupported { name: name.to_owned(), what };
    let ContainerEdits { env, device_nodes, mounts, rest } = from;
    if let Some((what, _)) = rest.iter().find(|(_, value)| !is_nothing(value)) {
        return Err(unsupported(what.clone()));
    }
    for variable in env {
        let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
        to.env.push((name.to_owned(), value.to_owned()));
    }
    for DeviceNode { path, host_path, permissions, rest, .. } in device_nodes {
        if let Some((what, _)) = rest.iter().find(|(_, value)| !is_nothing(value)) {
            return Err(unsupported(format!("another {what} of {path}")));
        }
        if let Some(permissions) =
            permissions.as_ref().filter(|some| !(some.contains('r') && some.contains('w')))
        {
            return Err(unsupported(format!("only the permissions {permissions:?} for {path}")));
        }
        let source = MountSource::Device(host_path.clone().unwrap_or_else(|| PathBuf::from(path)));
        to.mounts.push(PlannedMount { target: path.clone(), source });
    }
    for mount in mounts {
        to.mounts.push(planned(mount).map_err(unsupported)?);
    }
    Ok(())
}

fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(values) => values.is_empty(),
        _ => false,
    }
}

/// The mount, or what about it cannot be given.
fn planned(mount: &SpecMount) -> Result<PlannedMount, String> {
    let SpecMount { host_path, container_path, options, kind } = mount;
    if let Some(kind) = kind.as_ref().filter(|kind| !["", "bind"].contains(&kind.as_str())) {
        return Err(format!("a mount of type {kind:?} at {container_path}"));
    }
    let given = ["ro", "rw", "bind", "rbind", "nosuid", "nodev", "private", "rprivate"];
    if let Some(option) = options.iter().find(|option| !given.contains(&option.as_str())) {
        return Err(format!("the mount option {option:?} at {container_path}"));
    }
    let access = if options.iter().any(|option| option == "ro") { Access::Read } else { Access::Write };
    let source = MountSource::Host { path: host_path.clone(), access };
    Ok(PlannedMount { target: container_path.clone(), source })
}

/// Every device by its full name, and the files that were not read.
fn read_all(directories: &[&Path]) -> Result<(BTreeMap<String, Found>, Vec<PathBuf>), CdiError> {
    let (mut known, mut unread) = (BTreeMap::new(), Vec::new());
    for (directory, path) in directories.iter().enumerate() {
        for file in files(path)? {
            match file.extension().and_then(|extension| extension.to_str()) {
                Some("json") => add(read(&file)?, &file, directory, &mut known)?,
                Some("yaml" | "yml") => unread.push(file),
                _ => {}
            }
        }
    }
    Ok((known, unread))
}

fn files(directory: &Path) -> Result<Vec<PathBuf>, CdiError> {
    let failed = |source| CdiError::Read { path: directory.to_owned(), source };
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let mut files: Vec<PathBuf> =
        entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>().map_err(failed)?;
    files.sort();
    Ok(files)
}

fn read(file: &Path) -> Result<Spec, CdiError> {
    let failed = |source| CdiError::Read { path: file.to_owned(), source };
    let opened = fs::File::open(file).map_err(failed)?;
    let text = io::read_to_string(io::Read::take(opened, SPEC_MAX)).map_err(failed)?;
    serde_json::from_str(&text).map_err(|error| failed(error.into()))
}

fn add(
    spec: Spec,
    file: &Path,
    directory: usize,
    known: &mut BTreeMap<String, Found>,
) -> Result<(), CdiError> {
    let Spec { kind, annotations, devices, container_edits } = spec;
    for device in devices {
        let name = format!("{kind}={}", device.name);
        let class = device.annotations.get(CLASS).or_else(|| annotations.get(CLASS)).cloned();
        let (common, own) = (container_edits.clone(), device.container_edits);
        let found = Found { file: file.to_owned(), directory, class, common, own };
        match known.insert(name.clone(), found) {
            Some(other) if other.directory == directory => {
                return Err(CdiError::Twice { name, first: other.file, second: file.to_owned() });
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
