//! Ignore files and paths.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    parser::fuzz::ignore_file(bytes);
});
