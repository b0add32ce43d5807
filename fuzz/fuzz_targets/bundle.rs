//! libFuzzer around the target `bundle` of `rankpatch_tests::fuzz`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| rankpatch_tests::fuzz::run("bundle", data));
