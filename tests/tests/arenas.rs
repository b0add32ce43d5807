//! The bytes of RAM that each carried base needs: a change is meant, or it is a fault.

use rankpatch_format::layout::Layout;
use rankpatch_runtime::{ArenaLayout, arena_bytes, arena_layout};

use crate::image;

/// Base, context, and bytes: values, codes, kernels, attention, keys and values, samples, head.
const ARENAS: [(&str, usize, [usize; 7]); 5] = [
    ("stories260k", 512, [36864, 2816, 5424, 3232, 327_728, 0, 512]),
    ("stories260k", 128, [36864, 2816, 5424, 928, 81968, 0, 512]),
    ("kwt1", 98, [152_064, 25744, 3712, 992, 0, 960, 512]),
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
