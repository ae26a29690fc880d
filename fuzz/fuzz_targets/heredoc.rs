//! Heredocs of RUN and COPY.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    parser::fuzz::heredoc(bytes);
});
