//! Merged weights of every type, in RAM and in flash, against the definition and each other.

extern crate std;

use std::vec;
use std::vec::Vec;

use embedded_storage::nor_flash::{ErrorType, NorFlash, NorFlashError, NorFlashErrorKind, ReadNorFlash};
use rankpatch_format::fixture;
use rankpatch_format::layout::Layout;

use super::*;
use crate::slots::MappedFlash;
use crate::tests::{all_sites, image, memory, run};
use crate::{Engine, arena_bytes};

const KINDS: [MergedType; 3] = [MergedType::Int8, MergedType::Int8Feedback, MergedType::Int16];

/// Flash on a boundary of 16, with words written once per erase, that fails after so many operations.
struct Flash {
    words: Vec<u128>,
    written: Vec<bool>,
    operations_left: usize,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Cut;

impl NorFlashError for Cut {
    fn kind(&self) -> NorFlashErrorKind {
        NorFlashErrorKind::Other
    }
}

impl Flash {
    fn new(bytes: usize) -> Self {
        let words = vec![0x5555_5555_5555_5555_5555_5555_5555_5555; bytes / 16];
        Self { words, written: vec![true; bytes / 8], operations_left: usize::MAX }
    }

    fn operation(&mut self) -> core::result::Result<(), Cut> {
        self.operations_left = self.operations_left.checked_sub(1).ok_or(Cut)?;
        Ok(())
    }
}

impl ErrorType for Flash {
    type Error = Cut;
}

impl ReadNorFlash for Flash {
    const READ_SIZE: usize = 1;

    fn read(&mut self, offset: u32, bytes: &mut [u8]) -> core::result::Result<(), Cut> {
        bytes.copy_from_slice(&self.mapped()[offset as usize..][..bytes.len()]);
        Ok(())
    }

    fn capacity(&self) -> usize {
        self.words.len() * 16
    }
}

impl NorFlash for Flash {
    const WRITE_SIZE: usize = 8;
    const ERASE_SIZE: usize = 256;

    fn erase(&mut self, from: u32, to: u32) -> core::result::Result<(), Cut> {
        assert!(from.is_multiple_of(256) && to.is_multiple_of(256));
        self.operation()?;
        self.words[from as usize / 16..to as usize / 16].fill(u128::MAX);
        self.written[from as usize / 8..to as usize / 8].fill(false);
        Ok(())
    }

    fn write(&mut self, offset: u32, bytes: &[u8]) -> core::result::Result<(), Cut> {
        assert!(offset.is_multiple_of(8) && bytes.len().is_multiple_of(8));
        self.operation()?;
        for written in &mut self.written[offset as usize / 8..][..bytes.len() / 8] {
            assert!(!*written, "a word is written once");
            *written = true;
        }
        bytemuck::cast_slice_mut::<u128, u8>(&mut self.words)[offset as usize..][..bytes.len()]
            .copy_from_slice(bytes);
        Ok(())
    }
}

impl MappedFlash for Flash {
    fn mapped(&self) -> &[u8] {
        bytemuck::cast_slice(&self.words)
    }
}

/// Runs `body` with a base, and an adapter that patches most of its sites.
fn with_adapter(layout: Layout, body: impl Fn(&Base<'_>, &Adapter<'_>)) {
    for network in [fixture::decoder(), fixture::encoder()] {
        let ranks = all_sites(&network, |site| 1 + usize::from(site) % 5);
        let file = fixture::adapter(&network, &ranks[1..], None, 0.4, 2).write().unwrap();
        let image = image(&network, layout, 3);
        let base = Base::new(image.bytes()).unwrap();
        body(&base, &Adapter::new(&file, &base).unwrap());
    }
}

#[test]
fn every_type_has_the_same_bits_in_every_layout_and_place() {
    let mut seen: [Vec<Vec<u64>>; 3] = Default::default();
    for (layout, seen) in Layout::ALL.into_iter().zip(&mut seen) {
        let digests = core::cell::RefCell::new(Vec::new());
        with_adapter(layout, |base, adapter| {
            let mut of_kinds = Vec::new();
            for kind in KINDS {
                let (mut arena, mut room) =
                    (memory(arena_bytes(base, 24)), memory(merged_bytes(base, adapter, kind)));
                let mut flash = Flash::new(1 << 16);
                let mut scratch = memory(flash_scratch_bytes(base, adapter));
                let region = (512, (1 << 16) - 512);
                let scratch = scratch.bytes_mut();
                let len = merge_into_flash(base, adapter, kind, &mut flash, region, scratch).unwrap();
                assert_eq!(len, merged_image_bytes(base, adapter, kind));
                let mut engine = Engine::new(*base, arena.bytes_mut(), 24).unwrap();
                let plain = run(&mut engine);
                engine.attach_merged(*adapter, kind, room.bytes_mut()).unwrap();
                let in_ram = run(&mut engine);
                let attachment = engine.attach_image(*adapter, &flash.mapped()[512..]).unwrap();
                assert_eq!(attachment.weight_bytes_copied, 0);
                assert_eq!(run(&mut engine), in_ram, "{kind:?} {layout:?}");
                engine.detach();
                assert_eq!(run(&mut engine), plain);
                of_kinds.extend([in_ram, plain]);
            }
            assert!(of_kinds[0] != of_kinds[2] && of_kinds[0] != of_kinds[4], "{of_kinds:?}");
            digests.borrow_mut().push(of_kinds);
        });
        *seen = digests.into_inner();
    }
    assert!(seen.iter().all(|digests| *digests == seen[0]), "{seen:x?}");
}

#[test]
fn a_cut_merge_leaves_no_image() {
    with_adapter(Layout::RowMajor, |base, adapter| {
        let mut scratch = memory(flash_scratch_bytes(base, adapter));
        let mut complete = Flash::new(1 << 16);
        let kind = MergedType::Int8Feedback;
        let before = usize::MAX - {
            merge_into_flash(base, adapter, kind, &mut complete, (0, 1 << 16), scratch.bytes_mut()).unwrap();
            complete.operations_left
        };
        assert!(before > 5);
        for operations_left in 0..before {
            // The image before is gone with the first operation.
            let mut flash =
                Flash { words: complete.words.clone(), written: complete.written.clone(), operations_left };
            let error = merge_into_flash(base, adapter, kind, &mut flash, (0, 1 << 16), scratch.bytes_mut())
                .unwrap_err();
            assert_eq!(error, FlashMergeError::Flash(Cut));
            let found = MergedImage::new(base, adapter, flash.mapped()).err();
            assert_eq!(found, if operations_left == 0 { None } else { Some(Error::NotMerged) });
        }
        // Any damage is found.
        for at in (0..merged_image_bytes(base, adapter, kind)).step_by(97) {
            let mut flash = Flash { words: complete.words.clone(), written: Vec::new(), operations_left: 0 };
            bytemuck::cast_slice_mut::<u128, u8>(&mut flash.words)[at] ^= 4;
            assert_eq!(MergedImage::new(base, adapter, flash.mapped()).err(), Some(Error::NotMerged), "{at}");
        }
        let small = merge_into_flash(base, adapter, kind, &mut complete, (0, 256), scratch.bytes_mut());
        assert!(matches!(small, Err(FlashMergeError::Merge(Error::MergeBufferTooSmall { found: 256, .. }))));
    });
}

#[test]
fn losses_are_those_of_the_merged_weights() {
    with_adapter(Layout::Dsp4x4, |base, adapter| {
        let mut scratch = memory(loss_scratch_bytes(base));
        let mut losses = KINDS.map(|kind| {
            let mut losses = Vec::new();
            site_losses(base, adapter, kind, scratch.bytes_mut(), |site, loss| losses.push((site, loss)))
                .unwrap();
            losses
        });
        for (w, patch) in patched(base, adapter) {
            let [nearest, feedback, wide] = losses.each_mut().map(|losses| losses.remove(0).1);
            let mut update = 0.0;
            for o in 0..w.rows {
                for i in 0..w.cols {
                    let sum: f64 = (0..patch.rank)
                        .zip(patch.component_scales())
                        .map(|(j, c)| {
                            f64::from(patch.lora_b[o * patch.rank + j])
                                * f64::from(c)
                                * f64::from(patch.lora_a[j * w.cols + i])
                        })
                        .sum();
                    update += (sum * f64::from(w.scales.get(o).unwrap())).powi(2);
                }
            }
            assert!((nearest.update / update - 1.0).abs() < 1e-3, "{} {update}", nearest.update);
            assert!(wide.error < nearest.error * 1e-3 && wide.error > 0.0, "{wide:?} {nearest:?}");
            // Feedback never beats the nearest code weight by weight.
            assert!(feedback.error >= nearest.error * 0.999, "{feedback:?} {nearest:?}");
            assert!(nearest.error < nearest.base);
        }
    });
}

#[test]
fn feedback_keeps_what_single_roundings_lose() {
    // A row of zeros and one large weight, plus an update of a fifth of a step everywhere.
    let sums: [f32; 101] = core::array::from_fn(|i| if i == 0 { 127.0 } else { 0.2 });
    let mut codes = [0; 101];
    let scale = feedback(&sums, &mut codes);
    let total: i32 = codes[1..].iter().map(|code| i32::from(*code)).sum();
    assert_eq!((scale, total), (1.0, 20));
    kernels::quantize(&sums, &mut codes);
    assert!(codes[1..].iter().all(|code| *code == 0));
}

#[test]
fn an_estimate_counts_multiplications_and_memory() {
    with_adapter(Layout::RowMajor, |base, adapter| {
        let found = estimate(base, adapter);
        let streamed: usize = patched(base, adapter).map(|(w, p)| p.rank * (w.rows + w.cols)).sum();
        assert_eq!((found.streamed.macs, found.streamed.memory), (streamed as u64, 0));
        assert_eq!(found.int8.memory, merged_bytes(base, adapter, MergedType::Int8));
        assert!(found.int16.memory > found.int8.memory && found.int8.macs == 0);
        assert!(found.base_macs > streamed as u64 && found.merge_macs > 0);
    });
}
