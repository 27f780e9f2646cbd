//! libFuzzer runs the check of that name.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| storage_fence_fuzz::checks::uevent::check(data));
