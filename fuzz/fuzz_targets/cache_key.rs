//! A file with a key.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    exporter::cache::fuzz::key(bytes);
});
