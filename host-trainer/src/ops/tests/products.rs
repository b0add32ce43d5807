//! The matrix kernels against a plain loop, for every tail of a tile.

use super::super::gemm::{Mat, Packed, Target, multiply, outer};
use super::super::simd::without_wide_registers;
use crate::rng::Rng;

/// What the kernels must not touch.
const UNTOUCHED: f32 = 7.5;

fn random(name: &str, count: usize) -> Vec<f32> {
    let mut rng = Rng::new(3, name);
    (0..count).map(|_| rng.normal()).collect()
}

/// The kernels' own order: one chain of multiply-adds over the inner index, term after term. So results are equal bit by bit.
fn chain(start: f32, pairs: impl Iterator<Item = (f32, f32)>) -> f32 {
    start + pairs.fold(0.0f32, |sum, (a, b)| a.mul_add(b, sum))
}

#[test]
fn multiply_has_the_same_bits_as_the_loop() {
    multiply_against_the_loop();
    without_wide_registers::run(multiply_against_the_loop);
}

fn multiply_against_the_loop() {
    for rows in [1, 2, 3, 4, 5, 6, 7, 11, 12, 19, 49, 54] {
        for cols in [1, 3, 7, 8, 9, 12, 15, 16, 17, 23, 24, 25, 32, 40] {
            for inner in [1, 2, 5, 8, 19] {
                let (stride_a, stride_c, inner2) = (inner + 3, cols + 2, 4);
                let a = random("a", rows * stride_a);
                let a2 = random("a2", rows * inner2);
                // One more row of b than the product uses, and packed once from each orientation.
                let b = random("b", (inner + 1) * cols);
                let b2 = random("b2", cols * inner2);
                let packed = Packed::new(&b, inner + 1, cols);
                let packed2 = Packed::transposed(&b2, cols, inner2);
                for accumulate in [false, true] {
                    let mut c = vec![UNTOUCHED; rows * stride_c];
                    let target = Target::strided(&mut c, stride_c, rows, cols).accumulate(accumulate);
                    let first = (Mat::strided(&a, stride_a, inner), &packed);
                    multiply(target, &[first, (Mat::new(&a2, inner2), &packed2)]);
                    for (row, c) in c.chunks(stride_c).enumerate() {
                        for (column, &c) in c.iter().enumerate() {
                            let expected = if column < cols {
                                let first = (0..inner).map(|p| (a[row * stride_a + p], b[p * cols + column]));
                                let second =
                                    (0..inner2).map(|p| (a2[row * inner2 + p], b2[column * inner2 + p]));
                                chain(if accumulate { UNTOUCHED } else { 0.0 }, first.chain(second))
                            } else {
                                UNTOUCHED
                            };
                            assert_eq!(
                                c.to_bits(),
                                expected.to_bits(),
                                "{rows}x{cols}x{inner} [{row}, {column}]"
                            );
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn multiply_can_leave_columns_out() {
    let (a, b) = (random("a", 5 * 4), random("b", 4 * 40));
    let packed = Packed::new(&b, 4, 40);
    let mut all = vec![0.0; 5 * 40];
    multiply(Target::new(&mut all, 5, 40), &[(Mat::new(&a, 4), &packed)]);
    for cols in 0..=40 {
        let mut part = vec![UNTOUCHED; 5 * 40];
        multiply(Target::strided(&mut part, 40, 5, cols), &[(Mat::new(&a, 4), &packed)]);
        for (part, all) in part.chunks(40).zip(all.chunks(40)) {
            assert_eq!(part[..cols], all[..cols]);
            assert!(part[cols..].iter().all(|&x| x == UNTOUCHED));
        }
    }
}

#[test]
fn outer_has_the_same_bits_as_the_loop() {
    outer_against_the_loop();
    without_wide_registers::run(outer_against_the_loop);
}

fn outer_against_the_loop() {
    for rows in [1, 3, 4, 5, 8, 13, 17] {
        for cols in [1, 2, 4, 7, 8, 12, 15, 16, 31, 172] {
            for inner in [1, 6, 17] {
                let (stride_a, stride_b, stride_c) = (rows + 1, cols + 2, cols + 3);
                let (a, b) = (random("a", inner * stride_a), random("b", inner * stride_b));
                for accumulate in [false, true] {
                    let mut c = vec![UNTOUCHED; rows * stride_c];
                    let target = Target::strided(&mut c, stride_c, rows, cols).accumulate(accumulate);
                    outer(target, Mat::strided(&a, stride_a, rows), Mat::strided(&b, stride_b, cols), inner);
                    for (row, c) in c.chunks(stride_c).enumerate() {
                        for (column, &c) in c.iter().enumerate() {
                            let pairs = (0..inner).map(|p| (a[p * stride_a + row], b[p * stride_b + column]));
                            let expected = match column {
                                _ if column >= cols => UNTOUCHED,
                                _ => chain(if accumulate { UNTOUCHED } else { 0.0 }, pairs),
                            };
                            assert_eq!(
                                c.to_bits(),
                                expected.to_bits(),
                                "{rows}x{cols}x{inner} [{row}, {column}]"
                            );
                        }
                    }
                }
            }
        }
    }
}
