#![no_main]

libfuzzer_sys::fuzz_target!(init: chancery_fuzz_libfuzzer::limit(), |data: &[u8]| chancery_fuzz::mls::message(data));
