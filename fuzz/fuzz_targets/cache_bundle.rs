//! A bundle of a remote cache.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    exporter::cache::fuzz::bundle(bytes);
});
