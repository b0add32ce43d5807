//! The sweep and the table of counts: the same code on every core.

use core::hint::black_box;

use rankpatch_runtime::kernels::sweep::{
    SWEEP_BYTES, SWEEP_LONG_BYTES, SWEEP_LONG_WORDS, SWEEP_WORDS, Sweep, sweep,
};
use rankpatch_runtime::kernels::{self, Layout, Packed, PackedPair};

use crate::front_end;
use crate::machine::{exit, instructions_since, miscounted, now, say, start_counter};

/// Codes that stand for weights, in flash as a base is.
const WEIGHTS: usize = 256 * 256;
#[repr(align(16))]
struct Weights([u8; WEIGHTS]);
static WEIGHTS_IN_FLASH: Weights = Weights(*include_bytes!(concat!(env!("OUT_DIR"), "/weights.bin")));

/// The layout that `rankpatch base build --target` chooses for this core.
const BEST: Layout = if cfg!(any(feature = "m4", feature = "m7", feature = "m33")) {
    Layout::Dsp4x4
} else if cfg!(feature = "m55") {
    Layout::Mve4x16
} else {
    Layout::RowMajor
};

/// Out and in features of the matrices.
const SHAPES: [(usize, usize); 5] = [(256, 256), (64, 64), (172, 64), (64, 172), (512, 64)];
const RANKS: [usize; 6] = [1, 2, 3, 4, 8, 16];
const MAX_OUT: usize = 512;
const MAX_IN: usize = 256;
const MAX_RANK: usize = 16;

/// Random numbers for these many sweeps; one with long vectors needs more memory than the smallest core has.
const SEEDS: [u32; 2] = [77, 154];
const LONG_VECTORS: bool = !cfg!(any(feature = "m0", feature = "m3"));

pub(crate) extern "C" fn run() -> ! {
    start_counter();
    let wrong = miscounted();
    say!("counter {wrong} loops counted wrongly");
    let swept = if LONG_VECTORS {
        swept::<SWEEP_LONG_BYTES, SWEEP_LONG_WORDS>()
    } else {
        swept::<SWEEP_BYTES, SWEEP_WORDS>()
    };
    say!("sweep {} cases {} mismatches", swept.cases, swept.mismatches);
    if wrong != 0 || swept.mismatches != 0 || swept.cases == 0 {
        exit(1);
    }
    let agrees = front_end::agrees();
    say!("front end {}", if agrees { "as on the host" } else { "unlike the host" });
    if !agrees {
        exit(1);
    }
    measure();
    // Frames of 480 samples, 40 coefficients; 98 of them are a second.
    report("front_end", (480, 40), 0, 1, front_end::frame_instructions(count));
    say!("done");
    exit(0)
}

#[inline(never)]
fn swept<const BYTES: usize, const WORDS: usize>() -> Sweep {
    let (mut bytes, mut words) = ([0; BYTES], [0; WORDS]);
    SEEDS.into_iter().fold(Sweep::default(), |sum, seed| {
        let found = sweep(seed, &mut bytes, &mut words);
        Sweep { cases: sum.cases + found.cases, mismatches: sum.mismatches + found.mismatches }
    })
}

/// Instructions of `f`, without those of counting.
#[inline(never)]
fn count(f: &mut dyn FnMut()) -> u32 {
    // The same call as the measured one, so that what it costs is in both.
    let mut nothing = || {};
    let mut calls: [&mut dyn FnMut(); 2] = [&mut nothing, f];
    let [empty, measured] = calls.each_mut().map(|call| {
        let start = now();
        call();
        instructions_since(start)
    });
    measured - empty
}

fn report(name: &str, (rows, cols): (usize, usize), rank: usize, tokens: usize, instructions: u32) {
    let macs = match (name, rank) {
        ("quantize" | "pack" | "components" | "front_end", _) => 0,
        ("products" | "streamed", rank) => rank * (rows + cols),
        _ => rows * cols * tokens,
    };
    say!("bench {name} {rows} {cols} {rank} {tokens} {instructions} {macs}");
}

struct Buffers {
    x: [[i8; MAX_IN]; 2],
    acc: [[i32; MAX_OUT]; 2],
    pack: [i32; MAX_IN],
    z: [[i32; MAX_RANK]; 2],
    v: [i16; MAX_RANK],
}

#[inline(never)]
fn measure() {
    let code = |i: usize, factor: usize| ((i * factor % 255) as i8).max(-127);
    let mut buffers = Buffers {
        x: [core::array::from_fn(|i| code(i, 37)), core::array::from_fn(|i| code(i, 91))],
        acc: [[0; MAX_OUT]; 2],
        pack: [0; MAX_IN],
        z: [[0; MAX_RANK]; 2],
        v: [0; MAX_RANK],
    };
    for shape in SHAPES {
        measure_base(BEST, ["gemv", "gemm"], shape, &mut buffers);
    }
    if BEST != Layout::RowMajor {
        measure_base(Layout::RowMajor, ["gemv_row_major", "gemm_row_major"], SHAPES[0], &mut buffers);
    }
    measure_quantize(&mut buffers);
    for rank in RANKS {
        measure_adapter(rank, (256, 256), &mut buffers);
    }
}

fn weights() -> &'static [i8] {
    // The codes of a matrix are signed.
    let Weights(bytes) = &WEIGHTS_IN_FLASH;
    as_codes(black_box(bytes))
}

#[expect(unsafe_code, reason = "a slice of the same bytes")]
fn as_codes(bytes: &[u8]) -> &[i8] {
    // SAFETY: both types have the same size and alignment, and every bit pattern is valid in both.
    unsafe { core::slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len()) }
}

/// Matrix times one vector, and times eight, two at a time.
fn measure_base(layout: Layout, [gemv, gemm]: [&str; 2], shape: (usize, usize), buffers: &mut Buffers) {
    let Buffers { x: [x0, x1], acc: [acc0, acc1], pack, .. } = buffers;
    let ((out, k), layout, w) = black_box((shape, layout, weights()));
    let (x0, x1) = black_box((&x0[..k], &x1[..k]));
    let one = count(&mut || kernels::gemv(layout, w, out, k, x0, acc0, pack));
    report(gemv, shape, 0, 1, one);
    let eight = count(&mut || {
        for _ in 0..4 {
            kernels::gemm2(layout, w, out, k, x0, x1, acc0, acc1, pack);
        }
    });
    report(gemm, shape, 0, 8, eight);
}

fn measure_quantize(buffers: &mut Buffers) {
    let mut values = [0.0_f32; MAX_IN];
    for (value, code) in values.iter_mut().zip(buffers.x[0]) {
        *value = f32::from(code) * 0.037;
    }
    let mut codes = [0; MAX_IN];
    let (values, codes) = black_box((&values[..], &mut codes[..]));
    let instructions = count(&mut || _ = kernels::quantize(values, codes));
    report("quantize", (1, MAX_IN), 0, 1, instructions);
}

/// What a streamed adapter adds to a site: A x of the vector that the base has prepared for itself, the codes of the
/// components, and B z. First each alone, then both products, then all three.
fn measure_adapter(rank: usize, (out, k): (usize, usize), buffers: &mut Buffers) {
    let Buffers { x: [x0, x1], acc: [acc, _], pack, z: [z0, z1], v } = buffers;
    // 2^-10 as little-endian f16.
    let scales = [[0x00, 0x14]; MAX_RANK];
    let (a, b, scales) =
        black_box((&weights()[..rank * k], &weights()[WEIGHTS - rank * out..], &scales[..rank]));
    let (z0, z1, v, acc) = black_box((&mut z0[..rank], &mut z1[..rank], &mut v[..rank], &mut acc[..out]));

    let pair = PackedPair::new(BEST, &x0[..k], &x1[..k], pack);
    let down2 = count(&mut || kernels::down2_packed(a, rank, &pair, z0, z1));
    report("down", (rank, k), rank, 2, down2);
    let x = Packed::new(BEST, &x0[..k], pack);
    let down = count(&mut || kernels::down_packed(a, rank, &x, z0));
    report("down", (rank, k), rank, 1, down);
    let mut shift = 0;
    let components = count(&mut || shift = kernels::component_codes(z0, scales, v));
    report("components", (rank, 1), rank, 1, components);
    let up = count(&mut || kernels::up_add(b, rank, v, shift, acc));
    report("up", (out, rank), rank, 1, up);
    let products = count(&mut || {
        kernels::down_packed(a, rank, &x, z0);
        kernels::up_add(b, rank, v, shift, acc);
    });
    report("products", (out, k), rank, 1, products);
    let streamed = count(&mut || {
        kernels::down_packed(a, rank, &x, z0);
        let shift = kernels::component_codes(z0, scales, v);
        kernels::up_add(b, rank, v, shift, acc);
    });
    report("streamed", (out, k), rank, 1, streamed);
}
