//! Fuzz targets: functions of arbitrary bytes that panic if a promise is broken. `fuzz/` calls them from libFuzzer; the
//! ordinary tests call them with every file of the stored corpus.
//!
//! A checksum would stop nearly every mutation at the door. So each target reads its bytes as they are, and then once
//! more with length and checksum made right.

mod adapter;
mod base;
#[cfg(feature = "bundle")]
mod bundle;
mod frames;
mod nor;
mod receiver;
mod slots;

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
pub const TARGETS: &[Target] = &[
    adapter::TARGET,
    base::TARGET,
    #[cfg(feature = "bundle")]
    bundle::TARGET,
    frames::TARGET,
    receiver::TARGET,
    slots::TARGET,
];

/// Runs the target with this name.
///
/// # Panics
/// If there is none, or if it breaks.
pub fn run(name: &str, data: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name);
    (target.unwrap_or_else(|| panic!("expected a fuzz target, found {name}")).run)(data);
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use rankpatch_format::digest::XorShift32;

    use super::*;

    /// Mutations of each seed in the ordinary tests.
    const MUTATIONS: u32 = 1500;

    #[test]
    fn every_file_of_the_stored_corpus_is_survived() {
        for target in TARGETS {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target.name);
            let mut files = 0;
            for entry in std::fs::read_dir(&folder).expect("the target's corpus") {
                let path = entry.expect("a file").path();
                let bytes = std::fs::read(&path).expect("a readable file");
                let survived = std::panic::catch_unwind(|| (target.run)(&bytes)).is_ok();
                assert!(survived, "{} breaks on {}", target.name, path.display());
                files += 1;
            }
            assert!(files >= 10, "{}: expected a corpus, found {files} files", target.name);
        }
    }

    #[test]
    fn seeds_with_a_few_bytes_changed_are_survived() {
        for target in TARGETS {
            for (name, seed) in (target.seeds)() {
                (target.run)(&seed);
                let mut random = XorShift32::new(seed.len() as u32);
                for _ in 0..MUTATIONS {
                    let mut bytes = seed.clone();
                    for _ in 0..=random.next_u32() % 4 {
                        let at = random.next_u32() as usize % bytes.len();
                        bytes[at] = match random.next_u32() % 4 {
                            0 => bytes[at] ^ 1 << (random.next_u32() % 8),
                            1 => [0, 0x7F, 0x80, 0xFF][random.next_u32() as usize % 4],
                            _ => random.next_u32() as u8,
                        };
                    }
                    if random.next_u32().is_multiple_of(8) {
                        bytes.truncate(random.next_u32() as usize % bytes.len());
                    }
                    let survived = std::panic::catch_unwind(|| (target.run)(&bytes)).is_ok();
                    assert!(survived, "{} breaks on a change of {name}: {bytes:02x?}", target.name);
                }
            }
        }
    }

    /// The targets can fail: an assertion that does not hold is a finding.
    #[test]
    fn a_target_that_does_not_exist_is_no_success() {
        assert!(std::panic::catch_unwind(|| run("nonesuch", &[])).is_err());
    }
}
