//! Integration tests: the trainer's float executor, the device's code on the host and the firmware in QEMU against each
//! other, on the carried models, data and adapters. One binary, because linking candle takes long.
#![allow(clippy::print_stdout, reason = "the figures that the tests measure, shown with --nocapture")]

mod arenas;
mod carried;
mod everything;
mod new;
mod parity;
mod power_cuts;
mod qemu;
mod qemu_boards;
mod quality;

use std::path::PathBuf;

use rankpatch::base::{Image, quantize};
use rankpatch_format::layout::Layout;

/// A file or folder of the repository.
fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(name)
}

/// The bases that the repository carries.
const BASES: [&str; 2] = ["stories260k", "kwt1"];

/// The tasks, each with its base.
const TASKS: [(&str, &str); 3] = [("names", "stories260k"), ("intent", "stories260k"), ("speaker", "kwt1")];

/// A carried base as the command builds it for a Cortex-M4.
fn image(base: &str, layout: Layout) -> Image {
    image_with(base, layout, 16)
}

/// The same with passes of at most `pass_rows` rows.
fn image_with(base: &str, layout: Layout, pass_rows: u32) -> Image {
    let network = rankpatch::import::load(&path("tests/data/bases").join(base)).expect("a carried model");
    Image::build(&quantize(&network).expect("a finite model"), layout, pass_rows).expect("a valid network")
}

/// A carried adapter, trained by `rankpatch train host-trainer/tasks/TASK.toml`.
fn adapter(task: &str) -> Vec<u8> {
    std::fs::read(path("tests/data/adapters").join(format!("{task}.rpa"))).expect("a carried adapter")
}

/// An adapter file signed with the test key for the product that xtask builds firmware for.
fn signed(file: &[u8], sequence: u32) -> Vec<u8> {
    let key = rankpatch::keys::SecretKey::read(&path(xtask::firmware::SECRET_KEY)).expect("the test key");
    let mut file = file.to_vec();
    let product = rankpatch_format::ProductId::of(xtask::firmware::PRODUCT);
    key.sign(&mut file, product, sequence, rankpatch_format::header::MAX_STEP_LIMIT)
        .expect("an adapter file");
    file
}

/// The carried clips of KWT-1, features `[98, 40]` each, and the class that the original network gives each of them.
fn golden_clips() -> (Vec<Vec<f32>>, Vec<usize>) {
    let bytes = std::fs::read(path("tests/data/kwt1-golden/clips.safetensors")).expect("carried clips");
    let file = safetensors::SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let rows = |name: &str, width: usize| -> Vec<Vec<f32>> {
        let data = file.tensor(name).expect("a tensor of the file").data();
        let values: Vec<f32> =
            data.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        values.chunks_exact(width).map(<[f32]>::to_vec).collect()
    };
    let classes = rows("logits", 12).iter().map(|row| rankpatch_runtime::math::argmax(row)).collect();
    (rows("features", 98 * 40), classes)
}
