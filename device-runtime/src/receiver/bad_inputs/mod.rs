//! The fifty bad inputs that a receiver must survive, each a test with its number; this file holds the bench that they share. Every
//! test ends with a good upload: whatever came before, the device still works.
#![allow(clippy::indexing_slicing, reason = "test data of known sizes")]

extern crate std;

mod files;
mod frames;
mod slots;

use std::sync::LazyLock;
use std::vec;
use std::vec::Vec;

use ed25519_dalek::{Signer as _, SigningKey};
use embedded_storage::nor_flash::{ErrorType, NorFlash, NorFlashErrorKind, ReadNorFlash};
use rankpatch_format::base::Base;
use rankpatch_format::fixture::{self, Aligned};
use rankpatch_format::header::{self, HEADER_BYTES, Header};
use rankpatch_format::layout::Layout as Weights;
use rankpatch_format::link::{Deframer, ErrorCode, Framed, MAX_FRAME_BYTES, decode, encode};
use rankpatch_format::write::{AdapterData, Network};
use rankpatch_format::{KeyId, ProductId};

use super::*;
use crate::slots::{Announcement, Layout, Resume};
use crate::trust::Keys;

const FRAME: usize = MAX_FRAME_BYTES;
pub(super) const CHUNK: usize = Receiver::<FRAME>::CHUNK_BYTES;
pub(super) const N_SLOTS: usize = 3;
pub(super) const SLOT: usize = 16 * 1024;
pub(super) const PAGE: usize = 1024;

/// The base, and its network.
pub(super) static BASE: LazyLock<(Aligned, Network)> = LazyLock::new(|| {
    let network = fixture::decoder();
    (Aligned::new(&network.write(Weights::RowMajor, 4).unwrap()), network)
});

pub(super) fn base() -> Base<'static> {
    Base::new(BASE.0.bytes()).unwrap()
}

pub(super) fn signing_key() -> SigningKey {
    SigningKey::from_bytes(&[0x5a; 32])
}

pub(super) fn product() -> ProductId {
    ProductId::of("bench")
}

/// What a flash does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Fault {
    #[default]
    None,
    WriteError,
    EraseError,
    /// Says that it wrote, and did not.
    SilentWrite,
    /// Says that it erased, and did not.
    SilentErase,
    /// Reads a bit wrong after each write.
    FlippedBit,
}

/// NOR flash with faults from the `fault_at`th operation on. A word is written once per erase.
#[derive(Debug, Clone)]
pub(super) struct Flash {
    pub(super) bytes: Vec<u8>,
    written: Vec<bool>,
    pub(super) erases: usize,
    pub(super) writes: usize,
    pub(super) fault: Fault,
    pub(super) fault_at: usize,
}

impl Flash {
    pub(super) fn of(bytes: Vec<u8>) -> Self {
        let written = bytes.chunks(4).map(|word| word != [0xff; 4]).collect();
        Self { bytes, written, erases: 0, writes: 0, fault: Fault::None, fault_at: 0 }
    }

    fn faulty(&self) -> Fault {
        if self.erases + self.writes > self.fault_at { self.fault } else { Fault::None }
    }
}

impl ErrorType for Flash {
    type Error = NorFlashErrorKind;
}

impl ReadNorFlash for Flash {
    const READ_SIZE: usize = 1;
    fn read(&mut self, offset: u32, bytes: &mut [u8]) -> Result<(), NorFlashErrorKind> {
        bytes.copy_from_slice(&self.bytes[offset as usize..][..bytes.len()]);
        Ok(())
    }
    fn capacity(&self) -> usize {
        self.bytes.len()
    }
}

impl NorFlash for Flash {
    const WRITE_SIZE: usize = 4;
    const ERASE_SIZE: usize = PAGE;
    fn erase(&mut self, from: u32, to: u32) -> Result<(), NorFlashErrorKind> {
        self.erases += 1;
        match self.faulty() {
            Fault::EraseError => return Err(NorFlashErrorKind::Other),
            Fault::SilentErase => return Ok(()),
            _ => {}
        }
        self.bytes[from as usize..to as usize].fill(0xff);
        self.written[from as usize / 4..to as usize / 4].fill(false);
        Ok(())
    }
    fn write(&mut self, offset: u32, bytes: &[u8]) -> Result<(), NorFlashErrorKind> {
        self.writes += 1;
        match self.faulty() {
            Fault::WriteError => return Err(NorFlashErrorKind::Other),
            Fault::SilentWrite => return Ok(()),
            _ => {}
        }
        let at = offset as usize;
        assert!(at.is_multiple_of(4) && bytes.len().is_multiple_of(4), "a write is not of whole words");
        for (word, bytes) in (at / 4..).zip(bytes.chunks(4)) {
            assert!(!std::mem::replace(&mut self.written[word], true), "word {word} is written twice");
            self.bytes[word * 4..][..4].copy_from_slice(bytes);
        }
        if self.faulty() == Fault::FlippedBit {
            self.bytes[at] ^= 0x20;
        }
        Ok(())
    }
}

impl MappedFlash for Flash {
    fn mapped(&self) -> &[u8] {
        &self.bytes
    }
}

/// What a device answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Said {
    Progress {
        slot: u8,
        next: u32,
    },
    Installed {
        slot: u8,
        sequence: u32,
    },
    Empty {
        slot: u8,
    },
    Done,
    Refused(ErrorCode),
    /// The application was asked.
    Application,
}

/// A device with a receiver, and the host's end of its wire.
pub(super) struct Bench {
    pub(super) slots: Option<Slots<Flash>>,
    pub(super) receiver: Receiver<FRAME>,
    id: u8,
    /// Most erases that one poll did.
    pub(super) most_erases: usize,
}

pub(super) fn layout() -> Layout {
    Layout { resume: Resume::Word, ..Layout::new(N_SLOTS, SLOT) }
}

impl Bench {
    pub(super) fn new() -> Self {
        Self::on(Flash::of(vec![0xff; layout().partition_bytes(PAGE)]))
    }

    pub(super) fn on(flash: Flash) -> Self {
        let slots = Some(Slots::mount(flash, layout()).unwrap());
        Self { slots, receiver: Receiver::new(4), id: 0, most_erases: 0 }
    }

    pub(super) fn slots(&mut self) -> &mut Slots<Flash> {
        self.slots.as_mut().unwrap()
    }

    pub(super) fn flash(&mut self) -> &mut Flash {
        self.slots().flash_mut()
    }

    /// All that is in RAM is lost.
    pub(super) fn reset(&mut self) {
        let flash = self.slots.take().unwrap().into_flash();
        self.slots = Some(Slots::mount(flash, layout()).unwrap());
        self.receiver = Receiver::new(4);
    }

    /// Sends bytes and returns the answers.
    pub(super) fn wire(&mut self, bytes: &[u8]) -> Vec<Said> {
        let base = base();
        let identity = Identity { product: product(), base_id: base.id() };
        let verifier = Keys::one(signing_key().verifying_key().to_bytes());
        let policy = Policy { identity, base: &base, verifier };
        let (mut taken, mut said) = (0, Vec::new());
        // Far more polls than any input needs: none may keep it busy for ever.
        for _ in 0..100_000 {
            taken += self.receiver.push(&bytes[taken..]);
            let slots = self.slots.as_mut().unwrap();
            let erases = slots.flash().erases;
            let step = self.receiver.poll(slots, &policy);
            let idle = step == Step::Idle;
            if matches!(step, Step::Request { .. }) {
                said.push(Said::Application);
            }
            self.most_erases = self.most_erases.max(slots.flash().erases - erases);
            let answers = self.receiver.pull().to_vec();
            self.receiver.pulled(answers.len());
            said.extend(read(&answers));
            if idle && answers.is_empty() && taken == bytes.len() {
                return said;
            }
        }
        panic!("the receiver does not come to rest");
    }

    pub(super) fn ask(&mut self, request: &Request<'_>) -> Said {
        self.id = self.id.wrapping_add(1).max(1);
        let said = self.wire(&frame(self.id, request));
        assert_eq!(said.len(), 1, "one answer to {request:?}: {said:?}");
        said[0]
    }

    pub(super) fn begin(&mut self, slot: Option<u8>, file: &[u8]) -> Said {
        let announcement = Announcement::of(file);
        let header = file.get(..HEADER_BYTES).unwrap_or(file);
        self.ask(&Request::Begin { slot, header, sha256: &announcement.sha256 })
    }

    pub(super) fn chunk(&mut self, offset: u32, data: &[u8]) -> Said {
        self.ask(&Request::Chunk { answer: true, offset, data })
    }

    /// Sends what is missing of a file, in chunks, from `next` on, but does not finish.
    pub(super) fn send_from(&mut self, next: u32, file: &[u8]) {
        let mut at = next as usize;
        while at < file.len() {
            let end = file.len().min(at + CHUNK);
            let said = self.chunk(at as u32, &file[at..end]);
            assert!(matches!(said, Said::Progress { next, .. } if next as usize == end), "{said:?} at {at}");
            at = end;
        }
    }

    /// Uploads a file, wherever it goes on.
    pub(super) fn upload(&mut self, slot: Option<u8>, file: &[u8]) -> Said {
        match self.begin(slot, file) {
            Said::Progress { next, .. } => {
                self.send_from(next, file);
                self.ask(&Request::Finish)
            }
            refused => refused,
        }
    }

    /// After all that: a good adapter can be installed.
    pub(super) fn still_works(&mut self) {
        self.wire(&[0]);
        self.ask(&Request::Abort);
        let sequence = self.slots().state().floor + 1;
        let said = self.upload(None, &good(sequence));
        assert!(matches!(said, Said::Installed { sequence: found, .. } if found == sequence), "{said:?}");
    }
}

pub(super) fn frame(id: u8, request: &Request<'_>) -> Vec<u8> {
    let mut buffer = [0; 2 * MAX_FRAME_BYTES];
    encode(id, request, &mut buffer).unwrap().to_vec()
}

pub(super) fn read(bytes: &[u8]) -> Vec<Said> {
    let mut deframer: Deframer = Deframer::new();
    let mut said = Vec::new();
    for byte in bytes {
        let Framed::Message(message) = deframer.push(*byte) else { continue };
        said.push(match decode::<Response<'_>>(message).unwrap().1 {
            Response::Progress { slot, next } => Said::Progress { slot, next },
            Response::Slot { slot, adapter: Some(adapter), .. } => {
                Said::Installed { slot, sequence: adapter.sequence }
            }
            Response::Slot { slot, adapter: None, .. } => Said::Empty { slot },
            Response::Done => Said::Done,
            Response::Error { code, .. } => Said::Refused(code),
            other => panic!("unexpected {other:?}"),
        });
    }
    said
}

/// The content of a good adapter, about 3 KB.
pub(super) fn data(sequence: u32) -> AdapterData {
    let mut data =
        fixture::adapter(&BASE.1, &[(0, 30), (2, 40), (5, 50)], Some(7), 0.3, sequence.wrapping_add(1));
    data.sequence = sequence;
    data
}

pub(super) fn good(sequence: u32) -> Vec<u8> {
    signed(&data(sequence), 1000)
}

pub(super) fn signed(data: &AdapterData, step_limit: u32) -> Vec<u8> {
    let mut file = data.write().unwrap();
    let header = header::check(&file).unwrap();
    let key_id = KeyId::of(&signing_key().verifying_key().to_bytes());
    resign(&mut file, &Header { step_limit, key_id, product: product(), ..header });
    file
}

/// Gives a file another header, the right checksum and a genuine signature.
pub(super) fn resign(file: &mut [u8], header: &Header) {
    header::set_header(file, header).unwrap();
    let (message, _) = header::split_signature(file).unwrap();
    let signature = signing_key().sign(message).to_bytes();
    header::set_signature(file, &signature).unwrap();
}
