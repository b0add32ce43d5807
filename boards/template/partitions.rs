//! Base and adapters in partitions of their own, which QEMU fills before the program starts and a product's factory would:
//! `assets/base.rpb` and `assets/slots.rpk`, see .cargo/config.toml.

use core::ptr;

use rankpatch_board::Slots as _;
use rankpatch_board::flash::Mapped;
use rankpatch_runtime::slots::{FILE_OFFSET, MAX_SLOTS, Slots};

use crate::board::{self, BASE};

/// The image of {{base}}, and what lies behind it.
pub fn base() -> &'static [u8] {
    // SAFETY: initialized memory of this machine, apart from every section of the program, that nothing writes.
    unsafe { core::slice::from_raw_parts(ptr::with_exposed_provenance(BASE.0), BASE.1) }
}

/// The adapter files in the slots. Their slots stay pinned: nothing can write to them any more.
///
/// # Panics
/// At the second call, or if the partition has another layout.
pub fn adapters() -> impl Iterator<Item = &'static [u8]> {
    let partition = board::slots();
    let layout = partition.layout();
    let Ok(mut slots) = Slots::mount(Mapped(partition), layout) else {
        panic!("expected a partition of 7 slots and 8 pages, found another");
    };
    let files: [Option<&'static [u8]>; MAX_SLOTS] = core::array::from_fn(|slot| {
        let len = slots.file(slot).ok()?.len();
        slots.flash_mut().0.pin(slot)?.get(FILE_OFFSET..FILE_OFFSET + len)
    });
    files.into_iter().flatten()
}
