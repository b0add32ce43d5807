//! Writes the linker's memory map of the machine that a feature chooses, and the codes that stand for weights.

use std::fmt::Write as _;
use std::path::PathBuf;

/// Origin and length of the memory for code, and of that for data.
struct Memory {
    flash: (u32, u32),
    ram: (u32, u32),
}

const KIB: u32 = 1024;

fn memory(feature: &str) -> Memory {
    let (flash, ram) = match feature {
        "m0" => ((0, 256 * KIB), (0x2000_0000, 16 * KIB)),
        "m3" => ((0, 256 * KIB), (0x2000_0000, 64 * KIB)),
        "m4" | "m7" => ((0, 4096 * KIB), (0x2000_0000, 4096 * KIB)),
        // The secure aliases: the core starts in the secure state.
        "m33" => ((0x1000_0000, 4096 * KIB), (0x3800_0000, 2048 * KIB)),
        "m55" => ((0x1000_0000, 512 * KIB), (0x3000_0000, 512 * KIB)),
        "rv32" => ((0x8000_0000, 4096 * KIB), (0x8040_0000, 4096 * KIB)),
        _ => panic!("expected a machine, found the feature {feature}"),
    };
    Memory { flash, ram }
}

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=riscv.x");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("none") {
        return;
    }
    let features = std::env::var("CARGO_CFG_FEATURE").unwrap_or_default();
    assert!(
        !features.is_empty() && !features.contains(','),
        "expected one feature that names a machine, found `{features}`"
    );
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let Memory { flash, ram } = memory(&features);
    let mut text = String::from("MEMORY\n{\n");
    for (name, (origin, length)) in [("FLASH", flash), ("RAM", ram)] {
        let _ = writeln!(text, "  {name} : ORIGIN = {origin:#x}, LENGTH = {length:#x}");
    }
    text += "}\n";
    std::fs::write(out.join("memory.x"), text).expect("OUT_DIR is writable");
    std::fs::write(out.join("weights.bin"), weights()).expect("OUT_DIR is writable");
    println!("cargo:rustc-link-search={}", out.display());
    println!("cargo:rustc-link-arg-bins=--nmagic");
    if features == "rv32" {
        std::fs::copy("riscv.x", out.join("riscv.x")).expect("OUT_DIR is writable");
        println!("cargo:rustc-link-arg-bins=-Triscv.x");
    } else {
        println!("cargo:rustc-link-arg-bins=-Tlink.x");
    }
}

/// 256 x 256 codes in -127..=127. No kernel's count depends on them, but tests of the table look at sums.
fn weights() -> Vec<u8> {
    let mut state = 1_u32;
    (0..256 * 256)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            ((state >> 24) as u8 as i8).max(-127) as u8
        })
        .collect()
}
