//! For the build scripts of board packages: reads `[package.metadata.board]` of the package being built, so that addresses
//! are written once.

use std::fmt::Write as _;
use std::path::PathBuf;

/// Whether the package is built for a device; a host build needs none of this.
pub(crate) fn is_device() -> bool {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=../build/layout.rs");
    println!("cargo:rerun-if-changed=Cargo.toml");
    std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none")
}

/// The manifest of the package.
pub(crate) fn manifest() -> String {
    std::fs::read_to_string("Cargo.toml").expect("Cargo.toml of the board package")
}

/// Writes a file that the compiler or the linker reads, where both look for it.
pub(crate) fn write(name: &str, text: &str) {
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    std::fs::write(out.join(name), text).expect("OUT_DIR is writable");
    println!("cargo:rustc-link-search={}", out.display());
}

/// The `MEMORY` command with one region per memory that the linker fills.
pub(crate) fn memory_x(manifest: &str, regions: &[&str]) -> String {
    let mut text = String::from("MEMORY\n{\n");
    for name in regions {
        let region = inline_table(manifest, name);
        let (origin, length) = (value(&region, "origin"), value(&region, "length"));
        let _ = writeln!(text, "  {} : ORIGIN = {origin:#x}, LENGTH = {length:#x}", name.to_uppercase());
    }
    text + "}\n"
}

/// `NAME_KEY` constants for what the linker does not place.
pub(crate) fn layout_rs(manifest: &str, tables: &[&str]) -> String {
    let mut text = String::new();
    for name in tables {
        for (key, number) in inline_table(manifest, name) {
            let constant = format!("{name}_{key}").to_uppercase();
            let _ = writeln!(text, "pub(crate) const {constant}: usize = {number:#x};");
        }
    }
    text
}

/// Reads a line `name = { key = 0x1234, .. }`. A TOML parser would be the first dependency that firmware builds wait for.
fn inline_table(manifest: &str, name: &str) -> Vec<(String, u64)> {
    let start = format!("{name} = {{");
    let body = manifest
        .lines()
        .find_map(|line| line.strip_prefix(&start)?.trim_end().strip_suffix('}'))
        .unwrap_or_else(|| panic!("expected a line `{start} .. }}` in Cargo.toml, found none"));
    body.split(',')
        .map(|pair| {
            let (key, number) =
                pair.split_once('=').unwrap_or_else(|| panic!("expected key = number, found {pair}"));
            let digits = number.trim().replace('_', "");
            let digits = digits.strip_prefix("0x").unwrap_or_else(|| panic!("expected 0x.., found {number}"));
            (key.trim().to_owned(), u64::from_str_radix(digits, 16).expect("a hexadecimal number"))
        })
        .collect()
}

fn value(table: &[(String, u64)], key: &str) -> u64 {
    table
        .iter()
        .find(|entry| entry.0 == key)
        .unwrap_or_else(|| panic!("expected the key {key}, found none"))
        .1
}
