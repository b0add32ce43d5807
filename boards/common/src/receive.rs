//! Two programs that show what receiving adapters costs in flash: one that does nothing else, and the same without it. The
//! difference of their sizes is the code of frames, slots, SHA-256 and Ed25519; both check the base and an adapter, and write to
//! the partition.

use embedded_storage::nor_flash::NorFlash;
use rankpatch_format::adapter::Adapter;
use rankpatch_format::base::Base;
use rankpatch_runtime::receiver::{Policy, Receiver, Step};
use rankpatch_runtime::slots::Slots as Partition;
use rankpatch_runtime::trust::Identity;

use crate::flash::Mapped;
use crate::{Board, Link, Parts, Slots};

/// Bytes of RAM that taking adapters may need, beside one page of the flash.
const RAM_BYTES: usize = 2048;

/// Fails to compile if the receiver, with its frame, and the slots, without their driver, need more RAM than one page of the flash and
/// [`RAM_BYTES`].
pub(crate) const fn check_ram<B: Board, const FRAME: usize>() {
    let slots = size_of::<Partition<Mapped<B::Slots>>>() - size_of::<B::Slots>();
    assert!(size_of::<Receiver<FRAME>>() + slots <= RAM_BYTES + <B::Slots as NorFlash>::ERASE_SIZE);
}

/// Takes adapters over the link and never runs one.
pub fn receive<B: Board, const FRAME: usize>(parts: Parts<B>) -> ! {
    const { check_ram::<B, FRAME>() };
    let Parts { mut link, slots, base, .. } = parts;
    let layout = slots.layout();
    let Ok(base) = Base::new(base) else { wait(link) };
    let Ok(mut slots) = Partition::mount(Mapped(slots), layout) else { wait(link) };
    let identity = Identity { product: crate::app::product(), base_id: base.id() };
    let policy = Policy { identity, base: &base, verifier: crate::app::KEYS };
    let mut receiver = Receiver::<FRAME>::new(2);
    loop {
        let mut byte = [0];
        if link.read(&mut byte) > 0 {
            receiver.push(&byte);
        }
        while receiver.poll(&mut slots, &policy) != Step::Idle {
            let answers = receiver.pull().len();
            link.write(receiver.pull());
            receiver.pulled(answers);
        }
    }
}

/// Checks the base and what lies at the start of the partition, which it then writes over: it has the drivers of link and flash.
pub fn nothing<B: Board>(parts: Parts<B>) -> ! {
    let Parts { mut link, mut slots, base, .. } = parts;
    if let Ok(base) = Base::new(base)
        && let Ok(adapter) = Adapter::new(slots.bytes(), &base)
    {
        link.write(adapter.body().task.as_bytes());
    }
    let (mut block, page) = ([0; 64], <B::Slots as NorFlash>::ERASE_SIZE as u32);
    if link.read(&mut block) == block.len() && slots.erase(0, page).is_ok() {
        let written = slots.write(0, &block).is_ok();
        link.write(&[written.into()]);
    }
    wait(link)
}

fn wait(mut link: impl Link) -> ! {
    loop {
        let mut byte = [0];
        if link.read(&mut byte) > 0 {
            link.write(&byte);
        }
    }
}
