//! The accuracy of softmax weights.

use super::portable::weight;

#[test]
fn weights_are_as_accurate_as_stated() {
    // With this slope a distance of 2^16 is one power of two.
    let slope = 1 << 16 << 14;
    let mut worst = 0.0f64;
    for distance in 0..(16 << 18) {
        let exact = (-f64::from(distance) / 262_144.0).exp2() * 16384.0;
        worst = worst.max((f64::from(weight(distance, slope)) - exact).abs() - 1.3e-4 * exact);
    }
    // Rounding, and the last bit of the power of two, are the rest.
    assert!(worst <= 0.7, "{worst}");
    assert_eq!([0, 14 << 18, 17 << 18, i32::MAX].map(|distance| weight(distance, slope)), [16383, 1, 0, 0]);
}
