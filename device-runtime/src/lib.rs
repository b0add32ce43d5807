//! Inference with LoRA adapters on a frozen, quantized base: no operating system, no allocator, no panic that bytes
//! from outside can reach.
//!
//! * [`Base`] and [`Adapter`] are checked views of bytes in flash (from `rankpatch-format`).
//! * [`Engine`] runs a base over an arena that the caller gives, with an adapter streamed, y = W0 x + s B (A x), or
//!   merged into memory of its own. The base is never written, so detaching restores it bit for bit.
//! * [`kernels`] holds the integer products; `math` and `ops` the float parts. All have the same bits on every core.
//!
//! This crate names no model, board, clock, allocator or transport.
#![no_std]
#![deny(unsafe_code)]
#![cfg_attr(
    not(test),
    warn(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]

mod arena;
mod attention;
mod built_in;
mod engine;
mod error;
mod linear;
pub mod math;
pub mod merge;
mod ops;
mod pass;
pub mod receiver;
mod sampler;
pub mod slots;
pub mod trust;

pub use arena::{ArenaLayout, MIN_HEAD_OUTPUTS, MIN_RANK, arena_bytes, arena_layout};
pub use built_in::check_built_in;
pub use engine::{Attachment, Engine, Span, Spans, Word, Words};
pub use error::{Error, Result};
pub use merge::{MergedType, merged_bytes};
pub use rankpatch_format::adapter::Adapter;
pub use rankpatch_format::base::Base;
pub use rankpatch_kernels as kernels;
pub use sampler::Sampler;

#[cfg(test)]
mod tests;
