//! Steps that see the machine's own `/proc`: what they can and cannot do with it.

use std::process::Command;

use executor::sandbox::Processes;
use rustix::process::{Pid, test_kill_process};

use crate::{Test, fixture::Fixture};

pub const TESTS: &[Test] = &[
    ("outer_proc_is_whole_for_oneself", oneself),
    ("outer_proc_cannot_be_written", unwritable),
    ("outer_proc_hides_what_is_inside_others", others),
    ("outer_proc_is_masked", masked),
    ("others_are_not_signalled", signals),
];

fn oneself(fixture: &Fixture) {
    let command =
        "cat /proc/self/comm; ls /proc/self/fd | tr '\\n' ' '; echo out > /dev/stdout; id -u < /dev/stdin";
    assert_eq!(fixture.output(command), "cat\n0 1 2 3 out\n0\n");
    let own_pid = fixture.output("sh -c 'echo $$'");
    let is_first = own_pid.trim().parse::<u32>().unwrap() < 10;
    assert_eq!(is_first, fixture.footing.processes == Processes::OuterProc, "{own_pid}");
}

fn unwritable(fixture: &Fixture) {
    let command = "for file in self/oom_score_adj self/comm sys/kernel/hostname sysrq-trigger; do \
                   echo 1 2>&- > /proc/$file && echo $file was written; done; echo end";
    let ran = fixture.shell(command).run();
    assert!(ran.text().ends_with("end\n") && !ran.text().contains("was written"), "{ran:?}");
}

/// A canary in the environment of a process of this user outside of the step, and in that of this very process's child.
fn others(fixture: &Fixture) {
    let canary = format!("CANARY-{}", std::process::id());
    let mut outside = Command::new("sleep").arg("1000000").env("SECRET", &canary).spawn().unwrap();
    let pid = outside.id();
    let command = format!(
        "exec 2>/dev/null; test -d /proc/{pid} && echo seen; ls /proc/{pid}/root/ /proc/{pid}/cwd/; cat /proc/{pid}/fd/*; \
         cat /proc/[0-9]*/environ | tr '\\0' '\\n' | grep CANARY; echo end"
    );
    let ran = fixture.shell(&command).run();
    outside.kill().unwrap();
    outside.wait().unwrap();
    assert_eq!(ran.text(), "seen\nend\n");
}

fn masked(fixture: &Fixture) {
    // The first is covered on this machine already, the others the step covers.
    let command = "ls /proc/fs; cat /proc/kallsyms /proc/keys /proc/timer_list; echo end";
    let expected = match fixture.footing.processes {
        Processes::OuterProc => "end\n",
        _ => fixture.output("ls /proc/fs").leak(),
    };
    let told = fixture.output(command);
    assert!(told.ends_with("end\n") && told.starts_with(expected.trim_end_matches("end\n")), "{told}");
}

/// As a user who may signal it: what protects a process outside is its PID namespace or Landlock's scope, and which of
/// them it was is told by the error. What the step has begun is its own.
fn signals(fixture: &Fixture) {
    let expected = match fixture.footing.processes {
        Processes::Shared => "Operation not permitted",
        _ => "No such process",
    };
    let mut outside = Command::new("sleep").arg("1000000").spawn().unwrap();
    let pid = outside.id();
    test_kill_process(Pid::from_child(&outside)).unwrap();
    let command =
        format!("sleep 1000000 & kill -9 $!; wait $!; echo own $?; kill -9 {pid}; kill -9 -1; true");
    let ran = fixture.shell(&command).run();
    assert!(outside.try_wait().unwrap().is_none(), "{ran:?}");
    outside.kill().unwrap();
    outside.wait().unwrap();
    let told = ran.text();
    assert!(told.contains("own 137\n"), "{ran:?}");
    assert!(told.contains(&format!("can't kill pid {pid}: {expected}")), "{ran:?}");
}
