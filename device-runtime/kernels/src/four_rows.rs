//! Row-major products for cores without vector or SMLAD instructions: four rows at once.
#![allow(unsafe_code, reason = "calls a loop of naked assembly")]

use super::reference;
#[cfg(target_arch = "riscv32")]
use super::riscv::dot4;
#[cfg(target_arch = "arm")]
use super::thumb::dot4;

/// `acc[o] = sum_i w[o,i] * x[i]`; `w` is `[acc.len(), x.len()]` row-major.
pub(super) fn row_major(w: &[i8], x: &[i8], acc: &mut [i32]) {
    let k = x.len();
    let Some(w) = w.get(..acc.len() * k).filter(|_| k > 0) else {
        acc.fill(0);
        return;
    };
    let (groups, last) = acc.as_chunks_mut::<4>();
    let mut row = w.as_ptr();
    for sums in groups {
        let second = row.wrapping_add(k);
        let third = second.wrapping_add(k);
        let rows = [row, second, third, third.wrapping_add(k)];
        // SAFETY: `w` has `acc.len()` rows of `k` codes, and `x` has `k`, which is at least 1.
        unsafe { dot4(&rows, x.as_ptr(), k, sums) };
        row = rows[3].wrapping_add(k);
    }
    if last.len() < 3 {
        let rows = w.get(w.len() - last.len() * k..).unwrap_or(&[]);
        for (sum, row) in last.iter_mut().zip(rows.chunks_exact(k)) {
            *sum = reference::dot(row, x);
        }
    } else {
        // The last row, several times over.
        let mut sums = [0; 4];
        let rows = [0, 1, 2, 3].map(|i: usize| row.wrapping_add(i.min(last.len() - 1) * k));
        // SAFETY: as above.
        unsafe { dot4(&rows, x.as_ptr(), k, &mut sums) };
        last.iter_mut().zip(sums).for_each(|(to, from)| *to = from);
    }
}
