//! What hostile input costs: an error, and memory bounded by a small multiple of the input. Each case runs in a process of
//! its own, which says how much it has used at most.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_macros,
    clippy::disallowed_types,
    clippy::print_stdout,
    reason = "the test starts processes and reads /proc; the crate may not"
)]

use std::env;
use std::fs;
use std::process::Command;

use parser::{MAX_BYTES, dump::dump, parse, word};

const CASE: &str = "PARSER_MEMORY_CASE";

/// Name, and how many times its text's size a case may take, the text itself included.
const CASES: [(&str, usize); 9] = [
    ("dockerfile of 100 MiB", 2),
    ("line of 1 GiB", 2),
    ("longest line", 8),
    ("longest comment", 8),
    ("longest heredoc", 8),
    ("most continuations", 40),
    ("most words", 40),
    ("deepest substitution", 8),
    ("deepest array", 8),
];

fn text(case: &str) -> String {
    // The full size takes a debug build half a minute.
    let size = if is_nightly() { MAX_BYTES } else { MAX_BYTES / 8 };
    let filled = |head: &str, unit: &str, tail: &str| {
        let room = size - head.len() - tail.len();
        format!("{head}{}{tail}", unit.repeat(room / unit.len()))
    };
    match case {
        "dockerfile of 100 MiB" => "RUN a\n".repeat((100 << 20) / 6),
        "line of 1 GiB" => "x".repeat(1 << 30),
        "longest line" => filled("FROM a\nRUN ", "x", "\n"),
        "longest comment" => filled("FROM a\n", "# x\n", "ARG a\n"),
        "longest heredoc" => filled("FROM a\nRUN <<E\n", "\tx\n", "E\n"),
        "most continuations" => filled("FROM a\nRUN ", "x\\\n", "y\n"),
        "most words" => format!("FROM a\nENV {}\n", "a=b ".repeat(490_000)),
        "deepest substitution" => format!("FROM a\nENV a={}\n", "${a:-".repeat(100_000)),
        "deepest array" => filled("FROM a\nRUN ", "[", "\n"),
        other => panic!("no case {other}"),
    }
}

fn is_nightly() -> bool {
    env::var_os("LAYERWRIGHT_NIGHTLY").is_some()
}

#[test]
fn memory_is_bounded_by_the_input() {
    if let Ok(case) = env::var(CASE) {
        return run(&case);
    }
    for (case, factor) in CASES {
        if case == "line of 1 GiB" && !is_nightly() {
            eprintln!("SKIPPED: {case}: it is for the nightly run");
            continue;
        }
        let child = Command::new(env::current_exe().expect("a test knows its program"))
            .args(["--exact", "memory_is_bounded_by_the_input", "--nocapture"])
            .env(CASE, case)
            .output()
            .expect("the test can start itself");
        let output = String::from_utf8_lossy(&child.stdout);
        assert!(child.status.success(), "{case}: {output}\n{}", String::from_utf8_lossy(&child.stderr));
        let figure = |name: &str| -> usize {
            let line = output.lines().find_map(|line| line.split_once(name)).expect("the child has reported");
            line.1.trim().parse().expect("a number")
        };
        let (size, peak) = (figure("text bytes:"), figure("peak bytes:"));
        let allowed = factor * size + (32 << 20);
        assert!(peak <= allowed, "{case}: {peak} bytes at most for a text of {size}, allowed are {allowed}");
    }
}

/// In the child: does everything with the text, and says what it took.
fn run(case: &str) {
    let text = text(case);
    let refused = parse(&text).dockerfile.is_none();
    assert_eq!(refused, text.len() > MAX_BYTES, "{case}");
    assert_eq!(dump(&text).is_err(), text.len() > MAX_BYTES, "{case}");
    if case == "deepest substitution" {
        assert!(word::expand(&text, '\\', &|_| None).is_err());
    }
    let status = fs::read_to_string("/proc/self/status").expect("this is Linux");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak is reported");
    let kibibytes: usize = peak.trim().trim_end_matches(" kB").parse().expect("a number");
    println!("\ntext bytes: {}\npeak bytes: {}", text.len(), kibibytes << 10);
}
