//! What both programs share: the machine, and where base and adapters are.
#![no_std]

pub mod assets;
pub mod board;

/// On a boundary of 16, where bases, adapters and arenas must lie.
#[repr(C, align(16))]
pub struct Aligned<T: ?Sized>(pub T);
