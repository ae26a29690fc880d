//! Expansion of words.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    parser::fuzz::expansion(bytes);
});
