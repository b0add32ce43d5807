//! Turns `[package.metadata.board]` into the linker's `memory.x` and into `layout.rs`, so that addresses are written once.

use std::fmt::Write as _;
use std::path::PathBuf;

const STACK_AND_ARENA: &str = "
/* A stack of its own below the data: an overflow leaves RAM and faults instead of overwriting statics. */
_stack_start = ORIGIN(STACK) + LENGTH(STACK);
_stack_end = ORIGIN(STACK);

SECTIONS
{
  /* Not loaded and not cleared: arenas are scratch memory. */
  .psram (NOLOAD) : ALIGN(16)
  {
    *(.psram .psram.*);
  } > PSRAM
} INSERT AFTER .uninit;
";

fn main() {
    // The path as the other MPS board, which uses this script as well, sees it.
    println!("cargo:rerun-if-changed=../qemu-mps2-an386/build.rs");
    println!("cargo:rerun-if-changed=Cargo.toml");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("none") {
        return;
    }
    // Lines for another division of the flash than the manifest's; the first that names a memory counts.
    println!("cargo:rerun-if-env-changed=RANKPATCH_DIVISION");
    let division = std::env::var("RANKPATCH_DIVISION").unwrap_or_default();
    let manifest = std::fs::read_to_string("Cargo.toml").expect("Cargo.toml of the board package");
    let manifest = division + &manifest;
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    std::fs::write(out.join("memory.x"), memory_x(&manifest)).expect("OUT_DIR is writable");
    // Handlers of interrupts by name: none, `vectors.rs` has them all.
    std::fs::write(out.join("device.x"), "").expect("OUT_DIR is writable");
    std::fs::write(out.join("layout.rs"), layout_rs(&manifest)).expect("OUT_DIR is writable");

    println!("cargo:rustc-link-search={}", out.display());
    // Page-aligned segments would only pad the image: nothing here has an MMU.
    println!("cargo:rustc-link-arg-bins=--nmagic");
    // Functions of the same instructions are one: nothing here compares their addresses.
    println!("cargo:rustc-link-arg-bins=--icf=all");
    println!("cargo:rustc-link-arg-bins=-Tlink.x");
    println!("cargo:rustc-link-arg-bins=-Tdefmt.x");
}

/// The `MEMORY` command with one region per memory that the linker fills.
fn memory_x(manifest: &str) -> String {
    let mut text = String::from("MEMORY\n{\n");
    for name in ["flash", "stack", "ram", "psram"] {
        let region = inline_table(manifest, name);
        let (origin, length) = (value(&region, "origin"), value(&region, "length"));
        let _ = writeln!(text, "  {} : ORIGIN = {origin:#x}, LENGTH = {length:#x}", name.to_uppercase());
    }
    text + "}\n" + STACK_AND_ARENA
}

/// `NAME_KEY` constants for what the linker does not place.
fn layout_rs(manifest: &str) -> String {
    let mut text = String::new();
    for name in ["base", "slots", "psram"] {
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
