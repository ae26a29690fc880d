//! The corpora of the fuzz targets, each input once: what was found stays mended.
#![allow(clippy::disallowed_methods, reason = "the test itself reads the corpora; the crate may not")]

use std::path::Path;

use parser::fuzz::TARGETS;

#[test]
fn the_corpora_break_no_promise() {
    for (target, harness) in TARGETS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/fuzz").join(target);
        let mut count = 0;
        for entry in std::fs::read_dir(&folder).expect("every target has a corpus") {
            let path = entry.expect("the folder can be read").path();
            harness(&std::fs::read(&path).expect("an input can be read"));
            count += 1;
        }
        assert!(count >= 20, "only {count} inputs in {}", folder.display());
    }
}
