//! Rankpatch trainer.

pub mod base;
pub mod bundle;
pub mod cli;
pub mod client;
pub mod data;
#[cfg(test)]
mod devices;
mod error;
pub mod executor;
pub mod export;
pub mod features;
pub mod files;
pub mod import;
pub mod keys;
pub mod lora;
pub mod ops;
pub mod optim;
pub mod peft;
pub mod pretrain;
pub mod quant;
pub mod report;
pub mod rng;
pub mod scaffold;
pub mod schedule;
pub mod sim;
pub mod spectrum;
pub mod train;

pub use error::{Error, Result};
