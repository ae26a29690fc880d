//! The config of an image that is its own cache.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    exporter::cache::fuzz::inline(bytes);
});
