use super::*;
use crate::ast::Sharing;

fn refused(text: &str) -> String {
    let error = parse(text).expect_err(text);
    error.message + &error.hint.map(|hint| format!(" ({hint})")).unwrap_or_default()
}

#[test]
fn every_type_has_its_options() {
    let text = |text: &str| Some(text.to_owned());
    let bind = |from, source, target, writable| Mount::Bind(BindMount { from, source, target, writable });
    assert_eq!(parse("target=/a"), Ok(bind(None, None, text("/a"), false)));
    assert_eq!(parse("type=BIND,from=b,src=c,DST=/a,rw"), Ok(bind(text("b"), text("c"), text("/a"), true)));
    assert_eq!(parse("ro,readwrite=false,destination=,source="), Ok(bind(None, None, None, false)));
    assert_eq!(parse("ro=false,target=/a,\"src=b,c\""), Ok(bind(None, text("b,c"), text("/a"), true)));
    let cache = CacheMount {
        id: text("i"),
        target: text("/c"),
        from: None,
        source: None,
        sharing: Some(Sharing::Locked),
        mode: Some(0o1777),
        uid: Some(1),
        gid: Some(2),
        read_only: true,
    };
    let written = "type=cache,id=i,target=/c,sharing=Locked,mode=1777,uid=1,gid=2,ro";
    assert_eq!(parse(written), Ok(Mount::Cache(cache)));
    let tmpfs = |size| Mount::Tmpfs(TmpfsMount { target: text("/t"), size, read_only: false });
    assert_eq!(parse("type=tmpfs,target=/t"), Ok(tmpfs(None)));
    let secret = SecretMount {
        id: text("s"),
        target: None,
        env: text("E"),
        required: true,
        mode: Some(0o400),
        uid: None,
        gid: None,
    };
    assert_eq!(parse("type=secret,src=s,env=E,required,mode=0400"), Ok(Mount::Secret(secret.clone())));
    assert_eq!(parse("type=secret,id=s,env=E,required=1,mode=400"), Ok(Mount::Secret(secret)));
    let ssh = SshMount { id: None, target: None, required: false, mode: None, uid: None, gid: None };
    assert_eq!(parse("type=ssh,required=false"), Ok(Mount::Ssh(ssh)));
}

#[test]
fn sizes_have_units() {
    let size = |written: &str| match parse(&format!("type=tmpfs,target=/t,size={written}")) {
        Ok(Mount::Tmpfs(TmpfsMount { size, .. })) => size,
        other => panic!("{other:?}"),
    };
    let cases = [("100", 100), ("1k", 1 << 10), ("32mB", 32 << 20), ("1.5GiB", 3 << 29), ("2 t", 2 << 40)];
    for (written, bytes) in cases {
        assert_eq!(size(written), Some(bytes), "{written}");
    }
    assert_eq!(size("0"), None);
    for wrong in ["", "k", "1x", "1kib2", "-1", "1bb", "1kbi", "99999999p", "inf"] {
        let text = format!("type=tmpfs,target=/t,size={wrong}");
        assert_eq!(refused(&text), format!("invalid value for size: {wrong}"));
    }
}

#[test]
fn mistakes_are_in_buildkits_words() {
    let cases = [
        ("", "failed to parse csv mounts: EOF"),
        ("type=cahce", "unsupported mount type \"cahce\" (did you mean cache?)"),
        ("type=tmp", "unsupported mount type \"tmp\" (did you mean tmpfs?)"),
        ("type=volume", "unsupported mount type \"volume\" (it may be bind, cache, tmpfs, secret, ssh)"),
        ("tagret=/a", "unexpected key 'tagret' in 'tagret=/a' (did you mean target?)"),
        ("target", "invalid field 'target' must be a key=value pair (did you mean target?)"),
        ("ro=maybe", "invalid value for ro: maybe"),
        ("required", "unexpected key 'required' for mount type 'bind'"),
        ("size=1,type=tmpfs", "unexpected key 'size' for mount type 'bind'"),
        ("type=cache,sharing=lokced", "unsupported sharing value \"lokced\" (did you mean locked?)"),
        ("type=cache,mode=9", "invalid value 9 for mode"),
        ("type=cache,uid=+1", "invalid value +1 for uid"),
        ("type=bind,gid=1", "gid not allowed for \"bind\" type mounts"),
        ("type=tmpfs,mode=1", "mode not allowed for \"tmpfs\" type mounts"),
        ("type=secret", "invalid secret mount. one of source, target required"),
        ("type=secret,id=a,src=b", "both source and id can't be set"),
        ("type=secret,id=a,from=b", "secret mount should not have a from"),
        ("type=secret,id=a,sharing=shared", "secret mount should not define sharing"),
        ("type=ssh,sharing=shared", "invalid cache sharing set for ssh mount"),
    ];
    for (text, expected) in cases {
        assert_eq!(refused(text), expected, "{text}");
    }
}

#[test]
fn from_is_never_expanded() {
    assert_eq!(from("type=cache,FROM=a,from=b"), Ok(Some("b".to_owned())));
    assert_eq!(from("type=$x,target=${y:-a,b}"), Ok(None));
    assert_eq!(from("from=a$"), Ok(Some("a$".to_owned())));
    assert!(from("from=$x").is_err_and(|error| error.message.starts_with("'from' doesn't support")));
}

#[test]
fn values_are_expanded_one_by_one() {
    let mut expand = |value: &str| Ok(value.replace("$x", "a,b"));
    let mount = parse_expanding("type=cache,target=/$x,id=$x", &mut expand).expect("well formed");
    let Mount::Cache(CacheMount { id, target, .. }) = mount else { panic!("{mount:?}") };
    assert_eq!((id.as_deref(), target.as_deref()), (Some("a,b"), Some("/a,b")));
}
