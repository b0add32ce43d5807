//! Counts instructions of the integer kernels, and first sweeps them against their portable twins on this core.
//!
//! Each line of the log that starts with `bench` has the form `bench NAME ROWS COLS RANK TOKENS INSTRUCTIONS MACS`; `cargo xtask
//! bench` collects them. A count covers the call with its checks, packing and stores, and nothing around it.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(not(target_os = "none"))]
fn main() {}

#[cfg(target_os = "none")]
mod device {
    use core::hint::black_box;

    use qemu_mps2_an386::{board, counter, fail, succeed};
    use rankpatch_board::{Counter, Link, Parts};
    use rankpatch_runtime::kernels::{self, Layout, sweep};

    const MAX: usize = 512;

    struct Buffers {
        x: [[i8; MAX]; 2],
        acc: [[i32; MAX]; 2],
        pack: [i32; 2 * MAX],
        z: [i32; 64],
        v: [i16; 64],
    }

    #[cortex_m_rt::entry]
    fn main() -> ! {
        let Parts { mut link, counter, arena, .. } = board::take();
        let (weights, rest) = arena.split_at_mut(1 << 20);
        let weights: &mut [i8] = bytemuck::cast_slice_mut(weights);
        // The host asks for the start, so that it misses no line.
        link.wait();
        let mut swept = sweep::Sweep::default();
        for seed in [77, 154, 231] {
            let words = bytemuck::cast_slice_mut(&mut rest[..64 << 10]);
            let found = sweep::sweep(seed, weights, words);
            swept.cases += found.cases;
            swept.mismatches += found.mismatches;
        }
        defmt::info!("sweep {=u32} cases, {=u32} mismatches", swept.cases, swept.mismatches);
        if swept.mismatches != 0 {
            fail();
        }
        for (i, weight) in weights.iter_mut().enumerate() {
            *weight = ((i * 7919) >> 3) as i8;
            *weight = (*weight).max(-127);
        }
        let code = |i: usize, factor: usize| ((i * factor % 255) as i8).max(-127);
        let mut buffers = Buffers {
            x: [core::array::from_fn(|i| code(i, 37)), core::array::from_fn(|i| code(i, 91))],
            acc: [[0; MAX]; 2],
            pack: [0; 2 * MAX],
            z: [0; 64],
            v: core::array::from_fn(|i| (i * 997) as i16),
        };
        for (rows, cols) in [(256, 256), (64, 64), (172, 64), (64, 172), (512, 64)] {
            for (layout, gemv, gemm) in
                [(Layout::Dsp4x4, "gemv", "gemm"), (Layout::RowMajor, "gemv_row_major", "gemm_row_major")]
            {
                measure_base(&counter, weights, layout, (gemv, gemm), (rows, cols), &mut buffers);
            }
        }
        for rank in [1, 2, 4, 8, 16] {
            measure_adapter(&counter, weights, rank, (256, 256), &mut buffers);
        }
        defmt::info!("bench done");
        succeed()
    }

    /// Instructions of `f`, without those of counting.
    fn count(counter: &impl Counter, mut f: impl FnMut()) -> u64 {
        let measure = |f: &mut dyn FnMut()| {
            let start = counter.ticks();
            f();
            counter::instructions(counter.ticks() - start)
        };
        let empty = measure(&mut || {});
        // The first run would be the same: there is no cache to warm.
        measure(&mut f) - empty
    }

    fn report(
        name: &str,
        (rows, cols): (usize, usize),
        rank: usize,
        tokens: usize,
        instructions: u64,
        macs: usize,
    ) {
        defmt::info!(
            "bench {=str} {=u32} {=u32} {=u32} {=u32} {=u64} {=u32}",
            name,
            rows as u32,
            cols as u32,
            rank as u32,
            tokens as u32,
            instructions,
            macs as u32
        );
    }

    fn measure_base(
        counter: &impl Counter,
        weights: &[i8],
        layout: Layout,
        (gemv, gemm): (&str, &str),
        (rows, cols): (usize, usize),
        buffers: &mut Buffers,
    ) {
        let Buffers { x: [x0, x1], acc: [acc0, acc1], pack, .. } = buffers;
        let (x0, x1) = (&x0[..cols], &x1[..cols]);
        let one = count(counter, || {
            kernels::gemv(
                black_box(layout),
                black_box(weights),
                black_box(rows),
                black_box(cols),
                black_box(x0),
                black_box(&mut acc0[..]),
                black_box(&mut pack[..]),
            );
        });
        report(gemv, (rows, cols), 0, 1, one, rows * cols);
        let eight = count(counter, || {
            for _ in 0..4 {
                kernels::gemm2(
                    black_box(layout),
                    black_box(weights),
                    black_box(rows),
                    black_box(cols),
                    black_box(x0),
                    black_box(x1),
                    black_box(&mut acc0[..]),
                    black_box(&mut acc1[..]),
                    black_box(&mut pack[..]),
                );
            }
        });
        report(gemm, (rows, cols), 0, 8, eight, 8 * rows * cols);
    }

    fn measure_adapter(
        counter: &impl Counter,
        weights: &[i8],
        rank: usize,
        (rows, cols): (usize, usize),
        buffers: &mut Buffers,
    ) {
        let Buffers { x: [x, _], acc: [acc, _], z, v, .. } = buffers;
        let down = count(counter, || {
            kernels::down(
                black_box(weights),
                black_box(rank),
                black_box(cols),
                black_box(&x[..cols]),
                black_box(&mut z[..]),
            );
        });
        report("down", (rank, cols), rank, 1, down, rank * cols);
        let up = count(counter, || {
            kernels::up_add(
                black_box(weights),
                black_box(rank),
                black_box(&v[..rank]),
                black_box(7),
                black_box(&mut acc[..rows]),
            );
        });
        report("up", (rows, rank), rank, 1, up, rank * rows);
        report("streamed", (rows, cols), rank, 1, down + up, rank * (rows + cols));
    }
}
