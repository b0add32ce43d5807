//! Writes the linker's memory map of the machine that a feature chooses, the codes that stand for weights, and a front end with the
//! host's digest of what it computes.

use std::fmt::Write as _;
use std::path::PathBuf;

use rankpatch_format::front_end::FrontEnd;
use rankpatch_kernels::front_end::{scratch_len, signals_digest};

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
    front_end(&out);
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

/// The front end of a Keyword Transformer: frames of 480 samples, 80 triangular bands from 20 to 7600 Hz of 16 kHz, 40 coefficients.
/// `front_end.bin` holds window, bands, weights and cosines one after the other, `front_end.rs` their lengths and the digest.
fn front_end(out: &std::path::Path) {
    use std::f64::consts::{PI, TAU};
    const BANDS: usize = 80;
    let window: Vec<f32> =
        (0..480).map(|n| ((0.5 - 0.5 * (TAU * f64::from(n) / 480.0).cos()) / 32_768.0) as f32).collect();
    let mel = |hz: f64| 1127.0 * (1.0 + hz / 700.0).ln();
    let (lowest, highest) = (mel(20.0), mel(7600.0));
    let edge = |i: usize| lowest + (highest - lowest) * i as f64 / (BANDS + 1) as f64;
    let (mut bands, mut weights) = (Vec::new(), Vec::new());
    for band in 0..BANDS {
        let (left, centre, right) = (edge(band), edge(band + 1), edge(band + 2));
        let height = |bin: usize| {
            let at = mel(bin as f64 * 31.25);
            ((at - left) / (centre - left)).min((right - at) / (right - centre))
        };
        let bins: Vec<usize> = (1..244).filter(|bin| height(*bin) > 0.0).collect();
        bands.push([bins.first().map_or(0.0, |first| *first as f32), bins.len() as f32]);
        weights.extend(bins.iter().map(|bin| height(*bin) as f32));
    }
    let cosine = |k: usize, n: usize| {
        ((2.0 / BANDS as f64).sqrt() * (PI * (n as f64 + 0.5) * k as f64 / BANDS as f64).cos()) as f32
    };
    let dct: Vec<f32> = (0..40).flat_map(|k| (0..BANDS / 2).map(move |n| cosine(k, n))).collect();
    let tables = FrontEnd {
        sample_rate: 16_000,
        frame: 480,
        hop: 160,
        floor: 1e-12,
        window: &window,
        bands: &bands,
        mel: &weights,
        dct: &dct,
    };
    let mut scratch = vec![0.0; scratch_len(BANDS)];
    let digest = signals_digest(&tables, &mut [0; 480], &mut scratch, &mut [0.0; 40]);
    let numbers = window.iter().chain(bands.as_flattened()).chain(&weights).chain(&dct);
    let bytes: Vec<u8> = numbers.flat_map(|number| number.to_le_bytes()).collect();
    std::fs::write(out.join("front_end.bin"), &bytes).expect("OUT_DIR is writable");
    let text = format!(
        "const FRONT_END_BYTES: usize = {};\nconst MEL_WEIGHTS: usize = {};\nconst DIGEST: u64 = u64::from_le_bytes({:?});\n",
        bytes.len(),
        weights.len(),
        digest.to_le_bytes()
    );
    std::fs::write(out.join("front_end.rs"), text).expect("OUT_DIR is writable");
}
