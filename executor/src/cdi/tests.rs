//! Specifications as vendors write them, against what a step gets.

use super::*;

const SPEC: &str = r#"{
  "cdiVersion": "0.6.0", "kind": "vendor1.com/device",
  "containerEdits": {"env": ["COMMON=1"]},
  "devices": [
    {"name": "foo", "annotations": {"org.mobyproject.buildkit.device.class": "fast"},
     "containerEdits": {"env": ["FOO=a=b"], "deviceNodes": [{"path": "/dev/foo", "hostPath": "/dev/null", "type": "c",
       "major": 1, "minor": 3, "permissions": "rw"}]}},
    {"name": "bar", "annotations": {"org.mobyproject.buildkit.device.class": "fast"},
     "containerEdits": {"mounts": [{"hostPath": "/usr/lib/x.so", "containerPath": "/lib/x.so",
       "options": ["ro", "nosuid", "nodev", "rbind"]}]}},
    {"name": "hooked", "containerEdits": {"hooks": [{"hookName": "createContainer", "path": "/bin/sh"}]}},
    {"name": "empty", "containerEdits": {"hooks": [], "deviceNodes": [{"path": "/dev/zero"}]}},
    {"name": "owned", "containerEdits": {"deviceNodes": [{"path": "/dev/zero", "uid": 5}]}},
    {"name": "reader", "containerEdits": {"deviceNodes": [{"path": "/dev/zero", "permissions": "r"}]}},
    {"name": "tmp", "containerEdits": {"mounts": [{"hostPath": "x", "containerPath": "/x", "type": "tmpfs"}]}},
    {"name": "odd", "containerEdits": {"mounts": [{"hostPath": "/x", "containerPath": "/x", "options": ["rshared"]}]}}
  ]
}"#;

fn device(name: &str) -> Device {
    Device { name: name.to_owned(), required: true }
}

/// What `names` bring, each in a line.
fn given(names: &[&str]) -> Result<String, CdiError> {
    let directory = tempfile::tempdir().expect("made");
    fs::write(directory.path().join("vendor1.json"), SPEC).expect("written");
    let devices: Vec<Device> = names.iter().map(|name| device(name)).collect();
    let Edits { mounts, env, missing } = edits(&devices, &[Path::new("/nowhere"), directory.path()])?;
    assert_eq!(missing, Vec::<String>::new());
    let mounts = mounts.iter().map(|mount| format!("{} {:?}\n", mount.target, mount.source));
    Ok(env.iter().map(|(name, value)| format!("{name}={value}\n")).chain(mounts).collect())
}

#[test]
fn names_stand_for_one_for_some_or_for_all() {
    let foo = "COMMON=1\nFOO=a=b\n/dev/foo Device(\"/dev/null\")\n";
    let bar = "COMMON=1\n/lib/x.so Host { path: \"/usr/lib/x.so\", access: Read }\n";
    let both = "COMMON=1\nFOO=a=b\n/lib/x.so Host { path: \"/usr/lib/x.so\", access: Read }\n/dev/foo Device(\"/dev/null\")\n";
    for (names, expected) in [
        (&["vendor1.com/device=foo"][..], foo),
        (&["vendor1.com/device=foo", "vendor1.com/device=foo"], foo),
        (&["vendor1.com/device"], bar),
        (&["vendor1.com/device=fast"], both),
        (&["vendor1.com/device=empty"], "COMMON=1\n/dev/zero Device(\"/dev/zero\")\n"),
    ] {
        assert_eq!(given(names).expect("there"), expected, "{names:?}");
    }
}

#[test]
fn what_cannot_be_given_is_refused_by_name() {
    for (name, expected) in [
        ("vendor1.com/device=none", "required device \"vendor1.com/device=none\" is not registered"),
        ("vendor2.com/device", "required device \"vendor2.com/device\" is not registered"),
        ("vendor1.com/device=hooked", "device \"vendor1.com/device=hooked\" needs hooks, which"),
        ("vendor1.com/device=*", "device \"vendor1.com/device=hooked\" needs hooks, which"),
        ("vendor1.com/device=owned", "needs another uid of /dev/zero"),
        ("vendor1.com/device=reader", "needs only the permissions \"r\" for /dev/zero"),
        ("vendor1.com/device=tmp", "needs a mount of type \"tmpfs\" at /x"),
        ("vendor1.com/device=odd", "needs the mount option \"rshared\" at /x"),
        ("device", "invalid device \"device\""),
        ("/device=x", "invalid device \"/device=x\""),
    ] {
        let error = given(&[name]).expect_err(name).to_string();
        assert!(error.contains(expected), "{name}: {error}");
    }
}

#[test]
fn files_of_later_directories_win_and_of_one_directory_contradict() {
    let [first, second] = [(); 2].map(|()| tempfile::tempdir().expect("made"));
    let spec = |value: &str| {
        let edits = format!(r#"{{"env": ["V={value}"]}}"#);
        format!(r#"{{"kind": "v/c", "devices": [{{"name": "d", "containerEdits": {edits}}}]}}"#)
    };
    let write = |directory: &tempfile::TempDir, name: &str, text: &str| {
        fs::write(directory.path().join(name), text).expect("written");
    };
    let look = || edits(&[device("v/c=d")], &[first.path(), second.path()]);
    write(&first, "a.yaml", "kind: v/c");
    let error = look().expect_err("YAML is not read");
    assert!(error.hint().is_some_and(|hint| hint.contains("a.yaml")), "{error}");
    let optional = [Device { required: false, ..device("v/c=d") }];
    let missing = edits(&optional, &[first.path()]).expect("it need not be there").missing;
    assert_eq!(missing, ["v/c=d"]);
    write(&first, "a.json", &spec("first"));
    write(&second, "a.json", &spec("second"));
    assert_eq!(look().expect("there").env, [("V".to_owned(), "second".to_owned())]);
    write(&second, "b.json", &spec("third"));
    assert!(matches!(look(), Err(CdiError::Twice { .. })));
    write(&second, "b.json", "{");
    assert!(matches!(look(), Err(CdiError::Read { .. })));
}
