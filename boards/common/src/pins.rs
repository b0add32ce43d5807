//! Which slots of a partition are pinned, because an adapter is read from them. Knows no flash.

use core::ops::Range;

use rankpatch_runtime::slots::MAX_SLOTS;

/// One bit for each slot. What lies behind the last one, the journal, is never pinned.
#[derive(Debug, Default)]
pub(crate) struct Pins(u32);

const _: () = assert!(MAX_SLOTS <= u32::BITS as usize, "one bit for each slot");

impl Pins {
    /// Pins a slot. `None` for one that cannot exist.
    pub(crate) fn pin(&mut self, slot: usize) -> Option<()> {
        self.0 |= Self::bit(slot)?;
        Some(())
    }

    pub(crate) fn unpin(&mut self, slot: usize) {
        self.0 &= !Self::bit(slot).unwrap_or(0);
    }

    /// The first pinned slot that `range`, in bytes of the partition, touches.
    pub(crate) fn first_in(&self, range: &Range<usize>, slot_bytes: usize) -> Option<usize> {
        let slots = range.start / slot_bytes..range.end.div_ceil(slot_bytes).min(MAX_SLOTS);
        let mut pinned = slots.filter(|slot| Self::bit(*slot).is_some_and(|bit| self.0 & bit != 0));
        pinned.next().filter(|_| !range.is_empty())
    }

    fn bit(slot: usize) -> Option<u32> {
        (slot < MAX_SLOTS).then(|| 1 << slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_pinned_and_what_is_behind_them_is_not() {
        let mut pins = Pins::default();
        let first = |pins: &Pins, range: Range<usize>| pins.first_in(&range, 96);
        for slot in [0, 17, MAX_SLOTS - 1] {
            assert_eq!(pins.pin(slot), Some(()));
        }
        assert_eq!(pins.pin(MAX_SLOTS), None);
        assert_eq!(
            (first(&pins, 0..1), first(&pins, 95..96), first(&pins, 96..17 * 96)),
            (Some(0), Some(0), None)
        );
        assert_eq!((first(&pins, 96..17 * 96 + 1), first(&pins, 18 * 96..40 * 96)), (Some(17), Some(31)));
        assert_eq!(
            (first(&pins, 31 * 96..31 * 96), first(&pins, 32 * 96..50 * 96)),
            (None, None),
            "the journal"
        );
        pins.unpin(17);
        pins.unpin(MAX_SLOTS);
        assert_eq!(first(&pins, 96..31 * 96), None);
        assert_eq!(first(&pins, 96..32 * 96), Some(31));
    }
}
