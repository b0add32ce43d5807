//! The bytes of RAM that each carried base needs: a change is meant, or it is a fault.

use rankpatch_format::layout::Layout;
use rankpatch_runtime::{ArenaLayout, arena_bytes, arena_layout};

use crate::image;

/// Base, context, and bytes: values, codes, kernels, attention, keys and values, samples, head.
const ARENAS: [(&str, usize, [usize; 7]); 5] = [
    ("stories260k", 512, [36864, 2816, 5424, 3232, 327_728, 0, 512]),
    ("stories260k", 128, [36864, 2816, 5424, 928, 81968, 0, 512]),
    ("kwt1", 98, [152_064, 25744, 5760, 992, 0, 960, 512]),
    ("requests33k", 64, [22528, 1600, 3264, 480, 4112, 0, 384]),
    ("requests33k", 32, [22528, 1600, 3264, 288, 2064, 0, 384]),
];

#[test]
fn arenas_have_exactly_these_sizes() {
    for (model, context, expected) in ARENAS {
        let image = image(model, Layout::Dsp4x4);
        let base = image.base().unwrap();
        let found @ ArenaLayout { values, codes, kernels, scores, kv_cache, samples, head } =
            arena_layout(&base, context);
        assert_eq!(
            [values, codes, kernels, scores, kv_cache, samples, head],
            expected,
            "{model} with {context} rows"
        );
        assert_eq!(arena_bytes(&base, context), found.total());
    }
}

/// What the application takes of the arena beside the engine: outputs of a large head, and rows of features.
#[test]
fn kits_have_room_for_the_bases_that_they_are_made_for() {
    const MORE_OUTPUTS: usize = 4 * (256 - rankpatch_runtime::MIN_HEAD_OUTPUTS);
    let made_for = [("nrf52840-dk", "kwt1", 98, 4 * 98 * 40), ("rp-pico2", "stories260k", 512, 4 * 1024)];
    let kits = xtask::kit::Kit::all().unwrap();
    for (name, model, context, input) in made_for {
        let kit = kits.iter().find(|kit| kit.name == name).unwrap();
        let image = image(model, Layout::Dsp4x4);
        let needed = arena_bytes(&image.base().unwrap(), context) + MORE_OUTPUTS + input;
        println!("{name}: {model} takes {} bytes, and {needed} of the arena", image.bytes().len());
        assert!(image.bytes().len() as u64 <= kit.base.length, "{name}: {} bytes", image.bytes().len());
        assert!(needed as u64 <= kit.arena_bytes, "{name}: {needed} bytes");
    }
}
