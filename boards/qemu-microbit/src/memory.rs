//! The partitions beside the firmware and the arena, where `[package.metadata.board]` puts them.
#![expect(unsafe_code, reason = "partitions are memory that no Rust object owns")]

use core::cell::UnsafeCell;
use core::ptr::{self, NonNull};

use rankpatch_board::{Controller, FlashPartition, PaintedStack};

use crate::Nvmc;
use layout::{BASE_LENGTH, BASE_ORIGIN, PSRAM_LENGTH, SLOTS_LENGTH, SLOTS_ORIGIN, SLOTS_PAGE, SLOTS_SLOT};

#[expect(dead_code, reason = "generated for every key; the arena's origin is the linker's business")]
#[expect(clippy::unreadable_literal, reason = "generated")]
mod layout {
    include!(concat!(env!("OUT_DIR"), "/layout.rs"));
}

const _: () = assert!(SLOTS_PAGE == Nvmc::PAGE_BYTES && BASE_ORIGIN.is_multiple_of(16));

/// A static that is handed out once, mutably.
#[repr(C, align(16))]
struct Handout<T>(UnsafeCell<T>);

// SAFETY: the only access is through `arena`, whose callers promise to call it once.
unsafe impl<T> Sync for Handout<T> {}

/// Scratch memory: the end of the RAM.
#[unsafe(link_section = ".psram")]
static ARENA: Handout<[u8; PSRAM_LENGTH]> = Handout(UnsafeCell::new([0; PSRAM_LENGTH]));

unsafe extern "C" {
    static _stack_start: u32;
    static _stack_end: u32;
}

/// The base partition: flash that was filled before reset and that nothing writes.
pub(crate) fn base() -> &'static [u8] {
    // SAFETY: the partition is flash of this machine, apart from every section of the program.
    unsafe { core::slice::from_raw_parts(ptr::with_exposed_provenance(BASE_ORIGIN), BASE_LENGTH) }
}

/// The adapter partition.
///
/// # Safety
/// Called at most once.
pub(crate) unsafe fn slots() -> FlashPartition<Nvmc> {
    let start =
        NonNull::new(ptr::with_exposed_provenance_mut(SLOTS_ORIGIN)).expect("an address behind the base");
    // SAFETY: the partition is flash of this machine, apart from every section of the program; it and the controller are
    // given away only here.
    unsafe { FlashPartition::new(Nvmc::take(), start, SLOTS_LENGTH, SLOTS_SLOT) }
}

/// Scratch memory.
///
/// # Safety
/// Called at most once.
pub(crate) unsafe fn arena() -> &'static mut [u8] {
    // SAFETY: the only reference there will ever be. The section is not cleared at start, but any byte is a valid u8.
    unsafe { &mut *ARENA.0.get() }
}

/// The stack, which the start-up code painted.
pub(crate) fn stack() -> PaintedStack {
    // SAFETY: both symbols delimit the stack.
    unsafe {
        PaintedStack::new(&raw const _stack_end, &raw const _stack_start, cortex_m_rt::STACK_PAINT_VALUE)
    }
}
