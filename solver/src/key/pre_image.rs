//! What a content key was made of, field by field, for people and for [`explain`](crate::explain).
//!
//! Two kinds of fields: those whose values are part of the key, one for each thing that can change it; and *remarks*, whose
//! names begin with `~`, which say what people call these things. No secret is in either; ARGs that somebody uses as
//! one are, and are taken out of what others read ([`super::hidden`]).

use std::{collections::BTreeMap, fmt};

use oci::TreeDigest;

use super::{Reading, identity, readings};
use crate::{
    graph::{Vertex, Written},
    op::{
        BindMount, CacheMount, Copy, CopyItem, Device, Exec, MakeDir, Mount, MountedFile, Op, Script,
        SecretMount, Security, Selector, Source, SshMount,
    },
};

/// Remark: the instruction as written.
pub const INSTRUCTION: &str = "~instruction";
/// Remark: the label, in which variables are replaced.
pub const LABEL: &str = "~label";
/// Begins the remark that names an ARG; the rest is its name.
pub const ARGUMENT: &str = "~arg ";
/// Begins the remark that names an ENV which the instruction was expanded with.
pub const EXPANDED: &str = "~env ";
/// Begins the remark that has the text of a heredoc that is copied.
pub const HEREDOC: &str = "~heredoc ";
/// Begins the remark that says what an input is, by its label; the rest is the input's number. The first is `~input 0`.
pub const INPUT: &str = "~input ";
/// Begins the remark that has a label with its variables as they are written, where that is another text; the rest is the name
/// of the label's remark without its `~`.
pub const WRITTEN: &str = "~written ";
/// Begins the name of a variable that a command can see.
pub const VARIABLE: &str = "env ";
/// Digest of the file system that the step works on.
pub const PARENT: &str = "parent";
/// Begins the digest of what is picked of an input.
pub const FILES: &str = "files ";

/// Whether a field says what people call something, and is no part of the key.
pub fn is_remark(field: &str) -> bool {
    field.starts_with('~')
}

/// What the content key of a step was made of: field to value. `inputs` are the vertices of its inputs; `read` are the
/// digests that the key was made of, in the order of [`readings`].
pub fn pre_image(vertex: &Vertex, inputs: &[&Vertex], read: &[TreeDigest]) -> BTreeMap<String, String> {
    let (op, platform) = identity(vertex);
    let mut fields = Fields(BTreeMap::new());
    fields.put("platform", platform);
    match op {
        Op::Source(_) => {}
        Op::Exec(exec) => fields.exec(exec),
        Op::Copy(copy) => fields.copy(copy),
        Op::MakeDir(directory) => fields.make_dir(directory),
        Op::Merge => fields.put("op", "merge"),
    }
    for (reading, digest) in readings(op).iter().zip(read) {
        fields.put(&reading_name(reading), digest);
    }
    fields.remarks(vertex, inputs);
    fields.0
}

fn reading_name(reading: &Reading<'_>) -> String {
    match reading {
        Reading::Whole(0) => PARENT.to_owned(),
        Reading::Whole(input) => format!("{FILES}of input {input}"),
        Reading::Selected(1, selector) => format!("{FILES}{}", selector.include.join(" ")),
        Reading::Selected(input, selector) => {
            format!("{FILES}{} of input {input}", selector.include.join(" "))
        }
    }
}

struct Fields(BTreeMap<String, String>);

impl Fields {
    fn remarks(&mut self, vertex: &Vertex, inputs: &[&Vertex]) {
        let Written { instruction, arguments, env } = &vertex.written;
        if !instruction.is_empty() {
            self.put(INSTRUCTION, instruction);
        }
        self.label(LABEL, vertex);
        arguments.iter().for_each(|(name, value)| self.put(&format!("{ARGUMENT}{name}"), value));
        env.iter().for_each(|(name, value)| self.put(&format!("{EXPANDED}{name}"), value));
        for (number, input) in inputs.iter().enumerate() {
            self.label(&format!("{INPUT}{number}"), input);
            if let Op::Source(Source::Inline(files)) = &input.op {
                files.iter().for_each(|(name, text)| self.put(&format!("{HEREDOC}{name}"), text));
            }
        }
    }

    fn label(&mut self, name: &str, vertex: &Vertex) {
        self.put(name, &vertex.label);
        let place = vertex.label.split_once("] ").map_or("", |(place, _)| place);
        let written = format!("{place}] {}", vertex.written.instruction);
        if vertex.written.instruction.contains('$') && written != vertex.label {
            self.put(&format!("{WRITTEN}{}", name.trim_start_matches('~')), written);
        }
    }

    fn put(&mut self, name: &str, value: impl ToString) {
        self.0.insert(name.to_owned(), value.to_string());
    }

    fn exec(&mut self, exec: &Exec) {
        let Exec {
            args,
            env,
            user,
            workdir,
            network,
            security,
            relaxed,
            mounts,
            devices,
            hosts,
            hostname,
            ulimits,
            shared_memory,
            script,
            timestamps,
        } = exec;
        self.put("op", "run");
        self.put("args", serde_json::to_string(args).expect("texts have JSON"));
        env.iter().for_each(|(name, value)| self.put(&format!("{VARIABLE}{name}"), value));
        let order: Vec<&str> = env.iter().map(|(name, _)| name.as_str()).collect();
        self.put("order of variables", order.join(" "));
        self.put("user", user);
        self.put("workdir", workdir);
        self.put("network", word(network));
        self.put(
            "security",
            match security {
                Security::NoNewPrivileges => "no new privileges".to_owned(),
                other => word(other),
            },
        );
        if !relaxed.is_empty() {
            self.put("allowed of the sandbox", relaxed);
        }
        for (number, mount) in mounts.iter().enumerate() {
            self.put(&format!("mount {number:03}"), mounted(mount));
        }
        for Device { name, required } in devices {
            self.put(&format!("device {name}"), if *required { "required" } else { "optional" });
        }
        hosts.iter().for_each(|(name, address)| self.put(&format!("host {name}"), address));
        hostname.iter().for_each(|name| self.put("hostname", name));
        ulimits.iter().for_each(|(resource, limit)| self.put(&format!("ulimit {resource}"), limit));
        shared_memory.iter().for_each(|bytes| self.put("size of /dev/shm", bytes));
        script.iter().for_each(|Script { name, content }| self.put(&format!("script {name}"), content));
        self.put("timestamps", word(timestamps));
    }

    fn copy(&mut self, copy: &Copy) {
        let Copy { items, destination, into_directory, chown, chmod, timestamps } = copy;
        self.put("op", "copy");
        for (number, CopyItem { input, selector, unpack }) in items.iter().enumerate() {
            let Selector { include, exclude, follow_links, parents } = selector;
            let what = format!("{include:?} from input {input}, without {exclude:?}");
            self.put(
                &format!("item {number:03}"),
                format!("{what}, links {follow_links}, parents {parents}, unpack {unpack}"),
            );
        }
        self.put("destination", destination);
        self.put("into directory", into_directory);
        chown.iter().for_each(|owner| self.put("chown", owner));
        chmod.iter().for_each(|mode| self.put("chmod", format!("{mode:?}")));
        self.put("timestamps", word(timestamps));
    }

    fn make_dir(&mut self, directory: &MakeDir) {
        let MakeDir { path, owner, timestamps } = directory;
        self.put("op", "workdir");
        self.put("path", path);
        self.put("owner", owner);
        self.put("timestamps", word(timestamps));
    }
}

/// The name of a variant as it is written on a command line.
fn word(variant: &impl fmt::Debug) -> String {
    format!("{variant:?}").to_lowercase()
}

/// A mount, in the words of `RUN --mount`.
fn mounted(mount: &Mount) -> String {
    match mount {
        Mount::Bind(BindMount { target, input, source, writable }) => {
            let writable = if *writable { ",rw" } else { "" };
            format!("type=bind,target={target},from=input {input},source={source}{writable}")
        }
        Mount::Cache(CacheMount { target, id, sharing, seed, mode, uid, gid, read_only }) => {
            let seed = seed.as_ref().map(|(input, source)| format!(",from=input {input},source={source}"));
            let read_only = if *read_only { ",ro" } else { "" };
            let owned = format!("mode={mode:04o},uid={uid},gid={gid}{read_only}");
            let sharing = word(sharing);
            let seed = seed.unwrap_or_default();
            format!("type=cache,target={target},id={id},sharing={sharing},{owned}{seed}")
        }
        Mount::Tmpfs { target, size } => {
            let size = size.map(|size| format!(",size={size}"));
            format!("type=tmpfs,target={target}{}", size.unwrap_or_default())
        }
        Mount::Secret(SecretMount { id, required, file, variable }) => {
            let file = file.as_ref().map(|file| format!(",{}", placed(file)));
            let variable = variable.as_ref().map(|name| format!(",env={name}"));
            let places = [file, variable].into_iter().flatten().collect::<String>();
            format!("type=secret,id={id},required={required}{places}")
        }
        Mount::Ssh(SshMount { id, required, socket }) => {
            format!("type=ssh,id={id},required={required},{}", placed(socket))
        }
    }
}

fn placed(file: &MountedFile) -> String {
    let MountedFile { target, mode, uid, gid } = file;
    format!("target={target},mode={mode:04o},uid={uid},gid={gid}")
}
