//! Matrix times packed vector. The loops are naked functions: they keep four sums, four weights and four activations in
//! registers, which with two pointers is every register there is. Loop ends therefore live on the stack.

use super::CHUNK_BLOCKS;

/// `acc = W x` for a `Dsp4x4` matrix aligned to 4, and a vector packed in two words a block.
pub(super) fn gemv(w: &[i8], pack: &[i32], acc: &mut [i32]) {
    let blocks = pack.len() / 2;
    let (groups, tail) = acc.as_chunks_mut::<4>();
    let tail_w = w.get(groups.len() * blocks * 16..).unwrap_or(&[]);
    gemv_chunks(w, blocks, pack, groups);
    if !tail.is_empty() {
        let mut last = [[0; 4]];
        gemv_chunks(tail_w, blocks, pack, &mut last);
        tail.iter_mut().zip(last.as_flattened()).for_each(|(to, from)| *to = *from);
    }
}

// One copy for whole groups and for the last rows.
#[inline(never)]
fn gemv_chunks(w: &[i8], blocks: usize, pack: &[i32], groups: &mut [[i32; 4]]) {
    let fits = w.len() >= groups.len() * blocks * 16 && pack.len() >= 2 * blocks;
    if groups.is_empty() || !fits || !w.as_ptr().addr().is_multiple_of(4) {
        debug_assert!(groups.is_empty(), "gemv: unaligned or too short");
        return;
    }
    let acc = groups.as_mut_ptr_range();
    for start in (0..blocks).step_by(CHUNK_BLOCKS) {
        let n = CHUNK_BLOCKS.min(blocks - start);
        // SAFETY: `groups` is not empty and 0 < n <= blocks - start. So the function reads the blocks start..start + n
        // of each group of 16 * blocks bytes, all inside `w`, which is aligned to 4; two words of `pack` for each such
        // block; and writes all of `groups`. Chunks after the first add to what the one before wrote.
        unsafe {
            gemv_groups(
                w.as_ptr().add(16 * start),
                pack.as_ptr().add(2 * start),
                acc.start.cast(),
                acc.end.cast(),
                n,
                16 * (blocks - n),
                start,
            );
        }
    }
}

/// One block for four rows: words in r2-r5, activations in two registers, sums in r10, r11, r12, lr.
macro_rules! block4 {
    ($odd:literal, $even:literal) => {
        concat!(
            "smlad r10, r2, ",
            $odd,
            ", r10\n",
            "smlad r11, r3, ",
            $odd,
            ", r11\n",
            "smlad r12, r4, ",
            $odd,
            ", r12\n",
            "smlad lr, r5, ",
            $odd,
            ", lr\n",
            "sxtb16 r2, r2\n",
            "sxtb16 r3, r3\n",
            "sxtb16 r4, r4\n",
            "sxtb16 r5, r5\n",
            "smlad r10, r2, ",
            $even,
            ", r10\n",
            "smlad r11, r3, ",
            $even,
            ", r11\n",
            "smlad r12, r4, ",
            $even,
            ", r12\n",
            "smlad lr, r5, ",
            $even,
            ", lr\n",
        )
    };
}

/// [`block4`] where the sums begin.
macro_rules! first_block4 {
    ($odd:literal, $even:literal) => {
        concat!(
            "smuad r10, r2, ",
            $odd,
            "\n",
            "smuad r11, r3, ",
            $odd,
            "\n",
            "smuad r12, r4, ",
            $odd,
            "\n",
            "smuad lr, r5, ",
            $odd,
            "\n",
            "sxtb16 r2, r2\n",
            "sxtb16 r3, r3\n",
            "sxtb16 r4, r4\n",
            "sxtb16 r5, r5\n",
            "smlad r10, r2, ",
            $even,
            ", r10\n",
            "smlad r11, r3, ",
            $even,
            ", r11\n",
            "smlad r12, r4, ",
            $even,
            ", r12\n",
            "smlad lr, r5, ",
            $even,
            ", lr\n",
        )
    };
}

/// For each group of four rows: `acc = [acc +] sum >> 8` over `blocks` blocks, then `w += skip`.
///
/// # Safety
/// At least one group, `acc != acc_end`, and at least one block; all pointers aligned to 4 and good for what is read and
/// written.
#[unsafe(naked)]
unsafe extern "C" fn gemv_groups(
    w: *const i8,
    pack: *const i32,
    acc: *mut i32,
    acc_end: *const i32,
    blocks: usize,
    skip: usize,
    add: usize,
) {
    // Stack: 0 pack, 4 its end, 8 acc, 12 its end, 16 skip, 20 add, 24 first jump, 28 second jump.
    dsp_asm!(
        "push {{r4-r11, lr}}",
        "sub sp, #36",
        "ldr r4, [sp, #72]", // blocks
        "add r5, r1, r4, lsl #3",
        "strd r1, r5, [sp, #0]",
        "strd r2, r3, [sp, #8]",
        "ldrd r5, r6, [sp, #76]",
        "strd r5, r6, [sp, #16]",
        // A group begins with one block or two, whatever leaves pairs. The loop takes four pairs a turn; the first turn
        // enters so that the rest fits.
        "sub r5, r4, #1",
        "lsrs r5, r5, #1", // pairs left
        "adr.w r6, 4f",
        "adr.w r7, 3f",
        "it eq",
        "moveq r7, r6",
        "beq 1f",
        "ands r5, r5, #3",
        "beq 1f",
        "rsb r5, r5, #4",
        "mov r6, #108", // bytes of a pair
        "mla r7, r5, r6, r7",
        "1:",
        "adr.w r5, 5f",
        "adr.w r6, 8f",
        "lsls r4, r4, #31",
        "it ne",
        "movne r6, r5",
        "orr r6, r6, #1",
        "orr r7, r7, #1",
        "strd r6, r7, [sp, #24]",
        "2:", // a group
        "ldr r1, [sp, #0]",
        "ldr pc, [sp, #24]",
        "5:", // the first block of an odd number
        "ldrd r6, r7, [r1], #8",
        "ldm.w r0!, {{r2-r5}}",
        first_block4!("r6", "r7"),
        "ldr pc, [sp, #28]",
        "8:", // the first two of an even number
        "ldm.w r1!, {{r6-r9}}",
        "ldm.w r0!, {{r2-r5}}",
        first_block4!("r6", "r7"),
        "ldm.w r0!, {{r2-r5}}",
        block4!("r8", "r9"),
        "ldr pc, [sp, #28]",
        ".p2align 2",
        "3:",
        repeat!(
            4,
            "ldm.w r1!, {{r6-r9}}",
            "ldm.w r0!, {{r2-r5}}",
            block4!("r6", "r7"),
            "ldm.w r0!, {{r2-r5}}",
            block4!("r8", "r9")
        ),
        "ldr r2, [sp, #4]",
        "cmp r1, r2",
        "bne 3b",
        ".p2align 2",
        "4:",
        "ldrd r2, r3, [sp, #8]",
        "ldrd r4, r5, [sp, #16]",
        "add r0, r4",
        "cbnz r5, 6f",
        "asr r10, r10, #8",
        "asr r11, r11, #8",
        "asr r12, r12, #8",
        "asr lr, lr, #8",
        "7:",
        "stm r2!, {{r10, r11, r12, lr}}",
        "str r2, [sp, #8]",
        "cmp r2, r3",
        "bne 2b",
        "add sp, #36",
        "pop {{r4-r11, pc}}",
        "6:",
        "ldm r2, {{r6-r9}}",
        "add r10, r6, r10, asr #8",
        "add r11, r7, r11, asr #8",
        "add r12, r8, r12, asr #8",
        "add lr, r9, lr, asr #8",
        "b 7b",
    )
}

/// `acc0 = W x0, acc1 = W x1` for a `Dsp4x4` matrix aligned to 4, and two vectors packed in four words a block.
pub(super) fn gemm2(w: &[i8], pack: &[i32], [acc0, acc1]: [&mut [i32]; 2]) {
    let blocks = pack.len() / 4;
    let ((groups0, tail0), (groups1, tail1)) = (acc0.as_chunks_mut::<4>(), acc1.as_chunks_mut::<4>());
    let tail_w = w.get(groups0.len() * blocks * 16..).unwrap_or(&[]);
    gemm2_chunks(w, blocks, pack, groups0, groups1);
    if !tail0.is_empty() {
        let (mut last0, mut last1) = ([[0; 4]], [[0; 4]]);
        gemm2_chunks(tail_w, blocks, pack, &mut last0, &mut last1);
        tail0.iter_mut().zip(last0.as_flattened()).for_each(|(to, from)| *to = *from);
        tail1.iter_mut().zip(last1.as_flattened()).for_each(|(to, from)| *to = *from);
    }
}

// As `gemv_chunks`.
#[inline(never)]
fn gemm2_chunks(w: &[i8], blocks: usize, pack: &[i32], acc0: &mut [[i32; 4]], acc1: &mut [[i32; 4]]) {
    let groups = acc0.len().min(acc1.len());
    let fits = w.len() >= groups * blocks * 16 && pack.len() >= 4 * blocks;
    if groups == 0 || !fits || !w.as_ptr().addr().is_multiple_of(4) {
        debug_assert!(groups == 0, "gemm2: unaligned or too short");
        return;
    }
    for start in (0..blocks).step_by(CHUNK_BLOCKS) {
        let n = CHUNK_BLOCKS.min(blocks - start);
        // SAFETY: as in `gemv_chunks`, with four words of `pack` a block, and `groups` groups of both results.
        unsafe {
            gemm2_pairs(
                w.as_ptr().add(16 * start),
                pack.as_ptr().add(4 * start),
                acc0.as_mut_ptr().cast(),
                acc1.as_mut_ptr().cast(),
                n,
                16 * blocks,
                acc0.as_ptr().add(groups).cast(),
                start,
            );
        }
    }
}

/// For each pair of rows: `acc = [acc +] sum >> 8` over `blocks` blocks, for two vectors. `stride` is what a group of
/// two pairs takes in `w`.
///
/// # Safety
/// At least one group, `acc0 != acc0_end`, and at least one block; all pointers aligned to 4 and good for what is read
/// and written.
#[unsafe(naked)]
unsafe extern "C" fn gemm2_pairs(
    w: *const i8,
    pack: *const i32,
    acc0: *mut i32,
    acc1: *mut i32,
    blocks: usize,
    stride: usize,
    acc0_end: *const i32,
    add: usize,
) {
    // Stack: 0 acc0, 4 acc1, 8 pack, 12 turns of the loop, 16 acc0_end, 20 add, 24 jump, 28 both steps from pair to pair.
    // lr: the step to the next pair; r12: turns left.
    dsp_asm!(
        "push {{r4-r11, lr}}",
        "sub sp, #36",
        "strd r2, r3, [sp, #0]",
        "ldrd r4, r5, [sp, #72]", // blocks, stride
        "add r6, r4, #6",
        "lsr r6, r6, #3",
        "strd r1, r6, [sp, #8]",
        "ldrd r6, r7, [sp, #80]",
        "strd r6, r7, [sp, #16]",
        // From the first pair to the second: back over the blocks, and two words on. From the second to the next
        // group: to the end of the group, and two words back. Together: a group, less the blocks seen twice.
        "rsb r6, r4, #0",
        "lsl r6, r6, #4",
        "add lr, r6, #8",
        "add r6, r5, r6, lsl #1",
        // A pair begins with one block. The loop takes eight a turn; the first turn enters so that the rest fits.
        "subs r4, r4, #1",
        "adr.w r7, 3f",
        "adr.w r5, 4f",
        "it eq",
        "moveq r7, r5",
        "ands r4, r4, #7",
        "ittt ne",
        "rsbne r4, r4, #8",
        "movne r5, #48", // bytes of a block
        "mlane r7, r4, r5, r7",
        "orr r7, r7, #1",
        "strd r7, r6, [sp, #24]",
        "2:", // a pair of rows
        "ldrd r1, r12, [sp, #8]",
        "ldm.w r1!, {{r4-r7}}",
        "ldrd r2, r3, [r0], #16",
        "smuad r8, r2, r4",
        "smuad r9, r3, r4",
        "smuad r10, r2, r6",
        "smuad r11, r3, r6",
        "sxtb16 r2, r2",
        "sxtb16 r3, r3",
        "smlad r8, r2, r5, r8",
        "smlad r9, r3, r5, r9",
        "smlad r10, r2, r7, r10",
        "smlad r11, r3, r7, r11",
        "ldr pc, [sp, #24]",
        ".p2align 2",
        "3:",
        repeat!(
            8,
            "ldm.w r1!, {{r4-r7}}",
            "ldrd r2, r3, [r0], #16",
            "smlad r8, r2, r4, r8",
            "smlad r9, r3, r4, r9",
            "smlad r10, r2, r6, r10",
            "smlad r11, r3, r6, r11",
            "sxtb16 r2, r2",
            "sxtb16 r3, r3",
            "smlad r8, r2, r5, r8",
            "smlad r9, r3, r5, r9",
            "smlad r10, r2, r7, r10",
            "smlad r11, r3, r7, r11"
        ),
        "subs r12, r12, #1",
        "bne 3b",
        ".p2align 2",
        "4:",
        "ldrd r2, r3, [sp, #0]",
        "ldrd r4, r5, [sp, #16]",
        "cbnz r5, 6f",
        "asr r8, r8, #8",
        "asr r9, r9, #8",
        "asr r10, r10, #8",
        "asr r11, r11, #8",
        "7:",
        "strd r8, r9, [r2], #8",
        "strd r10, r11, [r3], #8",
        "strd r2, r3, [sp, #0]",
        "add r0, lr",
        "ldr r5, [sp, #28]",
        "sub lr, r5, lr",
        "cmp r2, r4",
        "bne 2b",
        "add sp, #36",
        "pop {{r4-r11, pc}}",
        "6:",
        "ldrd r5, r6, [r2]",
        "add r8, r5, r8, asr #8",
        "add r9, r6, r9, asr #8",
        "ldrd r5, r6, [r3]",
        "add r10, r5, r10, asr #8",
        "add r11, r6, r11, asr #8",
        "b 7b",
    )
}
