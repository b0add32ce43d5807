//! The audio front end on this core: the bits of the host, and what a frame costs.

use core::hint::black_box;

use rankpatch_format::front_end::FrontEnd;
use rankpatch_runtime::kernels::front_end::{frame, scratch_len, signals_digest};

include!(concat!(env!("OUT_DIR"), "/front_end.rs"));

const FRAME: usize = 480;
const BANDS: usize = 80;
const WIDTH: usize = 40;

#[repr(align(16))]
struct Tables([u8; FRONT_END_BYTES]);
static TABLES: Tables = Tables(*include_bytes!(concat!(env!("OUT_DIR"), "/front_end.bin")));

/// Memory of one frame.
struct Buffers {
    samples: [i16; FRAME],
    scratch: [f32; scratch_len(BANDS)],
    y: [f32; WIDTH],
}

impl Buffers {
    const fn new() -> Self {
        Self { samples: [0; FRAME], scratch: [0.0; scratch_len(BANDS)], y: [0.0; WIDTH] }
    }
}

fn front_end() -> FrontEnd<'static> {
    let Tables(bytes) = black_box(&TABLES);
    let numbers: &[f32] = bytemuck::cast_slice(bytes);
    let (window, rest) = numbers.split_at(FRAME);
    let (bands, rest) = rest.split_at(2 * BANDS);
    let (mel, dct) = rest.split_at(MEL_WEIGHTS);
    let bands = bands.as_chunks().0;
    FrontEnd { sample_rate: 16_000, frame: FRAME, hop: 160, floor: 1e-12, window, bands, mel, dct }
}

/// Whether this core computes what the host computed when this program was built.
#[inline(never)]
pub(crate) fn agrees() -> bool {
    let Buffers { samples, scratch, y } = &mut Buffers::new();
    signals_digest(&front_end(), samples, scratch, y) == DIGEST
}

/// Instructions of a frame of noise, as `count` counts them.
#[inline(never)]
pub(crate) fn frame_instructions(count: fn(&mut dyn FnMut()) -> u32) -> u32 {
    let Buffers { samples, scratch, y } = &mut Buffers::new();
    for (index, sample) in samples.iter_mut().enumerate() {
        *sample = (index * index * 7919) as i16;
    }
    let front_end = black_box(front_end());
    let (samples, scratch, y) = black_box((&*samples, &mut scratch[..], &mut y[..]));
    count(&mut || frame(&front_end, samples, scratch, y))
}
