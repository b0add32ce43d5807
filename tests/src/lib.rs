//! Integration tests of Rankpatch; the tests are in `tests/`.
