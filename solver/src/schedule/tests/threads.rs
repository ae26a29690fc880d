//! A machine that gives no thread at all.

use std::{env, process::Command};

use super::{chain, fake::Memory, fake::World};
use crate::traits::FailureKind;

/// Tells the child that it is one.
const CHILD: &str = "LAYERWRIGHT_TEST_WITHOUT_THREADS";

#[test]
fn a_build_that_gets_no_thread_says_so() {
    if env::var_os(CHILD).is_some() {
        let error = chain(&["random a"]).solve(&World::default(), &Memory::default());
        let failure = error.expect_err("nobody can do anything").failure;
        assert_eq!(failure.kind, FailureKind::Machine);
        assert!(failure.message.starts_with("no further thread can be made"), "{}", failure.message);
        return;
    }
    let child = Command::new(env::current_exe().expect("a test knows its program"))
        .args(["--exact", "schedule::tests::threads::a_build_that_gets_no_thread_says_so", "--nocapture"])
        .env(CHILD, "")
        // No machine has room for such a stack.
        .env("RUST_MIN_STACK", (1_u64 << 50).to_string())
        .output()
        .expect("the test can start itself");
    let said = [child.stdout, child.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(child.status.success() && said.contains("1 passed"), "{said}");
}
