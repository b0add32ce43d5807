//! Asks the base, then the base with each adapter, then the base again: the same answer bit for bit, because attaching
//! writes nothing.
#![no_std]
#![no_main]

use cortex_m_semihosting::hprintln;
use rankpatch_format::digest::Digest;
use rankpatch_runtime::math::argmax;
use rankpatch_runtime::{Adapter, Base, Engine};

use {{crate}}::{Aligned, assets, board};

/// {{input}}, f32 little-endian.
static INPUT: &Aligned<[u8]> = &Aligned(*include_bytes!("../assets/input.f32"));

#[cortex_m_rt::entry]
fn main() -> ! {
    let base = Base::new(assets::base()).expect("a base image");
    let mut engine = Engine::new(base, board::arena(), usize::MAX).expect("an arena for the base");
    answer(&mut engine, "the base");
    for file in assets::adapters() {
        let adapter = Adapter::new(file, &base).expect("an adapter for the base");
        engine.attach(adapter).expect("room for its rank and its head");
        engine.self_test().expect("the digest that its trainer saw");
        answer(&mut engine, adapter.body().task);
        engine.detach();
    }
    answer(&mut engine, "the base");
    board::exit()
}

/// The label of the greatest output: of the adapter's task head, or of the base.
fn answer(engine: &mut Engine<'_>, who: &str) {
    engine.run_features(bytemuck::cast_slice(&INPUT.0)).expect("rows within the context");
    let (best, digest) = (argmax(engine.output()), Digest::of(engine.output()));
    let head = engine.adapter().and_then(Adapter::head);
    let label = match head {
        Some(head) => head.labels().nth(best),
        None => engine.base().labels().nth(best),
    };
    hprintln!("{}: output {} -> {} ({:016x})", who, best, label.unwrap_or("no label"), digest);
    engine.reset();
}
