//! A whole Dockerfile.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    parser::fuzz::dockerfile(bytes);
});
