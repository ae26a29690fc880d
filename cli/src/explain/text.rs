//! How a build is explained to people: a line for each step, and below those that ran what differed, one thing a line.

use solver::{
    Made,
    explain::{Change, FileChange, Origin, Reason, Unknown, Why},
    key::hidden::is_hidden,
};

use super::{Explained, Explanation};
use crate::{
    call::table,
    failure::harmless,
    history::{Outcome, ago_within, duration, name},
    redact::redact,
};

/// How many files are named.
const FILES_MAX: usize = 10;
/// The longest value that stands beside another one, and the longest one that is told at all, in characters.
const SHORT: usize = 40;
const LONG: usize = 160;
/// Longest label of a step, in characters.
const LABEL_MAX: usize = 70;
/// What stands before a reason.
const INDENT: &str = "          ";

/// All of it; `now` in Unix seconds. Ends in a line end.
pub fn tell(explanation: &Explanation, now: u64) -> String {
    let Explanation { id, at, asked, steps } = explanation;
    let count = |what: fn(&Explained) -> bool| steps.iter().filter(|step| what(step)).count();
    let (ran, cached) = (count(|step| step.why.is_some()), count(|step| step.outcome == Outcome::Cached));
    let (name, ago, all) = (harmless(&name(asked)), ago_within(now, *at), steps.len());
    let plural = if all == 1 { "" } else { "s" };
    let mut text = format!("Build {id} of {name}, {ago}: {all} step{plural}, {ran} ran, {cached} cached\n");
    let heads: Vec<[String; 3]> = steps.iter().map(|step| head(step, explanation, now)).collect();
    let heads: Vec<[&str; 3]> = heads.iter().map(|head| head.each_ref().map(String::as_str)).collect();
    for (step, head) in steps.iter().zip(table(&heads, 2).lines()) {
        text += &format!("{head}\n");
        if let Some(why) = &step.why {
            let lines = why.reasons.iter().flat_map(|reason| lines(reason, now));
            lines.for_each(|line| text += &format!("{INDENT}{}\n", clean(&line)));
        }
    }
    text
}

/// What became of a step, which it is, and how long that took.
fn head(step: &Explained, explanation: &Explanation, now: u64) -> [String; 3] {
    let (word, tail) = match (&step.outcome, &step.made) {
        (Outcome::Ran, _) => ("RAN", duration(step.duration_ms) + &unlike(step, now)),
        (Outcome::Failed(_), _) => ("FAILED", duration(step.duration_ms) + &unlike(step, now)),
        (Outcome::Canceled, _) => ("STOPPED", duration(step.duration_ms)),
        (Outcome::Waiting | Outcome::Source, _) => ("-", "not reached".to_owned()),
        (Outcome::Cached, Some(Made { by, .. })) if by.build == explanation.id.as_str() => {
            ("CACHED", "an equal step of this build ran".to_owned())
        }
        (Outcome::Cached, Some(made)) => ("CACHED", built(made, now)),
        (Outcome::Cached, None) => ("CACHED", "by a later step's record".to_owned()),
    };
    let label = harmless(&redact(&step.label)).replace('\n', " ");
    let from = step.from.as_ref().map(|cache| clean(&format!(", from {cache}"))).unwrap_or_default();
    [word.to_owned(), cut(&label, LABEL_MAX), tail + &from]
}

fn built(made: &Made, now: u64) -> String {
    let Made { by, took_ms } = made;
    let build = if by.build.is_empty() { &by.builder } else { &by.build };
    let host = if by.host.is_empty() { String::new() } else { format!(" on {}", by.host) };
    harmless(&format!("built {} by {build}{host}, took {}", ago_within(now, by.at), duration(*took_ms)))
}

/// The build that the step was compared with, where something of its own differs.
fn unlike(step: &Explained, now: u64) -> String {
    let Some(Why { reasons, compared_with: Some(origin) }) = &step.why else { return String::new() };
    match reasons.iter().all(|reason| matches!(reason, Reason::Step { .. })) {
        true => String::new(),
        false => format!(", unlike in {}", told(origin, now)),
    }
}

fn told(origin: &Origin, now: u64) -> String {
    let Origin { at, build, host } = origin;
    match (build.is_empty(), host.is_empty()) {
        (false, _) => format!("build {build} ({})", ago_within(now, *at)),
        (true, false) => format!("a build on {host} ({})", ago_within(now, *at)),
        (true, true) => format!("a build ({})", ago_within(now, *at)),
    }
}

/// One reason, in as many lines as it takes.
fn lines(reason: &Reason, now: u64) -> Vec<String> {
    let one = |line: String| vec![line];
    match reason {
        Reason::Forced => one("forced: the cache was not asked (--no-cache, --no-cache-filter)".to_owned()),
        Reason::Expired { made } => one(format!("older than --cache-ttl allows: {}", built(made, now))),
        Reason::Removed { origin } => {
            one(format!("its result is gone from the store: it ran in {}", told(origin, now)))
        }
        Reason::Late { origin } => one(format!(
            "a remote cache has its result, which came too late or could not be had: it ran in {}",
            told(origin, now)
        )),
        Reason::FailedBefore { origin } => one(format!("it failed before, in {}", told(origin, now))),
        Reason::StoppedBefore { origin } => one(format!("it was stopped before, in {}", told(origin, now))),
        Reason::Distrusted => {
            one("not used: what is remembered of it no --cache-trust-key has signed".to_owned())
        }
        Reason::New => one("new: nothing like it has ever run here".to_owned()),
        Reason::Borrowed { cache, origin } => one(format!(
            "new here: {} had its result of the cache {cache}, which is not asked now, or not trusted",
            told(origin, now)
        )),
        Reason::Unknown { caches } => one(match &caches[..] {
            [cache] => {
                format!("not known: the cache {cache} has not answered, and nothing like it has run here")
            }
            caches => {
                format!(
                    "not known: {} have not answered, and nothing like it has run here",
                    caches.join(", ")
                )
            }
        }),
        Reason::Instruction { from, to } => both("instruction", from, to),
        Reason::Heredoc { name } => one(format!("heredoc {name}  text")),
        Reason::Arg { name, from, to } => values(&format!("ARG {name}"), from.as_ref(), to.as_ref()),
        Reason::Env { name, from, to } => values(&format!("ENV {name}"), from.as_ref(), to.as_ref()),
        Reason::Setting { name, from, to } => values(name, from.as_ref(), to.as_ref()),
        Reason::Base { from, to } => both("base", from, to),
        Reason::Step { label } => one(format!("because of {}", cut(label, LABEL_MAX))),
        Reason::Place { from, to } => one(format!("comes after {to} now, and came after {from}")),
        Reason::Files { changes } => files(changes),
        Reason::SomeFiles { picked, unknown } => one(match unknown {
            Unknown::NoList => {
                format!(
                    "files of {picked}  which ones is not known: the list of them is not in the store \
                     (of what another machine built, `build --explain` brings it)"
                )
            }
            Unknown::SameList => format!("files of {picked}  hard links or capabilities"),
        }),
    }
}

/// What a value was and what it is: beside each other where they are short.
fn values(name: &str, from: Option<&String>, to: Option<&String>) -> Vec<String> {
    let value = |value: Option<&String>| match value {
        None => "(not set)".to_owned(),
        Some(value) if value.is_empty() => "(empty)".to_owned(),
        Some(value) if is_hidden(value) => "(another value)".to_owned(),
        Some(value) => value.clone(),
    };
    let (from, to) = (value(from), value(to));
    let is_short = |text: &String| text.chars().count() <= SHORT && !text.contains('\n');
    match is_short(&from) && is_short(&to) {
        true => vec![format!("{name}  {from} → {to}")],
        false => both(name, &from, &to),
    }
}

/// What a text was and what it is, below each other; of several lines those where they begin to differ.
fn both(name: &str, from: &str, to: &str) -> Vec<String> {
    let differs = from.lines().zip(to.lines()).take_while(|(from, to)| from == to).count();
    let line = |text: &str| text.lines().nth(differs).unwrap_or("(nothing more)").trim().to_owned();
    let (from, to) = (line(from), line(to));
    // So that both are cut where it does not hurt.
    let same = from.chars().zip(to.chars()).take_while(|(from, to)| from == to).count();
    let gone = same.saturating_sub(LONG / 2);
    let part = |text: &str| match gone {
        0 => cut(text, LONG),
        gone => format!("...{}", cut(&text.chars().skip(gone).collect::<String>(), LONG - 3)),
    };
    let blank = " ".repeat(name.chars().count());
    vec![format!("{name}  - {}", part(&from)), format!("{blank}  + {}", part(&to))]
}

fn files(changes: &[FileChange]) -> Vec<String> {
    let row = |FileChange { path, change }: &FileChange| {
        let change = match change {
            Change::Added => "added".to_owned(),
            Change::Removed => "removed".to_owned(),
            Change::Content => "content".to_owned(),
            Change::Mode { from, to } => format!("mode {from:04o} → {to:04o}"),
            Change::Link { from, to } => format!("link {from} → {to}"),
            Change::Kind { from, to } => format!("{from} → {to}"),
        };
        [clean(path), change]
    };
    let rows: Vec<[String; 2]> = changes.iter().take(FILES_MAX).map(row).collect();
    let rows: Vec<[&str; 2]> = rows.iter().map(|row| row.each_ref().map(String::as_str)).collect();
    let mut lines: Vec<String> = table(&rows, 2).lines().map(str::to_owned).collect();
    let more = changes.len().saturating_sub(FILES_MAX);
    if more > 0 {
        lines.push(format!("and {more} more"));
    }
    lines
}

fn cut(text: &str, max: usize) -> String {
    match text.chars().count() > max {
        true => text.chars().take(max - 3).collect::<String>() + "...",
        false => text.to_owned(),
    }
}

/// One line without control characters and credentials.
fn clean(text: &str) -> String {
    harmless(&redact(text)).replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use solver::Maker;

    use super::*;
    use crate::history::Asked;

    const NOW: u64 = 1_795_270_201;

    fn step(label: &str, outcome: Outcome, reasons: Vec<Reason>) -> Explained {
        let build = "20261121T135501Z-00000000".to_owned();
        let compared_with = Some(Origin { at: NOW - 900, build, host: String::new() });
        let why = (!reasons.is_empty()).then_some(Why { reasons, compared_with });
        Explained {
            step: 0,
            label: label.to_owned(),
            outcome,
            duration_ms: 1500,
            why,
            made: None,
            from: None,
        }
    }

    fn told(steps: Vec<Explained>) -> String {
        let asked = Asked {
            dockerfile: "Dockerfile".to_owned(),
            context: "/home/me/app".to_owned(),
            ..Asked::default()
        };
        let id = "20261121T140501Z-3f9c21ab".parse().expect("an ID");
        tell(&Explanation { id, at: NOW - 300, asked, steps }, NOW)
    }

    fn changes(count: usize) -> Vec<FileChange> {
        let path = |number| format!("src/f{number:02}");
        (0..count).map(|number| FileChange { path: path(number), change: Change::Content }).collect()
    }

    #[test]
    fn a_build_is_told_step_by_step() {
        let by = Maker {
            builder: "layerwright 0.1.0".to_owned(),
            host: "box".to_owned(),
            build: "20261118T140501Z-00000000".to_owned(),
            at: NOW - 3 * 86_400,
        };
        let cached = step("[2/6] RUN apk add gcc", Outcome::Cached, Vec::new());
        let mut files = changes(9);
        files[0].change = Change::Mode { from: 0o644, to: 0o755 };
        files[1].change = Change::Link { from: "a".to_owned(), to: "b".to_owned() };
        files.extend(changes(12).split_off(9));
        let value = |value: &str| Some(value.to_owned());
        let steps = vec![
            Explained { made: Some(Made { by, took_ms: 75_400 }), from: value("h/cache:main"), ..cached },
            step("[3/6] COPY src /src", Outcome::Ran, vec![Reason::Files { changes: files }]),
            step(
                "[4/6] RUN make",
                Outcome::Ran,
                vec![Reason::Step { label: "[3/6] COPY src /src".to_owned() }],
            ),
            step(
                "[5/6] RUN make test \x1b[2J",
                Outcome::Failed("exit code 1".to_owned()),
                vec![
                    Reason::Arg { name: "V".to_owned(), from: value("1"), to: None },
                    Reason::Env {
                        name: "PATH".to_owned(),
                        from: value("/bin"),
                        to: value(&"/long".repeat(20)),
                    },
                    Reason::Arg {
                        name: "TOKEN".to_owned(),
                        from: value("hidden:434e71e61531e8ce"),
                        to: value("x"),
                    },
                    Reason::Instruction { from: "RUN a \\\n b".to_owned(), to: "RUN a \\\n c".to_owned() },
                ],
            ),
            step("[6/6] RUN true", Outcome::Waiting, Vec::new()),
        ];
        let want = "\
Build 20261121T140501Z-3f9c21ab of app/Dockerfile, 5 minutes ago: 5 steps, 3 ran, 1 cached
CACHED  [2/6] RUN apk add gcc     built 3 days ago by 20261118T140501Z-00000000 on box, took 1m 15s, from h/cache:main
RAN     [3/6] COPY src /src       1.50s, unlike in build 20261121T135501Z-00000000 (15 minutes ago)
          src/f00  mode 0644 → 0755
          src/f01  link a → b
          src/f02  content
          src/f03  content
          src/f04  content
          src/f05  content
          src/f06  content
          src/f07  content
          src/f08  content
          src/f09  content
          and 2 more
RAN     [4/6] RUN make            1.50s
          because of [3/6] COPY src /src
FAILED  [5/6] RUN make test  [2J  1.50s, unlike in build 20261121T135501Z-00000000 (15 minutes ago)
          ARG V  1 → (not set)
          ENV PATH  - /bin
                    + /long/long/long/long/long/long/long/long/long/long/long/long/long/long/long/long/long/long/long/long
          ARG TOKEN  (another value) → x
          instruction  - b
                       + c
-       [6/6] RUN true            not reached
";
        assert_eq!(told(steps), want);
    }

    #[test]
    fn long_values_are_cut_where_they_differ() {
        let text = |end: &str| "x".repeat(500) + end;
        let lines = both("base", &text("a"), &text("b"));
        assert!(lines.iter().all(|line| line.chars().count() < 2 * LONG), "{lines:?}");
        assert!(lines[0].ends_with("xa") && lines[1].ends_with("xb"), "{lines:?}");
    }
}
