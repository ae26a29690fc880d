//! How builds are told to people.

use std::fmt::Write;

use solver::Made;

use super::{
    Build,
    entry::{Asked, Ending, Entry, Outcome, Step},
};
use crate::{call::table, failure::harmless};

/// Longest label of a step in a table, in characters.
const LABEL_MAX: usize = 70;

/// The builds, one a line below a heading; `now` in Unix seconds.
pub fn list(builds: &[Build], now: u64) -> String {
    let heading = ["BUILD ID", "CREATED", "NAME", "STATUS", "DURATION", "STEPS", "CACHED", "SAVED"];
    let mut rows = vec![heading.map(str::to_owned)];
    rows.extend(builds.iter().map(|build| match build {
        Build::Known(entry) => row(entry, now),
        Build::Unreadable(id, _) => [id.as_str(), "-", "-", "damaged", "-", "-", "-", "-"].map(str::to_owned),
    }));
    let rows: Vec<[&str; 8]> = rows.iter().map(|row| row.each_ref().map(String::as_str)).collect();
    table(&rows, 2)
}

fn row(entry: &Entry, now: u64) -> [String; 8] {
    let steps = entry.counted().count();
    let hit_rate = (100 * entry.cached()).checked_div(steps);
    [
        entry.id.to_string(),
        ago(now, entry.at),
        harmless(&name(&entry.asked)),
        status(&entry.result).to_owned(),
        duration(entry.took_ms),
        steps.to_string(),
        hit_rate.map_or_else(|| "-".to_owned(), |rate| format!("{rate}%")),
        duration(entry.saved_ms()),
    ]
}

/// What people tell builds from each other by: the first tag, else the Dockerfile below the directory of the context, or in its
/// own where it lies elsewhere; and the target.
pub fn name(asked: &Asked) -> String {
    let Asked { dockerfile, context, target, platforms: _, tags } = asked;
    let mut name = match &tags[..] {
        [] => {
            let last =
                |path: &str| path.trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_owned();
            match dockerfile.rsplit_once('/') {
                Some((directory, file)) if dockerfile.starts_with('/') => {
                    format!("{}/{file}", last(directory))
                }
                Some((address, file)) if address.contains("://") => format!("{}/{file}", last(context)),
                _ => format!("{}/{dockerfile}", last(context)),
            }
        }
        [tag] => tag.trim_start_matches("docker.io/library/").to_owned(),
        [tag, more @ ..] => format!("{} +{}", tag.trim_start_matches("docker.io/library/"), more.len()),
    };
    if let Some(target) = target {
        name += &format!(" ({target})");
    }
    name
}

/// Everything that is remembered of a build but its log.
pub fn show(entry: &Entry, now: u64) -> String {
    let mut out = String::new();
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(out, "{:<12}{}", format!("{name}:"), harmless(value));
    };
    let Asked { dockerfile, context, target, platforms, tags } = &entry.asked;
    line("Build", entry.id.as_str());
    line("Created", &format!("{} ({})", rfc3339(entry.at), ago_within(now, entry.at)));
    line("Context", context);
    line("Dockerfile", dockerfile);
    target.iter().for_each(|target| line("Target", target));
    platforms.iter().for_each(|platform| line("Platform", platform));
    entry.sandbox.iter().for_each(|rung| line("Sandbox", rung));
    tags.iter().for_each(|tag| line("Tag", tag));
    line("Status", status(&entry.result));
    match &entry.result {
        Ending::Completed { digest, destinations } => {
            digest.iter().for_each(|digest| line("Digest", digest));
            destinations.iter().for_each(|place| line("Output", place));
        }
        Ending::Error { exit_code, message } => line("Error", &format!("{message} (exit code {exit_code})")),
        Ending::Canceled { exit_code } => {
            line("Error", &format!("stopped by a signal (exit code {exit_code})"))
        }
    }
    line("Duration", &format!("{}, saved {}", duration(entry.took_ms), duration(entry.saved_ms())));
    line("Steps", &format!("{}, {} cached", entry.counted().count(), entry.cached()));
    if !entry.steps.is_empty() {
        out += "\n";
        out += &steps(entry, now);
    }
    out
}

fn steps(entry: &Entry, now: u64) -> String {
    let cell = |step: &Step| [label(step), result(step), time(step), made(step, now)];
    let mut rows = vec![["STEP", "RESULT", "TIME", "MADE BY"].map(str::to_owned)];
    rows.extend(entry.steps.iter().map(cell));
    let rows: Vec<[&str; 4]> = rows.iter().map(|row| row.each_ref().map(String::as_str)).collect();
    table(&rows, 2) + &failures(entry)
}

/// Why steps have failed, as far as the build's own error has not said it.
fn failures(entry: &Entry) -> String {
    let told = match &entry.result {
        Ending::Error { message, .. } => message.as_str(),
        _ => "",
    };
    let line = |step: &Step| match &step.outcome {
        Outcome::Failed(why) if !told.contains(why) => Some(format!("{}: {}\n", label(step), harmless(why))),
        _ => None,
    };
    let lines: String = entry.steps.iter().filter_map(line).collect();
    if lines.is_empty() { lines } else { format!("\n{lines}") }
}

/// The label, cut where it is too long for a column.
fn label(step: &Step) -> String {
    let label = harmless(&step.label).replace('\n', " ");
    match label.chars().count() > LABEL_MAX {
        true => label.chars().take(LABEL_MAX - 3).collect::<String>() + "...",
        false => label,
    }
}

fn result(step: &Step) -> String {
    match &step.outcome {
        Outcome::Waiting => "not reached".to_owned(),
        Outcome::Source => "source".to_owned(),
        Outcome::Cached => "cached".to_owned(),
        Outcome::Ran => "ran".to_owned(),
        // It may be long: it stands below.
        Outcome::Failed(_) => "failed".to_owned(),
        Outcome::Canceled => "canceled".to_owned(),
    }
}

/// How long it ran, here or where it was made.
fn time(step: &Step) -> String {
    match (&step.outcome, &step.made) {
        (Outcome::Cached, Some(made)) => duration(made.took_ms),
        (Outcome::Cached, None) | (Outcome::Waiting, _) => "-".to_owned(),
        _ => duration(step.took_ms),
    }
}

/// Who made what the cache had.
fn made(step: &Step, now: u64) -> String {
    let from = step.from.as_ref().map(|cache| format!("from {cache}"));
    let made = step.made.as_ref().map(|Made { by, took_ms: _ }| {
        let build = if by.build.is_empty() { &by.builder } else { &by.build };
        let host = if by.host.is_empty() { String::new() } else { format!(" on {}", by.host) };
        format!("{build}{host}, {}", ago_within(now, by.at))
    });
    harmless(&made.into_iter().chain(from).collect::<Vec<_>>().join(", "))
}

fn status(result: &Ending) -> &'static str {
    match result {
        Ending::Completed { .. } => "Completed",
        Ending::Error { .. } => "Error",
        Ending::Canceled { .. } => "Canceled",
    }
}

/// `2026-11-21T14:05:01Z`
pub fn rfc3339(at: u64) -> String {
    exporter::assemble::rfc3339(i64::try_from(at).unwrap_or(i64::MAX))
}

/// `0.12s`, `12.3s` or `1h 2m 5s`.
pub fn duration(milliseconds: u64) -> String {
    let seconds = milliseconds / 1000;
    let (hours, minutes, rest) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) if seconds < 10 => format!("{:.2}s", milliseconds as f64 / 1e3),
        (0, 0) => format!("{:.1}s", milliseconds as f64 / 1e3),
        (0, minutes) => format!("{minutes}m {rest}s"),
        (hours, minutes) => format!("{hours}h {minutes}m {rest}s"),
    }
}

/// How long ago that was, in Docker's words.
pub fn ago(now: u64, at: u64) -> String {
    let seconds = now.saturating_sub(at);
    let (minutes, hours, days) = (seconds / 60, (seconds + 1800) / 3600, seconds / 86_400);
    let time = match () {
        () if seconds < 1 => "Less than a second".to_owned(),
        () if seconds == 1 => "1 second".to_owned(),
        () if seconds < 60 => format!("{seconds} seconds"),
        () if minutes == 1 => "About a minute".to_owned(),
        () if minutes < 60 => format!("{minutes} minutes"),
        () if hours == 1 => "About an hour".to_owned(),
        () if hours < 48 => format!("{hours} hours"),
        () if days < 14 => format!("{days} days"),
        () if days < 60 => format!("{} weeks", days / 7),
        () if days < 730 => format!("{} months", days / 30),
        () => format!("{} years", days / 365),
    };
    format!("{time} ago")
}

/// [`ago`] within a sentence.
pub fn ago_within(now: u64, at: u64) -> String {
    let mut text = ago(now, at);
    text[..1].make_ascii_lowercase();
    text
}

#[cfg(test)]
mod tests {
    use solver::Maker;

    use super::*;

    fn step(label: &str, outcome: Outcome, took_ms: u64) -> Step {
        let label = label.to_owned();
        Step {
            vertex: 0,
            label,
            stage: String::new(),
            outcome,
            took_ms,
            definition: None,
            made: None,
            from: None,
            miss: None,
        }
    }

    fn entry(steps: Vec<Step>, result: Ending) -> Entry {
        let asked = Asked {
            dockerfile: "sub/Dockerfile.test".to_owned(),
            context: "/home/me/app/".to_owned(),
            target: Some("test".to_owned()),
            ..Asked::default()
        };
        let id = "20261121T140501Z-3f9c21ab".parse().expect("an ID");
        let (elsewhere, distrusted, unanswered) = Default::default();
        Entry {
            id,
            at: 1_795_269_901,
            took_ms: 1234,
            asked,
            result,
            steps,
            sandbox: Some("root".to_owned()),
            elsewhere,
            distrusted,
            unanswered,
        }
    }

    fn cached() -> Step {
        let by = Maker {
            builder: "layerwright 0.1.0".to_owned(),
            host: "box".to_owned(),
            build: "20261118T140501Z-00000000".to_owned(),
            at: 1_795_269_901 - 3 * 86_400,
        };
        let made = Some(Made { by, took_ms: 75_400 });
        Step { made, ..step("[2/3] RUN make", Outcome::Cached, 0) }
    }

    #[test]
    fn a_build_is_a_line() {
        let steps = vec![
            step("[1/3] FROM x", Outcome::Source, 0),
            cached(),
            step("[3/3] RUN make test", Outcome::Ran, 1000),
        ];
        let done = Ending::Completed { digest: None, destinations: Vec::new() };
        let tags = ["docker.io/library/app:1", "h/b:2"].map(str::to_owned).to_vec();
        let mut tagged = entry(steps, done);
        tagged.asked = Asked { tags, ..Asked::default() };
        let failed = entry(Vec::new(), Ending::Error { exit_code: 2, message: "x".to_owned() });
        let want = "\
BUILD ID                   CREATED        NAME                            STATUS     DURATION  STEPS  CACHED  SAVED
20261121T140501Z-3f9c21ab  5 minutes ago  app:1 +1                        Completed  1.23s     2      50%     1m 15s
20261121T140501Z-3f9c21ab  5 minutes ago  app/sub/Dockerfile.test (test)  Error      1.23s     0      -       0.00s
";
        assert_eq!(
            list(&[tagged, failed].map(|entry| Build::Known(Box::new(entry))), 1_795_269_901 + 300),
            want
        );
    }

    #[test]
    fn a_build_without_a_tag_is_called_by_where_its_dockerfile_is() {
        for (dockerfile, expected) in [
            ("Dockerfile", "app/Dockerfile"),
            ("one/Dockerfile", "app/one/Dockerfile"),
            ("/else/where/Dockerfile", "where/Dockerfile"),
            ("/Dockerfile", "/Dockerfile"),
            ("https://h.example/x/Dockerfile", "app/Dockerfile"),
            ("-", "app/-"),
        ] {
            let asked = Asked {
                dockerfile: dockerfile.to_owned(),
                context: "/home/me/app/".to_owned(),
                ..Asked::default()
            };
            assert_eq!(name(&asked), expected);
        }
    }

    #[test]
    fn a_build_is_told_step_by_step() {
        let steps = vec![
            step("[1/3] FROM x", Outcome::Source, 0),
            cached(),
            step("[3/3] RUN make \x1b[2Jtest", Outcome::Failed("exit code 1".to_owned()), 1000),
            step("[3/3] RUN true", Outcome::Waiting, 0),
        ];
        let failed = entry(steps, Ending::Error { exit_code: 1, message: "exit code 1".to_owned() });
        let mut another = failed.clone();
        another.steps[0].outcome = Outcome::Failed("no disk".to_owned());
        let want = "\
Build:      20261121T140501Z-3f9c21ab
Created:    2026-11-21T14:05:01Z (2 days ago)
Context:    /home/me/app/
Dockerfile: sub/Dockerfile.test
Target:     test
Sandbox:    root
Status:     Error
Error:      exit code 1 (exit code 1)
Duration:   1.23s, saved 1m 15s
Steps:      3, 1 cached

STEP                     RESULT       TIME    MADE BY
[1/3] FROM x             source       0.00s
[2/3] RUN make           cached       1m 15s  20261118T140501Z-00000000 on box, 5 days ago
[3/3] RUN make  [2Jtest  failed       1.00s
[3/3] RUN true           not reached  -
";
        assert_eq!(show(&failed, 1_795_269_901 + 2 * 86_400), want);
        let another = show(&another, 1_795_269_901);
        assert!(another.contains("(less than a second ago)"), "{another}");
        assert!(another.ends_with("  -\n\n[1/3] FROM x: no disk\n"), "{another}");
    }

    #[test]
    fn times_are_told_in_dockers_words() {
        for (seconds, want) in [
            (0, "Less than a second ago"),
            (1, "1 second ago"),
            (59, "59 seconds ago"),
            (60, "About a minute ago"),
            (3599, "59 minutes ago"),
            (3600, "About an hour ago"),
            (86_400, "24 hours ago"),
            (2 * 86_400, "2 days ago"),
            (15 * 86_400, "2 weeks ago"),
            (70 * 86_400, "2 months ago"),
            (800 * 86_400, "2 years ago"),
        ] {
            assert_eq!(ago(1_000_000_000, 1_000_000_000 - seconds), want);
        }
        assert_eq!(ago(5, 9), "Less than a second ago", "a clock that was set back");
    }
}
