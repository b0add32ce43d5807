//! Base and adapters, built into the program and read where they lie in flash.

use crate::Aligned;

static BASE: &Aligned<[u8]> = &Aligned(*include_bytes!("../assets/base.rpb"));

/// The image of {{base}}.
pub fn base() -> &'static [u8] {
    &BASE.0
}

/// The adapter files.
pub fn adapters() -> impl Iterator<Item = &'static [u8]> {
    static FILES: [&Aligned<[u8]>; {{n_adapters}}] = [
        // One line for each file.
{{adapters}}    ];
    FILES.iter().map(|file| &file.0)
}
