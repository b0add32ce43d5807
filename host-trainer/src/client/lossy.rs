//! A link that loses, repeats, reorders, damages and delays what is sent over it, by a seed: for tests of senders and devices.
//!
//! Faults hit whole frames, as they do on links that carry packets; a damaged frame has one bit flipped. The two directions
//! have their own streams of random numbers, so that what happens to one does not depend on the timing of the other.

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use rankpatch_format::digest::XorShift32;

use super::Transport;

/// How often each fault happens, per frame, and the seed.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Faults {
    /// A frame is lost.
    pub drop: f32,
    /// A frame comes twice.
    pub duplicate: f32,
    /// A frame comes after the next one.
    pub reorder: f32,
    /// One bit of a frame is flipped.
    pub corrupt: f32,
    /// The link stops for [`STALL`] before the frame.
    pub stall: f32,
    /// The seed.
    pub seed: u32,
}

/// How long a stall lasts.
pub const STALL: Duration = Duration::from_millis(300);

impl std::str::FromStr for Faults {
    type Err = String;

    /// Reads `drop=0.1,corrupt=0.02,seed=7`.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut faults = Self { seed: 1, ..Self::default() };
        for part in text.split(',') {
            let (name, value) =
                part.split_once('=').ok_or_else(|| format!("expected NAME=VALUE, found {part:?}"))?;
            if name == "seed" {
                faults.seed =
                    value.parse().map_err(|_| format!("expected a whole number, found {value:?}"))?;
                continue;
            }
            let share = match name {
                "drop" => &mut faults.drop,
                "duplicate" => &mut faults.duplicate,
                "reorder" => &mut faults.reorder,
                "corrupt" => &mut faults.corrupt,
                "stall" => &mut faults.stall,
                _ => {
                    return Err(format!(
                        "expected drop, duplicate, reorder, corrupt, stall or seed, found {name:?}"
                    ));
                }
            };
            let parsed = value.parse().ok().filter(|share| (0.0..=1.0).contains(share));
            *share = parsed.ok_or_else(|| format!("expected a number from 0 to 1, found {value:?}"))?;
        }
        Ok(faults)
    }
}

/// What happens to one frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It arrives.
    Arrives,
    /// It is lost.
    Lost,
    /// It arrives twice.
    Twice,
    /// It arrives after the next one.
    Late,
    /// It arrives with this bit flipped, counted modulo its bits.
    Damaged(u32),
    /// It arrives after a pause.
    Stalled,
}

/// Decides the fates of frames.
#[derive(Debug, Clone)]
pub struct Dice {
    faults: Faults,
    random: XorShift32,
}

impl Dice {
    /// The dice of one direction: 0 or 1.
    pub fn new(faults: Faults, direction: u32) -> Self {
        let seed = faults.seed.wrapping_mul(0x9e37_79b9) ^ (direction + 1).wrapping_mul(0x85eb_ca6b);
        let mut random = XorShift32::new(seed);
        // The first numbers of small seeds are alike.
        (0..8).for_each(|_| _ = random.next_u32());
        Self { faults, random }
    }

    /// The fate of the next frame.
    pub fn roll(&mut self) -> Fate {
        let Faults { drop, duplicate, reorder, corrupt, stall, .. } = self.faults;
        let mut at = self.random.next_u32() as f32 / u32::MAX as f32;
        let bit = self.random.next_u32();
        let choices = [
            (drop, Fate::Lost),
            (duplicate, Fate::Twice),
            (reorder, Fate::Late),
            (corrupt, Fate::Damaged(bit)),
            (stall, Fate::Stalled),
        ];
        for (share, fate) in choices {
            if at < share {
                return fate;
            }
            at -= share;
        }
        Fate::Arrives
    }
}

/// Cuts a stream into frames and lets each of them have its fate.
#[derive(Debug)]
struct Direction {
    dice: Dice,
    /// A frame that is not complete yet.
    partial: Vec<u8>,
    late: Option<Vec<u8>>,
}

impl Direction {
    fn new(faults: Faults, direction: u32) -> Self {
        Self { dice: Dice::new(faults, direction), partial: Vec::new(), late: None }
    }

    /// Passes bytes on; `into` gets what arrives, and the return value says whether the link stalls first.
    fn pass(&mut self, bytes: &[u8], into: &mut Vec<u8>) -> bool {
        let mut stalls = false;
        for byte in bytes {
            self.partial.push(*byte);
            if *byte != 0 {
                continue;
            }
            let mut frame = std::mem::take(&mut self.partial);
            // A lone delimiter is no frame.
            let fate = if frame.len() > 1 { self.dice.roll() } else { Fate::Arrives };
            let before = self.late.take();
            match fate {
                Fate::Lost => {}
                Fate::Late => self.late = Some(frame),
                Fate::Damaged(bit) => {
                    let bit = bit as usize % (frame.len() * 8);
                    frame[bit / 8] ^= 1 << (bit % 8);
                    into.extend(frame);
                }
                Fate::Twice => {
                    into.extend(&frame);
                    into.extend(frame);
                }
                Fate::Arrives | Fate::Stalled => {
                    stalls |= fate == Fate::Stalled;
                    into.extend(frame);
                }
            }
            into.extend(before.into_iter().flatten());
        }
        stalls
    }
}

/// A transport with faults.
#[derive(Debug)]
pub struct Lossy<T> {
    transport: T,
    towards: Direction,
    back: Direction,
    received: VecDeque<u8>,
}

impl<T: Transport> Lossy<T> {
    /// `transport` with faults.
    pub fn new(transport: T, faults: Faults) -> Self {
        Self {
            transport,
            towards: Direction::new(faults, 0),
            back: Direction::new(faults, 1),
            received: VecDeque::new(),
        }
    }
}

impl<T: Transport> Transport for Lossy<T> {
    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut arriving = Vec::new();
        if self.towards.pass(bytes, &mut arriving) {
            std::thread::sleep(STALL);
        }
        self.transport.send(&arriving)
    }

    fn receive(&mut self, buffer: &mut [u8], deadline: Instant) -> io::Result<usize> {
        while self.received.is_empty() {
            let mut bytes = [0; 512];
            let len = self.transport.receive(&mut bytes, deadline)?;
            if len == 0 {
                return Ok(0);
            }
            let mut arriving = Vec::new();
            if self.back.pass(&bytes[..len], &mut arriving) {
                std::thread::sleep(STALL);
            }
            self.received.extend(arriving);
        }
        let len = self.received.len().min(buffer.len());
        buffer.iter_mut().zip(self.received.drain(..len)).for_each(|(to, from)| *to = from);
        Ok(len)
    }

    fn now(&self) -> Instant {
        self.transport.now()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_read_from_text() {
        let faults: Faults = "drop=0.25,seed=9,stall=1".parse().unwrap();
        assert_eq!((faults.drop, faults.seed, faults.stall, faults.corrupt), (0.25, 9, 1.0, 0.0));
        for bad in ["drop", "drop=2", "drop=x", "lose=0.1", "seed=-1"] {
            assert!(bad.parse::<Faults>().unwrap_err().starts_with("expected "), "{bad}");
        }
    }

    #[test]
    fn faults_happen_as_often_as_they_are_asked_for() {
        let faults = Faults { drop: 0.1, duplicate: 0.05, reorder: 0.05, corrupt: 0.2, stall: 0.0, seed: 3 };
        let mut dice = Dice::new(faults, 0);
        let fates: Vec<Fate> = (0..20_000).map(|_| dice.roll()).collect();
        let share =
            |wanted: fn(&Fate) -> bool| fates.iter().filter(|fate| wanted(fate)).count() as f32 / 20_000.0;
        for (expected, found) in [
            (0.1, share(|fate| *fate == Fate::Lost)),
            (0.05, share(|fate| *fate == Fate::Twice)),
            (0.05, share(|fate| *fate == Fate::Late)),
            (0.2, share(|fate| matches!(fate, Fate::Damaged(_)))),
            (0.6, share(|fate| *fate == Fate::Arrives)),
        ] {
            assert!((found - expected).abs() < 0.01, "expected {expected}, found {found}");
        }
    }
}
