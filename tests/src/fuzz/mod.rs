//! Fuzz targets: functions of arbitrary bytes that panic if a promise is broken. `fuzz/` calls them from libFuzzer; the
//! ordinary tests call them with every file of the stored corpus.
//!
//! A checksum would stop nearly every mutation at the door. So each target reads its bytes as they are, and then once
//! more with length and checksum made right.

mod adapter;
mod base;
mod frames;

/// A target.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name, also that of its folder in `fuzz/corpus`.
    pub name: &'static str,
    /// Takes any bytes and returns, or panics because a promise is broken.
    pub run: fn(&[u8]),
    /// A few valid inputs to start from, by name.
    pub seeds: fn() -> Vec<(&'static str, Vec<u8>)>,
}

/// Every target.
pub const TARGETS: &[Target] = &[adapter::TARGET, base::TARGET, frames::TARGET];

/// Runs the target with this name.
///
/// # Panics
/// If there is none, or if it breaks.
pub fn run(name: &str, data: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name);
    (target.unwrap_or_else(|| panic!("expected a fuzz target, found {name}")).run)(data);
}
