//! Reads postcard's encoding without serde's machinery, which costs a device kilobytes: the operators of a graph are decoded
//! again for every token. What it accepts is what postcard accepts on a core of 32 bits; the tests compare the two.

use crate::adapter::{Body, HeadInfo, Method, Pooling, SelfTest};
use crate::base::Manifest;
use crate::graph::Op;
use crate::tokenizer::TokenizerInfo;

/// Bytes still to be read. Every method is `None` if they are not what it reads.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    #[inline(never)]
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.first_chunk().copied()
    }

    /// Groups of seven bits, the lowest first; the top bit says that one more follows.
    #[inline(never)]
    fn varint(&mut self, bits: u32) -> Option<u32> {
        match self.0.split_first() {
            // Nearly all.
            Some((byte, rest)) if *byte < 0x80 => {
                self.0 = rest;
                Some(u32::from(*byte))
            }
            _ => self.long_varint(bits),
        }
    }

    #[cold]
    fn long_varint(&mut self, bits: u32) -> Option<u32> {
        let (mut value, mut shift) = (0, 0);
        loop {
            let (byte, rest) = self.0.split_first()?;
            self.0 = rest;
            // In the last group only some bits are left, and no byte may follow.
            if shift + 7 > bits && *byte >> (bits - shift) != 0 {
                return None;
            }
            value |= u32::from(byte & 0x7f) << shift;
            shift += 7;
            if *byte < 0x80 {
                return Some(value);
            }
        }
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        Some(self.varint(16)? as u16)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.varint(32)
    }

    fn f32(&mut self) -> Option<f32> {
        Some(f32::from_le_bytes(self.array()?))
    }

    fn bool(&mut self) -> Option<bool> {
        match self.array()? {
            [0] => Some(false),
            [1] => Some(true),
            _ => None,
        }
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let len = self.u32()?;
        self.take(len as usize)
    }

    pub(crate) fn str(&mut self) -> Option<&'a str> {
        core::str::from_utf8(self.bytes()?).ok()
    }

    pub(crate) fn op(&mut self) -> Option<Op> {
        let kind = self.u32()?;
        // Every operator but these three begins with its input.
        match kind {
            0 => return Some(Op::Embedding { table: self.u16()? }),
            1 => return Some(Op::Features { width: self.u32()? }),
            18 => return self.mfcc(),
            _ => {}
        }
        let input = self.u16()?;
        Some(match kind {
            2 => {
                let weight = self.u16()?;
                let bias = if self.bool()? { Some(self.u16()?) } else { None };
                Op::Linear { input, weight, bias }
            }
            3 => Op::RmsNorm { input, weight: self.u16()?, eps: self.f32()? },
            4 => Op::LayerNorm { input, weight: self.u16()?, bias: self.u16()?, eps: self.f32()? },
            5 => Op::Rope { input, inv_freq: self.u16()? },
            6 => Op::AddPosition { input, table: self.u16()? },
            7 => Op::Attention {
                q: input,
                k: self.u16()?,
                v: self.u16()?,
                n_heads: self.u16()?,
                n_kv_heads: self.u16()?,
                causal: self.bool()?,
                scale: self.f32()?,
            },
            8 => Op::Silu { input },
            9 => Op::Gelu { input },
            10 => Op::Add { a: input, b: self.u16()? },
            11 => Op::Mul { a: input, b: self.u16()? },
            12 => Op::Scale { input, weight: self.u16()? },
            13 => Op::PrependToken { input, token: self.u16()? },
            14 => Op::SelectRow { input, row: self.u32()? },
            15 => Op::MeanPool { input },
            16 => Op::GeluErf { input },
            17 => Op::Tanh { input },
            _ => return None,
        })
    }

    #[cold]
    fn mfcc(&mut self) -> Option<Op> {
        Some(Op::Mfcc {
            sample_rate: self.u16()?,
            frame: self.u16()?,
            hop: self.u16()?,
            floor: self.f32()?,
            window: self.u16()?,
            bands: self.u16()?,
            mel: self.u16()?,
            dct: self.u16()?,
        })
    }

    pub(crate) fn manifest(&mut self) -> Option<Manifest<'a>> {
        Some(Manifest {
            name: self.str()?,
            max_rows: self.u32()?,
            pass_rows: self.u32()?,
            values_bytes: self.u32()?,
            output: self.u16()?,
            features: self.u16()?,
            ops: self.bytes()?,
            tensors: self.bytes()?,
            values: self.bytes()?,
            sites: self.bytes()?,
            labels: self.bytes()?,
            tokenizer: if self.bool()? { Some(self.tokenizer()?) } else { None },
        })
    }

    fn tokenizer(&mut self) -> Option<TokenizerInfo> {
        Some(TokenizerInfo {
            offset: self.u32()?,
            len: self.u32()?,
            vocab_size: self.u32()?,
            bos: self.u16()?,
            eos: self.u16()?,
            byte_base: self.u16()?,
            prefix_space: self.bool()?,
        })
    }

    pub(crate) fn body(&mut self) -> Option<Body<'a>> {
        Some(Body {
            task: self.str()?,
            method: match self.u32()? {
                0 => Method::LoraInt8,
                1 => Method::LoraInt8Biases(self.bytes()?),
                _ => return None,
            },
            alpha: self.f32()?,
            sites: self.bytes()?,
            head: if self.bool()? { Some(self.head()?) } else { None },
            self_test: SelfTest {
                seed: self.u32()?,
                rows: self.u16()?,
                digest: u64::from_le_bytes(self.array()?),
            },
        })
    }

    fn head(&mut self) -> Option<HeadInfo<'a>> {
        let pooling = match self.u32()? {
            0 => Pooling::Last,
            1 => Pooling::Mean,
            2 => Pooling::Every,
            3 => Pooling::Reread,
            _ => return None,
        };
        Some(HeadInfo { pooling, scales: self.bytes()?, bias: self.bytes()?, labels: self.bytes()? })
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec::Vec;

    use serde::de::DeserializeOwned;

    use super::*;
    use crate::digest::XorShift32;

    /// What postcard reads, and how much of the bytes.
    fn expected<T: DeserializeOwned>(bytes: &[u8]) -> Option<(T, usize)> {
        let (value, rest) = postcard::take_from_bytes(bytes).ok()?;
        Some((value, bytes.len() - rest.len()))
    }

    fn found<'a, T>(bytes: &'a [u8], read: impl FnOnce(&mut Reader<'a>) -> Option<T>) -> Option<(T, usize)> {
        let mut reader = Reader(bytes);
        let value = read(&mut reader)?;
        Some((value, bytes.len() - reader.0.len()))
    }

    /// Bytes that are often near the limits of varints and of the small numbers of an enum.
    fn noise(random: &mut XorShift32) -> Vec<u8> {
        let len = random.next_u32() % 40;
        let byte = |random: &mut XorShift32| match random.next_u32() >> 29 {
            0 => 0xff,
            1 => 0x80,
            2 => (random.next_u32() >> 24) as u8,
            3 => 0x0f,
            4 => 3,
            _ => (random.next_u32() >> 28) as u8,
        };
        (0..len).map(|_| byte(random)).collect()
    }

    #[test]
    fn every_byte_sequence_reads_as_postcard_reads_it() {
        let runs = if cfg!(miri) { 300 } else { 300_000 };
        let mut random = XorShift32::new(11);
        let mut ops = 0;
        for _ in 0..runs {
            let bytes = noise(&mut random);
            // A NaN is not equal to itself, its text is.
            let [op, other] =
                [expected::<Op>(&bytes), found(&bytes, Reader::op)].map(|op| std::format!("{op:?}"));
            assert_eq!(op, other, "{bytes:?}");
            ops += usize::from(op != "None");
            assert_eq!(expected::<u16>(&bytes), found(&bytes, Reader::u16), "{bytes:?}");
            assert_eq!(expected::<u32>(&bytes), found(&bytes, Reader::u32), "{bytes:?}");
            let body = postcard::take_from_bytes::<Body<'_>>(&bytes).ok().map(|(body, _)| body);
            let read = found(&bytes, Reader::body).map(|(body, _)| body);
            assert_eq!(std::format!("{body:?}"), std::format!("{read:?}"), "{bytes:?}");
        }
        assert!(ops > runs / 20, "{ops} of {runs} were operators");
    }

    #[test]
    fn manifests_cut_or_changed_read_as_postcard_reads_them() {
        let manifest = Manifest {
            name: "a base",
            max_rows: 512,
            pass_rows: 300,
            values_bytes: 70_000,
            output: 5,
            features: 4,
            ops: &[1, 2, 3],
            tensors: &[4; 130],
            values: &[],
            sites: &[5],
            labels: &[],
            tokenizer: Some(TokenizerInfo {
                offset: 1 << 31,
                len: 9,
                vocab_size: 512,
                bos: 1,
                eos: 65_535,
                byte_base: 3,
                prefix_space: true,
            }),
        };
        let bytes = postcard::to_allocvec(&manifest).unwrap();
        assert_eq!(found(&bytes, Reader::manifest), Some((manifest, bytes.len())));
        for at in 0..bytes.len() {
            assert!(found(&bytes[..at], Reader::manifest).is_none(), "cut at {at}");
            for value in [0, 1, 2, 0x7f, 0x80, 0xff] {
                let mut bytes = bytes.clone();
                bytes[at] = value;
                let expected = postcard::take_from_bytes::<Manifest<'_>>(&bytes).ok().map(|(value, _)| value);
                assert_eq!(
                    found(&bytes, Reader::manifest).map(|(value, _)| value),
                    expected,
                    "{at}: {value}"
                );
            }
        }
    }
}
