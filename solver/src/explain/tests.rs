//! One change at a time, on the pre-images of steps as the key module makes them.

use super::*;
use crate::cache::Maker;

fn digest(name: &str) -> TreeDigest {
    let mut encoder = oci::canonical::Encoder::new("test");
    encoder.field(1, name);
    encoder.digest()
}

/// A pre-image, drawn one field a line: `name = value`.
fn fields(text: &str) -> BTreeMap<String, String> {
    let field = |line: &str| {
        let (name, value) = line.trim().split_once(" = ").expect("NAME = VALUE");
        let value = if name == "parent" || name.starts_with("files ") {
            digest(value).to_string()
        } else {
            value.to_owned()
        };
        (name.to_owned(), value)
    };
    text.lines().filter(|line| !line.trim().is_empty()).map(field).collect()
}

fn miss(text: &str) -> Miss {
    let pre_image = fields(text);
    let content = digest(&format!("{pre_image:?}"));
    Miss { definition: digest("definition"), content, pre_image, forced: false, expired: None }
}

fn known(text: &str, at: u64) -> Known {
    let Miss { content, pre_image, .. } = miss(text);
    let origin = Origin { at, build: format!("build-{at}"), host: String::new() };
    Known { content, pre_image, origin, fate: Fate::Ran, project: Project::Same }
}

const RUN: &str = r#"op = run
    args = ["/bin/sh", "-c", "make"]
    env A = 1
    env V = 1
    ~arg V = 1
    user = root
    parent = base
    ~instruction = RUN make
    ~input 0 = [1/2] FROM base@one"#;

const COPY: &str = "op = copy
    item 000 = a
    destination = /a
    parent = base
    files a = before
    ~instruction = COPY $N /
    ~arg N = a
    ~input 0 = [1/2] FROM base@one
    ~input 1 = [internal] load build context";

fn inventory(lines: &[(&str, Item)]) -> Inventory {
    Inventory(lines.iter().map(|(path, item)| ((*path).to_owned(), item.clone())).collect())
}

fn file(text: &str, mode: u32) -> Item {
    Item { kind: ItemKind::File(ContentDigest::of(text.as_bytes())), mode }
}

fn directory() -> Item {
    Item { kind: ItemKind::Directory, mode: 0o755 }
}

fn nothing(_: &TreeDigest) -> Option<Inventory> {
    None
}

/// Why a step ran that is alone in its build, and that was made of `new` where `old` is known.
fn reasons(old: &str, new: &str) -> Vec<Reason> {
    let miss = miss(new);
    let steps = [Step { label: "[2/2] STEP", miss: Some(&miss) }];
    explain(&steps, &[known(old, 1)], &nothing).remove(0).expect("it ran").reasons
}

fn arg(name: &str, from: Option<&str>, to: Option<&str>) -> Reason {
    let (from, to) = (from.map(str::to_owned), to.map(str::to_owned));
    Reason::Arg { name: name.to_owned(), from, to }
}

fn env(name: &str, from: Option<&str>, to: Option<&str>) -> Reason {
    let (from, to) = (from.map(str::to_owned), to.map(str::to_owned));
    Reason::Env { name: name.to_owned(), from, to }
}

fn setting(name: &str, from: &str, to: &str) -> Reason {
    Reason::Setting { name: name.to_owned(), from: Some(from.to_owned()), to: Some(to.to_owned()) }
}

#[test]
fn each_difference_is_told_in_its_own_words_and_nothing_else_is() {
    let text = |from: &str, to: &str| Reason::Instruction { from: from.to_owned(), to: to.to_owned() };
    let base = |to: &str| Reason::Base { from: "base@one".to_owned(), to: to.to_owned() };
    let rows = [
        (RUN, vec![("env V = 1", "env V = 2"), ("~arg V = 1", "~arg V = 2")], arg("V", Some("1"), Some("2"))),
        (RUN, vec![("env V = 1\n", ""), ("~arg V = 1\n", "")], arg("V", Some("1"), None)),
        (RUN, vec![("env A = 1", "env A = 2")], env("A", Some("1"), Some("2"))),
        (RUN, vec![("env A = 1\n", "")], env("A", Some("1"), None)),
        (RUN, vec![("user = root", "user = nobody")], setting("user", "root", "nobody")),
        (RUN, vec![("-c\", \"make", "-c\", \"all")], setting("command", "make", "all")),
        (RUN, vec![("/bin/sh", "/bin/ash")], setting("shell", "/bin/sh -c", "/bin/ash -c")),
        (
            RUN,
            vec![("\"make\"]", "\"make all\"]"), ("RUN make", "RUN make all")],
            text("RUN make", "RUN make all"),
        ),
        (RUN, vec![("parent = base", "parent = other"), ("base@one", "base@two")], base("base@two")),
        (
            RUN,
            vec![("parent = base", "parent = other"), ("FROM base@one", "RUN x")],
            Reason::Place { from: "FROM base@one".to_owned(), to: "[1/2] RUN x".to_owned() },
        ),
        (
            COPY,
            vec![("item 000 = a", "item 000 = b"), ("files a", "files b"), ("~arg N = a", "~arg N = b")],
            arg("N", Some("a"), Some("b")),
        ),
        (COPY, vec![("destination = /a", "destination = /w/a")], setting("destination", "/a", "/w/a")),
        (
            COPY,
            vec![("= before", "= after")],
            Reason::SomeFiles { picked: "a".to_owned(), unknown: Unknown::NoList },
        ),
    ];
    for (old, changes, want) in rows {
        let changed = |text: String, (from, to): &(&str, &str)| {
            assert!(text.contains(from), "{from}");
            text.replacen(from, to, 1)
        };
        let new = changes.iter().fold(old.to_owned(), changed);
        assert_eq!(reasons(old, &new), [want], "{changes:?}");
    }
}

#[test]
fn of_what_another_machine_made_the_variable_that_differs_is_named_and_no_other() {
    use crate::key::hidden::{hide, is_hidden};
    let new = format!("{RUN}\n~label = [2/2] RUN make 1\n~written label = [2/2] RUN make $V");
    let elsewhere = |text: &str| {
        let known = known(text, 1);
        Known { pre_image: hide(&known.pre_image), fate: Fate::Elsewhere, ..known }
    };
    let miss = miss(&new);
    let steps = [Step { label: "[2/2] RUN make 1", miss: Some(&miss) }];
    let told = |old: &str| {
        let known = [elsewhere(old)];
        assert_eq!(compared(&steps, &known).len(), 1);
        explain(&steps, &known, &nothing).remove(0).expect("it ran").reasons
    };
    let old = new.replace("V = 1", "V = 2").replace("make 1", "make 2");
    let reasons = told(&old);
    let [Reason::Arg { name, from: Some(from), to }] = &reasons[..] else { panic!("{reasons:?}") };
    assert!(name == "V" && is_hidden(from) && to.as_deref() == Some("1"), "{reasons:?}");
    let cached = [Step { label: "[2/2] RUN make 1", miss: None }, steps[0]];
    let other = format!("{RUN}\n~label = [2/2] RUN make $V")
        .replace("= RUN make", "= RUN make $V")
        .replace("user = root", "user = me");
    let answers = explain(&cached, &[elsewhere(&other)], &nothing);
    assert_eq!(answers[1].as_ref().expect("it ran").reasons, [Reason::New], "that one is still there");
    let user = setting("user", "nobody", "root");
    assert_eq!(told(&new.replace("user = root", "user = nobody")), [user], "no variable has changed");
}

#[test]
fn files_are_told_by_name() {
    let before = inventory(&[
        ("d", directory()),
        ("d/old", file("x", 0o644)),
        ("e", directory()),
        ("link", Item { kind: ItemKind::Link("a".to_owned()), mode: 0o777 }),
        ("mode", file("x", 0o644)),
        ("same", file("x", 0o644)),
        ("text", file("x", 0o644)),
    ]);
    let after = inventory(&[
        ("e", file("x", 0o644)),
        ("link", Item { kind: ItemKind::Link("b".to_owned()), mode: 0o777 }),
        ("mode", file("x", 0o755)),
        ("new", directory()),
        ("new/file", file("x", 0o644)),
        ("same", file("x", 0o644)),
        ("text", file("y", 0o644)),
    ]);
    let row = |path: &str, change| FileChange { path: path.to_owned(), change };
    let want = vec![
        row("d/old", Change::Removed),
        row("e", Change::Kind { from: "directory".to_owned(), to: "file".to_owned() }),
        row("link", Change::Link { from: "a".to_owned(), to: "b".to_owned() }),
        row("mode", Change::Mode { from: 0o644, to: 0o755 }),
        row("new/file", Change::Added),
        row("text", Change::Content),
    ];
    assert_eq!(changes(&before, &after), want);
    let miss = miss(&COPY.replace("= before", "= after"));
    let find = |asked: &TreeDigest| match () {
        () if *asked == digest("before") => Some(before.clone()),
        () if *asked == digest("after") => Some(after.clone()),
        () => None,
    };
    let steps = [Step { label: "[2/2] COPY a /", miss: Some(&miss) }];
    let why = explain(&steps, &[known(COPY, 1)], &find).remove(0).expect("it ran");
    assert_eq!(why.reasons, [Reason::Files { changes: want }]);
}

#[test]
fn what_follows_from_an_earlier_step_names_the_first() {
    let first = miss(&RUN.replace("env A = 1", "env A = 2"));
    let after = |step: &str, parent: &str| {
        RUN.replace("RUN make", "RUN then")
            .replace("parent = base", &format!("parent = {parent}"))
            .replace("[1/2] FROM base@one", step)
    };
    let (second, third) = (miss(&after("[2/4] RUN make", "b")), miss(&after("[3/4] RUN then", "c")));
    let steps = [
        Step { label: "[1/4] FROM base@one", miss: None },
        Step { label: "[2/4] RUN make", miss: Some(&first) },
        Step { label: "[3/4] RUN then", miss: Some(&second) },
        Step { label: "[4/4] RUN then", miss: Some(&third) },
    ];
    let old =
        [known(RUN, 1), known(&after("[2/4] RUN make", "x"), 1), known(&after("[3/4] RUN then", "y"), 1)];
    let why = explain(&steps, &old, &nothing);
    let step = vec![Reason::Step { label: "[2/4] RUN make".to_owned() }];
    let told: Vec<_> = why.into_iter().map(|why| why.map(|why| why.reasons)).collect();
    assert_eq!(told, [None, Some(vec![env("A", Some("1"), Some("2"))]), Some(step.clone()), Some(step)]);
}

#[test]
fn a_step_that_the_cache_had_is_no_difference_beside_one() {
    let after = |parent: &str, value: &str| {
        let run = RUN.replace("parent = base", &format!("parent = {parent}")).replace("V = 1", value);
        run.replace("[1/2] FROM base@one", "[2/3] COPY src/ .")
    };
    let miss = miss(&after("ours", "V = 9"));
    let steps = [
        Step { label: "[2/3] COPY src/ .", miss: None },
        Step { label: "[3/3] RUN make", miss: Some(&miss) },
    ];
    let (ours, theirs) = (known(&after("ours", "V = 2"), 1), known(&after("theirs", "V = 1"), 2));
    let nearer = known(&after("theirs", "V = 9"), 3);
    let told = |known: &[Known]| explain(&steps, known, &nothing).remove(1).expect("it ran");
    assert_eq!(told(std::slice::from_ref(&theirs)).reasons, [arg("V", Some("1"), Some("9"))]);
    let why = told(&[ours.clone(), theirs, nearer.clone()]);
    assert_eq!((why.reasons, why.compared_with), (vec![arg("V", Some("2"), Some("9"))], Some(ours.origin)));
    let follows = Reason::Step { label: "[2/3] COPY src/ .".to_owned() };
    assert_eq!(told(&[nearer]).reasons, [follows], "nothing else differs");
}

#[test]
fn what_no_comparison_says_goes_first() {
    let plain = miss(RUN);
    let made = Made { by: Maker::default(), took_ms: 5 };
    let one = |miss: &Miss, known: &[Known]| {
        let steps = [Step { label: "[2/2] RUN make", miss: Some(miss) }];
        explain(&steps, known, &nothing).remove(0).expect("it ran").reasons.remove(0)
    };
    let older = known(RUN, 1);
    assert_eq!(one(&plain, &[]), Reason::New);
    assert_eq!(one(&plain, std::slice::from_ref(&older)), Reason::Removed { origin: older.origin.clone() });
    let failed = Known { fate: Fate::Failed, ..known(RUN, 2) };
    assert_eq!(one(&plain, &[failed.clone(), older.clone()]), Reason::FailedBefore { origin: failed.origin });
    let stopped = Known { fate: Fate::Stopped, ..known(RUN, 3) };
    assert_eq!(one(&plain, std::slice::from_ref(&stopped)), Reason::StoppedBefore { origin: stopped.origin });
    let late = Known { fate: Fate::Elsewhere, ..known(RUN, 4) };
    let want = Reason::Late { origin: late.origin.clone() };
    assert_eq!(one(&plain, &[older.clone(), late.clone()]), want);
    let forced = Miss { forced: true, ..plain.clone() };
    assert_eq!(one(&forced, std::slice::from_ref(&older)), Reason::Forced);
    let expired = Miss { expired: Some(made.clone()), ..plain };
    assert_eq!(one(&expired, &[older]), Reason::Expired { made });
}

#[test]
fn a_step_is_compared_with_what_is_most_like_it() {
    let new = RUN.replace("env A = 1", "env A = 3");
    let far = known(&RUN.replace("env A = 1", "env A = 2").replace("user = root", "user = x"), 9);
    let near = known(&RUN.replace("env A = 1", "env A = 2"), 2);
    let newer = known(RUN, 3);
    let elsewhere = Known { project: Project::Other, ..known(RUN, 8) };
    let miss = miss(&new);
    let steps = [Step { label: "[2/2] RUN make", miss: Some(&miss) }];
    let with = |known: &[Known]| explain(&steps, known, &nothing).remove(0).expect("ran").compared_with;
    assert_eq!(with(&[far, near, newer.clone(), elsewhere]), Some(newer.origin));
}

#[test]
fn what_is_not_compared_with_anything_can_be_forgotten() {
    let (edited, same, added) =
        (miss(&RUN.replace("env A = 1", "env A = 2")), miss(COPY), miss("op = workdir"));
    let steps = [
        Step { label: "[2/5] RUN make", miss: Some(&edited) },
        Step { label: "[3/5] COPY a /", miss: Some(&same) },
        Step { label: "[4/5] WORKDIR /x", miss: Some(&added) },
        Step { label: "[5/5] RUN cached", miss: None },
    ];
    let all = [known(RUN, 1), known(RUN, 2), known(COPY, 1), known(COPY, 3), known("op = merge", 9)];
    let compared = compared(&steps, &all);
    assert_eq!(compared, [&all[1], &all[3]]);
    let few: Vec<Known> = compared.into_iter().cloned().collect();
    assert_eq!(explain(&steps, &few, &nothing), explain(&steps, &all, &nothing));
}

#[test]
fn a_new_instruction_is_not_taken_for_one_that_is_still_there() {
    let other =
        RUN.replace("\"make\"]", "\"test\"]").replace("RUN make", "RUN $T") + "\n~label = [2/2] RUN test";
    let (new, still) = (miss(RUN), miss(&other));
    let (new, still) = (
        Step { label: "[2/3] RUN make", miss: Some(&new) },
        Step { label: "[3/3] RUN test", miss: Some(&still) },
    );
    let first =
        |steps: &[Step<'_>]| explain(steps, &[known(&other, 1)], &nothing).remove(0).expect("ran").reasons;
    assert_eq!(first(&[new, still]), [Reason::New]);
    assert_eq!(first(&[new, Step { label: "[3/3] RUN test", miss: None }]), [Reason::New]);
    assert!(matches!(first(&[new])[..], [Reason::Instruction { .. }]), "it was edited");
}
