//! Integration tests of Rankpatch; the tests are in `tests/`. Here is what they share with the fuzzer in `fuzz/`.

pub mod fuzz;
