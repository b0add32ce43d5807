//! Numbers of a base image, in place: as f32, or as the halves that say the same. Knows no tensors.

use half::f16;

/// Numbers in place.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Floats<'a> {
    /// As they are.
    F32(&'a [f32]),
    /// As halves, which is exact.
    F16(&'a [f16]),
}

impl<'a> Floats<'a> {
    /// No numbers.
    pub const EMPTY: Self = Self::F32(&[]);

    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(numbers) => numbers.len(),
            Self::F16(halves) => halves.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number `index`.
    pub fn get(&self, index: usize) -> Option<f32> {
        match self {
            Self::F32(numbers) => numbers.get(index).copied(),
            Self::F16(halves) => halves.get(index).map(|half| to_f32(*half)),
        }
    }

    /// The numbers, one after the other.
    pub fn iter(self) -> impl Iterator<Item = f32> + 'a {
        (0..self.len()).filter_map(move |index| self.get(index))
    }

    /// `len` numbers from `start`; none if there are not so many.
    #[must_use]
    pub fn part(&self, start: usize, len: usize) -> Self {
        let range = start..start.saturating_add(len);
        match self {
            Self::F32(numbers) => Self::F32(numbers.get(range).unwrap_or(&[])),
            Self::F16(halves) => Self::F16(halves.get(range).unwrap_or(&[])),
        }
    }

    /// Numbers that [`Room::read`] needs room for.
    pub fn halves(&self) -> usize {
        match self {
            Self::F32(_) => 0,
            Self::F16(halves) => halves.len(),
        }
    }
}

/// A half that was checked to be finite, as f32: its exponent and fraction at f32's places are 2^112 times too small, subnormal or
/// not. Fewer instructions than telling the cases apart.
fn widen(half: f16) -> f32 {
    const SCALE: f32 = f32::from_bits((112 + 127) << 23);
    let bits = u32::from(half.to_bits());
    let magnitude = f32::from_bits((bits & 0x7FFF) << 13) * SCALE;
    f32::from_bits(magnitude.to_bits() | (bits & 0x8000) << 16)
}

/// Any half as f32.
// One copy, and half as large as that of `half`, which is written for cores without floats.
#[inline(never)]
pub(crate) fn to_f32(half: f16) -> f32 {
    let wide = widen(half);
    if half.is_finite() { wide } else { f32::from_bits(wide.to_bits() | f32::INFINITY.to_bits()) }
}

/// Memory in which halves are read as f32, from its front on.
#[derive(Debug)]
pub struct Room<'r>(pub &'r mut [f32]);

impl<'r> Room<'r> {
    /// The numbers as f32: where they are, or in the next [`Floats::halves`] places of the room. None if there is too little.
    #[inline]
    pub fn read<'a: 'r>(&mut self, numbers: Floats<'a>) -> &'r [f32] {
        match numbers {
            Floats::F32(numbers) => numbers,
            Floats::F16(halves) => self.widened(halves),
        }
    }

    fn widened(&mut self, halves: &[f16]) -> &'r [f32] {
        let room = core::mem::take(&mut self.0);
        let Some((taken, rest)) = room.split_at_mut_checked(halves.len()) else { return &[] };
        self.0 = rest;
        taken.iter_mut().zip(halves).for_each(|(number, half)| *number = widen(*half));
        taken
    }
}

/// Whether every number is a finite half, so that nothing is lost by writing halves.
#[cfg(feature = "alloc")]
pub(crate) fn are_halves(numbers: &[f32]) -> bool {
    numbers
        .iter()
        .all(|number| number.is_finite() && f16::from_f32(*number).to_f32().to_bits() == number.to_bits())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_take_room_and_f32_do_not() {
        let numbers = [0.5, -3.25, 6.0e-8, 65_504.0].map(|x: f32| f16::from_f32(x).to_f32());
        let halves = numbers.map(f16::from_f32);
        let mut memory = [7.0; 9];
        let mut room = Room(&mut memory);
        let (first, second) = (Floats::F16(&halves), Floats::F16(&halves).part(1, 2));
        assert_eq!((first.halves(), second.halves(), Floats::F32(&numbers).halves()), (4, 2, 0));
        assert_eq!(room.read(first), numbers);
        assert_eq!(room.read(second), &numbers[1..3]);
        assert_eq!(room.read(Floats::F32(&numbers)), numbers);
        assert_eq!(room.0.len(), 3);
        assert!(room.read(first).is_empty(), "too little room");
        assert!(first.iter().eq(numbers));
        assert_eq!((first.get(3), first.get(4)), (Some(65_504.0), None));
        assert!(first.part(2, 3).is_empty() && Floats::EMPTY.part(usize::MAX, 1).is_empty());
    }

    #[test]
    fn every_finite_half_is_widened_exactly() {
        for half in (0..=u16::MAX).map(f16::from_bits).filter(|half| half.is_finite()) {
            assert_eq!(widen(half).to_bits(), half.to_f32().to_bits(), "{half:?}");
        }
        for half in (0..=u16::MAX).map(f16::from_bits) {
            let (found, expected) = (to_f32(half), half.to_f32());
            assert!(found == expected || found.is_nan() && expected.is_nan(), "{half:?}: {found}");
        }
    }

    #[test]
    #[cfg(feature = "alloc")]
    fn what_halves_lose_is_not_halved() {
        assert!(are_halves(&[1.0, -0.0, 6.103_515_6e-5, 5.960_464_5e-8, 2049.0 - 1.0]));
        for lost in [0.1, 2049.0, 1e-8, 65_536.0, f32::NAN, f32::INFINITY] {
            assert!(!are_halves(&[1.0, lost]), "{lost}");
        }
    }
}
