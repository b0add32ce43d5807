//! Two programs that show what inference costs in flash: one that runs a base with an adapter and nothing else, and the same
//! without it. The difference is the code of the checks, the engine with every operator, the kernels and the self-test.

use rankpatch_runtime::{Adapter, Base, Engine};

use crate::{Board, Link, Parts, Slots};

/// Most bytes of RAM that running a base takes besides the arena, wherever a program keeps the engine. There are no statics.
#[cfg(target_pointer_width = "32")]
const ENGINE_BYTES: usize = 464;
#[cfg(target_pointer_width = "32")]
const _: () = assert!(size_of::<Engine<'static>>() <= ENGINE_BYTES);

/// Runs the base with the adapter that lies at the start of the partition, streamed: on each byte as a token, or as a feature
/// repeated over a row.
pub fn infer<B: Board>(parts: Parts<B>) -> ! {
    let Parts { mut link, slots, base, arena, .. } = parts;
    let mut engine = Base::new(base).ok().and_then(|base| Engine::new(base, arena, usize::MAX).ok());
    if let Some(engine) = &mut engine
        && let Ok(adapter) = Adapter::new(slots.bytes(), engine.base())
        && engine.attach(adapter).is_ok()
        && engine.self_test().is_err()
    {
        engine.detach();
    }
    loop {
        let mut byte = [0];
        if link.read(&mut byte) == 0 {
            continue;
        }
        let Some(engine) = &mut engine else {
            link.write(&byte);
            continue;
        };
        let [value] = byte;
        let output = match engine.run_tokens(&[u16::from(value)]) {
            Ok(output) => output,
            Err(_) => engine.run_features(&[f32::from(value); 40]).unwrap_or(&[]),
        };
        link.write(bytemuck::cast_slice(output));
    }
}

/// Echoes what comes over the link.
pub fn idle<B: Board>(parts: Parts<B>) -> ! {
    let Parts { mut link, .. } = parts;
    loop {
        let mut byte = [0];
        if link.read(&mut byte) > 0 {
            link.write(&byte);
        }
    }
}
