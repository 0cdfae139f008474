//! All programs of this crate: each drives the target of its own name, in the library's `fuzz`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| guardian::fuzz::run(env!("CARGO_BIN_NAME"), data));
