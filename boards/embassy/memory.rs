//! The base partition, the arena and the stack of boards on embassy, where `[package.metadata.kit]` puts them.
#![expect(unsafe_code, reason = "partitions are memory that no Rust object owns")]

use core::ptr::{self, NonNull};

use rankpatch_board::{Controller, FlashPartition, PaintedStack};
use static_cell::ConstStaticCell;

use layout::{ARENA_LENGTH, BASE_LENGTH, BASE_ORIGIN, SLOTS_LENGTH, SLOTS_ORIGIN, SLOTS_PAGE, SLOTS_SLOT};

#[allow(clippy::unreadable_literal, reason = "generated: not every kit has a long number")]
mod layout {
    include!(concat!(env!("OUT_DIR"), "/layout.rs"));
}

unsafe extern "C" {
    static _stack_start: u32;
    static _stack_end: u32;
}

#[repr(C, align(16))]
struct Aligned([u8; ARENA_LENGTH]);

/// The base partition: flash that was filled beside the firmware and that nothing writes.
pub(crate) fn base() -> &'static [u8] {
    const { assert!(BASE_ORIGIN.is_multiple_of(16)) };
    // SAFETY: the partition is flash of this chip, apart from every section of the program.
    unsafe { core::slice::from_raw_parts(ptr::with_exposed_provenance(BASE_ORIGIN), BASE_LENGTH) }
}

/// The adapter partition behind its controller.
///
/// # Safety
/// Called at most once.
pub(crate) unsafe fn slots<C: Controller>(controller: C) -> FlashPartition<C> {
    const { assert!(SLOTS_PAGE == C::PAGE_BYTES) };
    let start =
        NonNull::new(ptr::with_exposed_provenance_mut(SLOTS_ORIGIN)).expect("an address behind the base");
    // SAFETY: the partition is flash of this chip, apart from every section of the program, and given away only here.
    unsafe { FlashPartition::new(controller, start, SLOTS_LENGTH, SLOTS_SLOT) }
}

/// Scratch memory.
///
/// # Panics
/// At the second call.
pub(crate) fn arena() -> &'static mut [u8] {
    static ARENA: ConstStaticCell<Aligned> = ConstStaticCell::new(Aligned([0; ARENA_LENGTH]));
    &mut ARENA.take().0
}

/// The stack, which the start-up code painted.
pub(crate) fn stack() -> PaintedStack {
    // SAFETY: both symbols delimit the stack.
    unsafe {
        PaintedStack::new(&raw const _stack_end, &raw const _stack_start, cortex_m_rt::STACK_PAINT_VALUE)
    }
}
