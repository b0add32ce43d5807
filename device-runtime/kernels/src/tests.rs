//! The portable kernels against plain loops.

extern crate std;

use std::vec;

use super::reference::row_major_by;
use super::sweep::{SWEEP_BYTES, SWEEP_LONG_BYTES, SWEEP_LONG_WORDS, SWEEP_WORDS, Sweep, sweep};
use super::{Layout, down, encode, gemv, layout_len, pack_len, quantize, up_add};

#[test]
fn kernels_equal_plain_loops_for_all_alignments_and_lengths() {
    for seed in [1, 20, 300] {
        let found = sweep(seed, &mut vec![0; SWEEP_LONG_BYTES], &mut vec![0; SWEEP_LONG_WORDS]);
        // 16 alignments x (67 lengths x (3 layouts x 4 + 4) + 16 ranks x (15 shifts + 1)) + 8 lengths x 4 signs x 9.
        // Attention with 8 head sizes x 9 numbers of keys, but 2 that are too large; 20 of 16 bits; 33 lengths of floats.
        // The bits of two functions.
        let vectors = (8 * 9 - 2) * 9 + 20 + 33 * 12 + 2;
        assert_eq!(found, Sweep { cases: 16 * (67 * 16 + 256) + 288 + vectors, mismatches: 0 });
    }
}

#[test]
fn a_small_device_runs_all_but_the_long_vectors() {
    let found = sweep(7, &mut [0; SWEEP_BYTES], &mut [0; SWEEP_WORDS]);
    assert_eq!(found.mismatches, 0);
    assert!(found.cases >= 16 * (67 * 16 + 256), "{found:?}");
    assert_eq!(sweep(7, &mut [], &mut []), Sweep::default());
}

#[test]
fn groups_of_four_rows_equal_single_rows() {
    // What a 32-bit core and the host run.
    let codes: vec::Vec<i8> = (0..10 * 67).map(|i| ((i * 89) % 255 - 127) as i8).collect();
    for (k, out) in (0..=67).flat_map(|k| (0..=9).map(move |out| (k, out))) {
        let (w, x) = (&codes[..out * k], &codes[codes.len() - k..]);
        let (mut single, mut four) = ([1; 9], [2; 9]);
        row_major_by(false, w, x, &mut single[..out]);
        row_major_by(true, w, x, &mut four[..out]);
        assert_eq!(single[..out], four[..out], "{out} x {k}");
    }
}

#[test]
fn words_of_the_dsp_layout_are_halves_of_256_high_plus_low() {
    let mut image = [1i8; 32];
    encode(Layout::Dsp4x4, &[-3, 7, 127, -127, 5, 0, 0, 0, 0, -1], 2, 5, &mut image);
    let half = |i: usize| i16::from_le_bytes([image[i].cast_unsigned(), image[i + 1].cast_unsigned()]);
    assert_eq!([half(0), half(2)], [256 * 7 - 3, 256 * -127 + 127]);
    assert_eq!([half(16), half(18)], [5, 0]);
    assert_eq!([half(20), half(22)], [-1, 0]);
    assert_eq!([&image[8..16], &image[24..32]], [[0; 8]; 2]);
}

#[test]
fn rows_survive_the_layouts_in_any_order_of_writing() {
    let codes: [i8; 3 * 7] = core::array::from_fn(|i| ((i * 89) % 255) as i8).map(|code| code.max(-127));
    for layout in Layout::ALL {
        let mut image = [-1i8; 64];
        for row in [2, 0, 1] {
            layout.write_row(&mut image, 7, row, &codes[row * 7..][..7]);
        }
        for row in 0..3 {
            let mut back = [0i8; 7];
            layout.read_row(&image, 7, row, &mut back);
            assert_eq!(back, codes[row * 7..][..7], "{layout:?} row {row}");
        }
    }
}

#[test]
fn lengths_of_buffers() {
    assert_eq!([layout_len(Layout::RowMajor, 3, 5), layout_len(Layout::Dsp4x4, 3, 5)], [15, 32]);
    assert_eq!([layout_len(Layout::RowMajor, 0, 5), layout_len(Layout::Dsp4x4, 0, 5)], [0, 0]);
    assert_eq!(layout_len(Layout::Dsp4x4, usize::MAX, usize::MAX), usize::MAX);
    assert_eq!([pack_len(Layout::RowMajor, 65), pack_len(Layout::Dsp4x4, 65)], [0, 68]);
}

#[test]
fn empty_shapes_are_fine() {
    let mut acc = [5, 6];
    for layout in [Layout::RowMajor, Layout::Dsp4x4] {
        gemv(layout, &[], 0, 4, &[1; 4], &mut [], &mut [0; 5]);
        acc = [5, 6];
        gemv(layout, &[], 2, 0, &[], &mut acc, &mut [0; 1]);
        assert_eq!(acc, [0, 0]);
    }
    up_add(&[], 0, &[], 3, &mut acc);
    assert_eq!(acc, [0, 0]);
    down(&[], 0, 3, &[1; 3], &mut []);
}

#[test]
fn an_update_is_rounded_to_the_nearest_half_up() {
    for (v, expected) in [(5, 103), (6, 103), (7, 104), (-5, 98), (-6, 97), (-7, 97), (-2, 99), (2, 101)] {
        let mut acc = [100];
        up_add(&[2], 1, &[v], 2, &mut acc);
        let exact = 100.0 + f64::from(v) / 2.0;
        assert_eq!(f64::from(acc[0]), (exact + 0.5).floor(), "{v}");
        assert_eq!(acc, [expected], "{v}");
    }
}

#[test]
fn quantize_rounds_to_nearest_even_at_one_scale() {
    let mut codes = [9i8; 7];
    let x = [127.0, -127.0, 0.5, 1.5, 2.5, -0.5, -1.5];
    assert_eq!(quantize(&x, &mut codes), 1.0);
    assert_eq!(codes, [127, -127, 0, 2, 2, 0, -2]);
    // The longer slice of codes keeps its tail.
    let mut codes = [9i8; 3];
    assert_eq!(quantize(&[-0.0, -3.0], &mut codes), 3.0 / 127.0);
    assert_eq!(codes, [0, -127, 9]);
}

#[test]
fn quantize_gives_zeros_for_what_has_no_scale() {
    let tiny = f32::from_bits((27 << 23) - 1);
    for x in [0.0, -0.0, tiny, f32::from_bits(1), f32::INFINITY, f32::NEG_INFINITY, f32::NAN, -f32::NAN] {
        let mut codes = [9i8; 2];
        assert_eq!(quantize(&[x, 1.0e-40], &mut codes), 0.0, "{x}");
        assert_eq!(codes, [0, 0], "{x}");
    }
    assert_eq!(quantize(&[], &mut []), 0.0);
    // The smallest and the largest maximum that have one: codes stay in range.
    for max in [f32::from_bits(27 << 23), f32::MAX, 1.0, 0.1, 3.3e-7] {
        let mut codes = [0i8; 4];
        assert_eq!(quantize(&[max, -max, max / 2.0, 0.0], &mut codes), max / 127.0);
        assert_eq!(codes, [127, -127, 64, 0], "{max}");
    }
}
