//! The kernels of cores without vector or SMLAD instructions: [`reference`], but for one loop on Arm and RISC-V. Vectors need no preparation, and
//! where extending a sign costs nothing, two of them have nothing to share.

#[cfg(any(target_arch = "arm", all(target_arch = "riscv32", target_feature = "m")))]
use super::four_rows::row_major;
use super::layout::Layout;
use super::reference;
#[cfg(not(any(target_arch = "arm", all(target_arch = "riscv32", target_feature = "m"))))]
use super::reference::row_major;
pub(super) use super::reference::up_add;
pub(super) use super::unpacked::{PairWords, Words, pack, pack_pair};

pub(super) fn gemv(layout: Layout, w: &[i8], x: &[i8], _words: &Words<'_>, acc: &mut [i32]) {
    match layout {
        Layout::RowMajor => row_major(w, x, acc),
        Layout::Dsp4x4 => reference::dsp4x4(w, x, acc),
        Layout::Mve4x16 => reference::mve4x16(w, x, acc),
    }
}

pub(super) fn gemm2(
    layout: Layout,
    w: &[i8],
    [x0, x1]: [&[i8]; 2],
    _words: &PairWords<'_>,
    [acc0, acc1]: [&mut [i32]; 2],
) {
    gemv(layout, w, x0, &Words::default(), acc0);
    gemv(layout, w, x1, &Words::default(), acc1);
}

pub(super) fn down(a: &[i8], x: &[i8], _words: &Words<'_>, z: &mut [i32]) {
    row_major(a, x, z);
}

pub(super) fn down2(a: &[i8], [x0, x1]: [&[i8]; 2], _words: &PairWords<'_>, [z0, z1]: [&mut [i32]; 2]) {
    row_major(a, x0, z0);
    row_major(a, x1, z1);
}
