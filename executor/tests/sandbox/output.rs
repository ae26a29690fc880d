//! How a step ends and what is heard of it.

use std::sync::atomic::{AtomicUsize, Ordering};

use executor::sandbox::{Exit, Processes, Rung};
use solver::Stream;

use crate::{Test, fixture::Fixture, inside};

pub const TESTS: &[Test] = &[
    ("exits", exits),
    ("not_executed", not_executed),
    ("streams", streams),
    ("long_line", long_line),
    ("many_lines", many_lines),
    ("closed_early", closed_early),
    ("slow_reader", slow_reader),
    ("many_at_once", many_at_once),
];

fn exits(fixture: &Fixture) {
    let cases = [
        ("exit 0", Exit::Code(0)),
        ("exit 7", Exit::Code(7)),
        ("exit 255", Exit::Code(255)),
        ("kill -9 $$", Exit::Signal(9)),
        ("kill -15 $$", Exit::Signal(15)),
    ];
    for (command, expected) in cases {
        assert_eq!(fixture.shell(command).run().exit.unwrap(), expected, "{command}");
    }
}

fn not_executed(fixture: &Fixture) {
    let prepare = "echo '#!/nothing' > /tmp/interpreter; echo x > /tmp/text; echo x > /tmp/plain; chmod 755 /tmp/interpreter /tmp/text";
    let cases = [
        (vec!["foo"], 127, "exec: \"foo\": not found in PATH"),
        (vec!["/foo"], 127, "exec: \"/foo\": no such file"),
        (vec!["/tmp/foo"], 127, "exec: \"/tmp/foo\": no such file"),
        (vec!["/bin"], 126, "exec: \"/bin\": Permission denied"),
    ];
    for (args, expected_code, expected) in cases {
        let Exit::NotExecuted { code, message } = fixture.step(&args).run().exit.unwrap() else {
            panic!("{args:?} was executed");
        };
        assert_eq!(code, expected_code, "{message}");
        assert!(message.starts_with(expected), "{message}");
    }
    let made = fixture.shell(prepare);
    made.run().success();
    for (command, expected_code, expected) in [
        ("/tmp/interpreter", 126, "the interpreter or dynamic loader it names does not exist"),
        ("/tmp/text", 126, "not a program"),
        ("/tmp/plain", 126, "Permission denied"),
    ] {
        let mut step = fixture.step(&[command]);
        step.lowers.insert(0, made.upper());
        let Exit::NotExecuted { code, message } = step.run().exit.unwrap() else {
            panic!("{command} was executed")
        };
        assert_eq!(code, expected_code, "{message}");
        assert!(message.contains(expected), "{message}");
    }
}

fn streams(fixture: &Fixture) {
    let ran = fixture.shell("echo out; echo err >&2; cat; printf unfinished").run();
    let of = |stream: Stream| -> Vec<&str> {
        ran.lines.iter().filter(|(of, _)| *of == stream).map(|(_, line)| line.as_str()).collect()
    };
    assert_eq!(of(Stream::Stdout), ["out", "unfinished"]);
    assert_eq!(of(Stream::Stderr), ["err"]);
}

fn long_line(fixture: &Fixture) {
    let ran =
        fixture.shell("dd if=/dev/zero bs=1048576 count=1 2>/dev/null | tr '\\0' x; echo; echo next").run();
    let lengths: Vec<usize> = ran.lines.iter().map(|(_, line)| line.len()).collect();
    assert_eq!(lengths, [[64 << 10; 16].as_slice(), &[4]].concat());
}

fn many_lines(fixture: &Fixture) {
    let next = AtomicUsize::new(1);
    let ran = fixture.shell("seq 1 300000").run_watched(&solver::Cancel::default(), &|line| {
        assert_eq!(line, next.fetch_add(1, Ordering::Relaxed).to_string());
    });
    assert_eq!(ran.exit.unwrap(), Exit::Code(0));
    assert_eq!(next.into_inner(), 300_001);
}

fn closed_early(fixture: &Fixture) {
    let ran = fixture.shell("echo first; exec >&- 2>&-; seq 1 100000 | cat > /tmp/x; exit 3").run();
    assert_eq!(ran.exit.as_ref().ok(), Some(&Exit::Code(3)), "{ran:?}");
    assert_eq!(ran.text(), "first\n");
}

/// The command has ended, and all it has said is in the pipe, when its reader takes a rest of longer than any deadline.
fn slow_reader(fixture: &Fixture) {
    if fixture.footing.processes != Processes::Own || fixture.rung == Rung::SingleId {
        return;
    }
    let next = AtomicUsize::new(0);
    let ran = fixture.inside("say-much").run_watched(&solver::Cancel::default(), &|_| {
        if [4, 8].contains(&next.fetch_add(1, Ordering::Relaxed)) {
            std::thread::sleep(std::time::Duration::from_millis(2_100));
        }
    });
    assert_eq!(ran.exit.unwrap(), Exit::Code(0));
    assert_eq!(next.into_inner(), inside::LINES);
}

fn many_at_once(fixture: &Fixture) {
    std::thread::scope(|scope| {
        for number in 0..8 {
            scope.spawn(move || {
                let expected = format!("{number}\n");
                for _ in 0..4 {
                    assert_eq!(fixture.output(&format!("echo {number}")), expected);
                }
            });
        }
    });
}
