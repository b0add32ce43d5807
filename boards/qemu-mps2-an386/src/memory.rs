//! The partitions beside the firmware and the arena, where `[package.metadata.board]` puts them.
#![expect(unsafe_code, reason = "partitions are memory that no Rust object owns")]

use core::cell::UnsafeCell;
use core::ptr::{self, NonNull};

use rankpatch_board::{NorRam, nor};

use layout::{BASE_LENGTH, BASE_ORIGIN, PSRAM_LENGTH, SLOTS_LENGTH, SLOTS_ORIGIN, SLOTS_PAGE, SLOTS_SLOT};

#[expect(dead_code, reason = "generated for every key; the PSRAM's origin is the linker's business")]
#[expect(clippy::unreadable_literal, reason = "generated")]
mod layout {
    include!(concat!(env!("OUT_DIR"), "/layout.rs"));
}

const _: () = assert!(SLOTS_PAGE == nor::PAGE_BYTES && BASE_ORIGIN.is_multiple_of(16));

/// A static that is handed out once, mutably.
#[repr(C, align(16))]
struct Handout<T>(UnsafeCell<T>);

// SAFETY: the only access is through `take`, whose callers promise to call it once.
unsafe impl<T> Sync for Handout<T> {}

impl<T> Handout<T> {
    /// # Safety
    /// Called at most once per static.
    #[expect(clippy::mut_from_ref, reason = "the cell gives its content away")]
    unsafe fn take(&'static self) -> &'static mut T {
        // SAFETY: the only reference there will ever be.
        unsafe { &mut *self.0.get() }
    }
}

/// The flash driver's record of written words.
static WRITTEN: Handout<[u32; NorRam::record_len(SLOTS_LENGTH)]> =
    Handout(UnsafeCell::new([0; NorRam::record_len(SLOTS_LENGTH)]));

/// Scratch memory: all of the PSRAM.
#[unsafe(link_section = ".psram")]
static ARENA: Handout<[u8; PSRAM_LENGTH]> = Handout(UnsafeCell::new([0; PSRAM_LENGTH]));

/// The base partition: memory that QEMU's loader filled before reset and that nothing writes.
pub(crate) fn base() -> &'static [u8] {
    // SAFETY: the partition is initialized memory of this machine, apart from every section of the program.
    unsafe { core::slice::from_raw_parts(ptr::with_exposed_provenance(BASE_ORIGIN), BASE_LENGTH) }
}

/// The adapter partition.
///
/// # Safety
/// Called at most once.
pub(crate) unsafe fn slots() -> NorRam {
    let start =
        NonNull::new(ptr::with_exposed_provenance_mut(SLOTS_ORIGIN)).expect("an address behind the base");
    // SAFETY: the partition is memory of this machine, apart from every section of the program, and given away only here.
    unsafe { NorRam::new(start, SLOTS_LENGTH, SLOTS_SLOT, WRITTEN.take()) }
}

/// Scratch memory in the PSRAM.
///
/// # Safety
/// Called at most once.
pub(crate) unsafe fn arena() -> &'static mut [u8] {
    // SAFETY: passed on to the caller. The section is not cleared at start, but any byte is a valid u8.
    unsafe { ARENA.take() }
}
