//! The kernels of cores without the DSP extension: [`reference`] as it is. Vectors need no preparation, and where
//! extending a sign costs nothing, two of them have nothing to share.

use core::marker::PhantomData;

use super::layout::Layout;
use super::reference;

pub(super) use super::reference::up_add;

#[derive(Default)]
pub(super) struct Words<'a>(PhantomData<&'a [i32]>);

#[derive(Default)]
pub(super) struct PairWords<'a>(PhantomData<&'a [i32]>);

pub(super) fn pack<'a>(_x: &[i8], _scratch: &'a mut [i32]) -> Words<'a> {
    Words::default()
}

pub(super) fn pack_pair<'a>(_x: [&[i8]; 2], _scratch: &'a mut [i32]) -> PairWords<'a> {
    PairWords::default()
}

pub(super) fn gemv(layout: Layout, w: &[i8], x: &[i8], _words: &Words<'_>, acc: &mut [i32]) {
    reference::gemv(layout, w, x, acc);
}

pub(super) fn gemm2(
    layout: Layout,
    w: &[i8],
    [x0, x1]: [&[i8]; 2],
    _words: &PairWords<'_>,
    [acc0, acc1]: [&mut [i32]; 2],
) {
    reference::gemv(layout, w, x0, acc0);
    reference::gemv(layout, w, x1, acc1);
}

pub(super) fn down(a: &[i8], x: &[i8], _words: &Words<'_>, z: &mut [i32]) {
    reference::gemv(Layout::RowMajor, a, x, z);
}

pub(super) fn down2(a: &[i8], x: [&[i8]; 2], words: &PairWords<'_>, z: [&mut [i32]; 2]) {
    gemm2(Layout::RowMajor, a, x, words, z);
}
