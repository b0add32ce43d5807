//! Adapter files: refused with an error, or applied and run without a panic, streamed and merged.

use std::sync::OnceLock;

use rankpatch_format::adapter::{Adapter, MAX_TASK_BYTES, Preview};
use rankpatch_format::base::Base;
use rankpatch_format::fixture::{self, Aligned};
use rankpatch_format::header::{self, Header};
use rankpatch_format::layout::Layout;
use rankpatch_format::{KeyId, ProductId};
use rankpatch_runtime::{Engine, MergedType, arena_bytes, merged_bytes};

use super::Target;

pub(super) const TARGET: Target = Target { name: "adapter", run, seeds };

/// The base that the files are for.
fn base() -> Base<'static> {
    static IMAGE: OnceLock<Aligned> = OnceLock::new();
    static BASE: OnceLock<Base<'static>> = OnceLock::new();
    let image = IMAGE.get_or_init(|| {
        Aligned::new(&fixture::decoder().write(Layout::RowMajor, 2).expect("a valid network"))
    });
    *BASE.get_or_init(|| Base::new(image.bytes()).expect("a valid image"))
}

fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let network = fixture::decoder();
    let file = |sites: &[(u16, usize)], head| {
        fixture::adapter(&network, sites, head, 0.1, 5).write().expect("a valid adapter")
    };
    let mut with_biases = fixture::adapter(&network, &[(2, 2)], Some(3), 0.1, 6);
    with_biases.biases = fixture::biases(&network, 7);
    let with_biases = with_biases.write().expect("a valid adapter");
    vec![
        ("plain", file(&[(0, 2), (3, 1)], None)),
        ("head", file(&[(1, 3)], Some(4))),
        ("biases", with_biases),
    ]
}

fn run(data: &[u8]) {
    let base = base();
    check(data, &base);
    // The same bytes with a header that lets the rest be read.
    let mut file = data.to_vec();
    let found = Header::new(data);
    let header = Header {
        file_bytes: data.len() as u32,
        sequence: 7,
        step_limit: found.map_or(1, |header| header.step_limit),
        key_id: found.map_or(KeyId::UNSIGNED, |header| header.key_id),
        base_id: base.id(),
        product: found.map_or(ProductId::NONE, |header| header.product),
    };
    if header::set_header(&mut file, &header).is_ok() {
        check(&file, &base);
    }
}

fn check(file: &[u8], base: &Base<'_>) {
    let aligned = Aligned::new(file);
    let file = aligned.bytes();
    let preview = Preview::new(file);
    let Ok(adapter) = Adapter::new(file, base) else { return };
    let preview = preview.expect("an adapter that can be read whole can be previewed");
    assert!(preview.body.task.len() <= MAX_TASK_BYTES);
    let values: usize = adapter.patches(base).map(|patch| patch.lora_a.len() + patch.lora_b.len()).sum();
    let biases: usize = adapter.biases().iter().map(|(_, values)| 4 * values.len()).sum();
    assert!(values + biases <= file.len());
    assert!(adapter.n_patches() > 0 || adapter.head().is_some() || biases > 0);
    run_engine(&adapter, base);
}

/// Both ways of applying it, the run, and the way back to the plain base's bits.
fn run_engine(adapter: &Adapter<'_>, base: &Base<'_>) {
    let head = adapter.head().map_or(0, |head| head.n_out);
    let mut arena = vec![0_u128; (arena_bytes(base, 4) + 4 * head).div_ceil(16) + 1];
    let mut merged = vec![0_u128; merged_bytes(base, adapter, MergedType::Int16).div_ceil(16) + 1];
    let mut engine =
        Engine::new(*base, bytemuck::cast_slice_mut(&mut arena), 4).expect("an arena of its size");
    let tokens = [1u16, 4, 5];
    let plain = bits(engine.run_tokens(&tokens).expect("three tokens"));
    engine.attach(*adapter).expect("room for its outputs");
    let streamed = bits(engine.run_tokens(&tokens).expect("three tokens"));
    engine.reset();
    assert_eq!(streamed, bits(engine.run_tokens(&tokens).expect("three tokens")), "a run is not repeatable");
    engine.detach();
    let memory = bytemuck::cast_slice_mut(&mut merged);
    if engine.attach_merged(*adapter, MergedType::Int16, memory).is_ok() {
        engine.run_tokens(&tokens).expect("three tokens");
        engine.detach();
    }
    engine.reset();
    assert_eq!(plain, bits(engine.run_tokens(&tokens).expect("three tokens")), "the plain base is not back");
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}
