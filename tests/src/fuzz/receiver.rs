//! The receiver against a model: requests in any order, garbage between them, resets and power cuts at any time.
//!
//! What must hold after every step: the floor never falls; an installed file is one of the good ones, bit for bit; what was
//! acknowledged as installed is there after a reset, until its slot is given to another; and at the end a clean upload works.

use std::sync::OnceLock;

use rankpatch_format::base::Base;
use rankpatch_format::fixture::{self, Aligned};
use rankpatch_format::header::{self, Header, Signature};
use rankpatch_format::layout::Layout as WeightLayout;
use rankpatch_format::link::{self, Deframer, Framed, Request, Response};
use rankpatch_format::{KeyId, ProductId};
use rankpatch_runtime::receiver::{Policy, Receiver, Step};
use rankpatch_runtime::slots::{Activation, Announcement, Layout, Slots};
use rankpatch_runtime::trust::{Identity, TrustError, Verifier};

use super::Target;
use super::nor::{Nor, PAGE};

pub(super) const TARGET: Target = Target { name: "receiver", run, seeds };

const WORD: usize = 4;
const FRAME: usize = 200;
const LAYOUT: Layout = Layout::new(3, 6 * PAGE);
/// Work that one step may take: 3 slots of 6 pages, and every word of one of them.
const BUDGET: usize = 1000;
const KEY: KeyId = KeyId([7; 8]);
const PRODUCT: ProductId = ProductId([9; 16]);
/// Number of good files; the one behind them has a wrong signature.
const GOOD: usize = 4;

/// A stand-in for a signature: a digest that a forger would not think of.
fn signature(message: &[u8]) -> Signature {
    let digest = Announcement::of(message).sha256;
    std::array::from_fn(|i| digest[i % 32] ^ i as u8)
}

#[derive(Clone, Copy)]
struct Digests;

impl Verifier for Digests {
    fn verify(&self, key_id: KeyId, message: &[u8], found: &Signature) -> Result<(), TrustError> {
        self.knows(key_id)?;
        if *found == signature(message) { Ok(()) } else { Err(TrustError::BadSignature) }
    }

    fn knows(&self, key_id: KeyId) -> Result<(), TrustError> {
        if key_id == KEY { Ok(()) } else { Err(TrustError::UnknownKey { found: key_id }) }
    }
}

struct World {
    base: Base<'static>,
    /// `GOOD` files with rising sequence numbers and a bad one.
    files: Vec<Vec<u8>>,
    /// What is installed at the end, under a sequence number of its own each time.
    last: Vec<u8>,
}

impl World {
    fn get() -> &'static Self {
        static IMAGE: OnceLock<Aligned> = OnceLock::new();
        static WORLD: OnceLock<World> = OnceLock::new();
        WORLD.get_or_init(|| {
            let image = IMAGE.get_or_init(|| {
                let network = fixture::decoder();
                Aligned::new(&network.write(WeightLayout::RowMajor, 2).expect("a valid network"))
            });
            let base = Base::new(image.bytes()).expect("a valid image");
            let mut files: Vec<Vec<u8>> = (1..=GOOD as u32 + 1).map(|n| Self::file(n, n)).collect();
            let last = files[GOOD].len() - 1;
            files[GOOD][last] ^= 1;
            Self { base, files, last: Self::file(99, 1) }
        })
    }

    /// A signed file for the base.
    fn file(seed: u32, sequence: u32) -> Vec<u8> {
        let network = fixture::decoder();
        let data = fixture::adapter(&network, &[(0, 1 + seed as usize % 3), (2, 1)], None, 0.1, seed);
        Self::signed(data.write().expect("a valid adapter"), sequence)
    }

    /// `file` with this sequence number.
    fn signed(mut file: Vec<u8>, sequence: u32) -> Vec<u8> {
        let found = Header::new(&file).expect("a header");
        let header = Header { sequence, step_limit: 1000, key_id: KEY, product: PRODUCT, ..found };
        header::set_header(&mut file, &header).expect("a whole file");
        let signed = signature(header::split_signature(&file).expect("a whole file").0);
        header::set_signature(&mut file, &signed).expect("a whole file");
        file
    }
}

struct Device {
    base: Base<'static>,
    slots: Option<Slots<Nor<WORD>>>,
    receiver: Box<Receiver<FRAME>>,
    answers: Deframer,
    /// The highest floor seen.
    floor: u32,
    /// For each slot the file that was acknowledged as installed in it.
    acknowledged: [Option<&'static [u8]>; 3],
}

impl Device {
    fn new() -> Self {
        let mut device = Self {
            base: World::get().base,
            slots: None,
            receiver: Box::new(Receiver::new(2)),
            answers: Deframer::new(),
            floor: 0,
            acknowledged: [None; 3],
        };
        device.mount(Nor::new(&[], LAYOUT.partition_bytes(PAGE), 0xFF));
        device
    }

    fn mount(&mut self, flash: Nor<WORD>) {
        *self.receiver = Receiver::new(2);
        self.slots = Some(Slots::mount(flash, LAYOUT).expect("a journal of its own"));
    }

    fn slots(&mut self) -> &mut Slots<Nor<WORD>> {
        self.slots.as_mut().expect("mounted between two steps")
    }

    fn reset(&mut self) {
        let flash = self.slots.take().expect("mounted between two steps").into_flash();
        self.mount(flash.after_reset());
    }

    /// Sends bytes and lets the device work until it is idle.
    fn send(&mut self, mut bytes: &[u8], request: Option<Request<'_>>) {
        let identity = Identity { product: PRODUCT, base_id: self.base.id() };
        for _ in 0..BUDGET {
            let taken = self.receiver.push(bytes);
            bytes = &bytes[taken..];
            let slots = self.slots.as_mut().expect("mounted between two steps");
            let policy = Policy { identity, base: &self.base, verifier: Digests };
            let idle = matches!(self.receiver.poll(slots, &policy), Step::Idle);
            let answer = self.receiver.pull();
            for byte in answer {
                match self.answers.push(*byte) {
                    Framed::Bad => panic!("the device sent a bad frame"),
                    Framed::Message(message) => {
                        let (_, response) = link::decode::<Response<'_>>(message).expect("a response");
                        if let (Some(Request::Finish), Response::Slot { slot, adapter: Some(adapter), .. }) =
                            (request, response)
                        {
                            let file = World::get()
                                .files
                                .iter()
                                .find(|file| Header::new(file).is_ok_and(|h| h.sequence == adapter.sequence));
                            self.acknowledged[usize::from(slot)] = file.map(Vec::as_slice);
                        }
                    }
                    Framed::Incomplete => {}
                }
            }
            let answered = answer.len();
            self.receiver.pulled(answered);
            if idle && answered == 0 && bytes.is_empty() {
                return;
            }
        }
        panic!("the device works without end");
    }

    fn request(&mut self, request: Request<'_>) {
        let mut frame = [0; 512];
        let frame = link::encode(1, &request, &mut frame).expect("a request that fits").to_vec();
        // What is begun or removed may cost a slot its file: only slots that are in use are safe then.
        if matches!(request, Request::Begin { .. } | Request::Remove { .. }) {
            let state = *self.slots().state();
            for (slot, file) in self.acknowledged.iter_mut().enumerate() {
                *file = file.filter(|_| state.is_in_use(slot));
            }
        }
        self.send(&frame, Some(request));
    }

    fn check(&mut self) {
        let slots = self.slots.as_ref().expect("mounted between two steps");
        let floor = slots.state().floor;
        assert!(floor >= self.floor, "the floor fell from {} to {floor}", self.floor);
        self.floor = floor;
        for slot in 0..slots.n_slots() {
            if slots.state().is_installed(slot) {
                let file = slots.verified(slot).expect("an installed file is whole");
                let good = World::get().files[..GOOD].iter().any(|good| good == file);
                assert!(good || file.len() > 64 && Header::new(file).is_ok_and(|h| h.sequence > 1000));
            }
            if let Some(file) = self.acknowledged[slot] {
                assert_eq!(slots.file(slot), Ok(file), "what was acknowledged is gone from slot {slot}");
            }
        }
    }
}

/// Two bytes are a step and its argument; garbage takes the bytes behind it.
fn run(data: &[u8]) {
    let mut device = Device::new();
    let world = World::get();
    let mut announced = 0;
    let mut rest = data;
    for _ in 0..64 {
        let [step, argument, tail @ ..] = rest else { break };
        rest = tail;
        let argument = usize::from(*argument);
        let file: &'static [u8] = &world.files[announced];
        let chunk = |offset: usize, corrupt: bool| {
            let offset = (offset / 32 * 32).min(file.len() / 32 * 32);
            let mut data = file[offset..file.len().min(offset + Receiver::<FRAME>::CHUNK_BYTES)].to_vec();
            if let (true, Some(byte)) = (corrupt, data.first_mut()) {
                *byte ^= 0x40;
            }
            (offset as u32, data)
        };
        match step % 12 {
            0 => {
                announced = argument % world.files.len();
                let file = &world.files[announced];
                let sha256 = Announcement::of(file).sha256;
                let slot = Some((argument >> 3) as u8).filter(|slot| *slot < 5);
                device.request(Request::Begin { slot, header: &file[..64], sha256: &sha256 });
            }
            // The next chunks.
            1 | 2 => {
                for _ in 0..=argument % 8 {
                    let next = device.slots().upload().map_or(0, |(_, _, progress)| progress.next());
                    let (offset, data) = chunk(next as usize, false);
                    device.request(Request::Chunk { answer: argument & 8 != 0, offset, data: &data });
                }
            }
            3 => {
                let (offset, data) = chunk(argument * 16, argument & 1 == 1);
                device.request(Request::Chunk { answer: true, offset, data: &data });
            }
            4 => device.request(Request::Finish),
            5 => device.request(Request::Abort),
            6 => device.request(Request::Remove { slot: (argument % 4) as u8 }),
            7 => device.reset(),
            8 => {
                let (garbage, behind) = rest.split_at(rest.len().min(argument));
                rest = behind;
                device.send(garbage, None);
                device.send(&[0], None);
            }
            // The power is cut inside some operation of the next step.
            9 => {
                let flash = device.slots().flash_mut();
                flash.cut_after(1 + argument, 0x9E37_79B9 ^ argument as u32);
                device.request(Request::Finish);
                let (offset, data) = chunk(argument * 4, false);
                device.request(Request::Chunk { answer: true, offset, data: &data });
                let next = device.slots().upload().map_or(0, |(_, _, progress)| progress.next());
                let (offset, data) = chunk(next as usize, false);
                device.request(Request::Chunk { answer: true, offset, data: &data });
                device.reset();
            }
            10 => {
                let slot = argument % 3;
                if device.slots().start_trial(Activation { slot, flag: argument & 8 != 0 }).is_ok() {
                    let _ = device.slots().confirm();
                }
            }
            _ => {
                let slot = argument % 3;
                let _ = device.slots().roll_back(slot);
            }
        }
        device.check();
    }
    device.reset();
    device.check();
    // A clean upload, whatever was before.
    let file = World::signed(world.last.clone(), device.floor + 1000);
    let sha256 = Announcement::of(&file).sha256;
    device.request(Request::Abort);
    device.request(Request::Begin { slot: None, header: &file[..64], sha256: &sha256 });
    for (i, data) in file.chunks(Receiver::<FRAME>::CHUNK_BYTES).enumerate() {
        let offset = (i * Receiver::<FRAME>::CHUNK_BYTES) as u32;
        device.request(Request::Chunk { answer: false, offset, data });
    }
    device.request(Request::Finish);
    let announcement = Announcement::of(&file);
    device.reset();
    let slot = device.slots().find(&announcement).expect("a clean upload is installed");
    assert_eq!(device.slots().verified(slot), Ok(&file[..]));
}

fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let upload = |file: u8| [0, file | 0xF8, 1, 7, 1, 7, 4, 0];
    vec![
        ("install", upload(0).to_vec()),
        ("two-and-a-reset", [&upload(0)[..], &[10, 0, 7, 0], &upload(1), &[7, 0, 4, 0]].concat()),
        ("cut", [&[0, 0xF8, 1, 2, 9, 3, 0, 0xF8, 1, 7, 1, 7, 9, 1, 4, 0][..]].concat()),
        ("bad-signature", upload(4).to_vec()),
        ("garbage", [&[0, 0xF8, 8, 5, 1, 2, 0, 4, 5][..], &upload(2)].concat()),
    ]
}
