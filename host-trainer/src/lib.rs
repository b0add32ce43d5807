//! Rankpatch trainer.

pub mod cli;
pub mod client;
pub mod sim;
pub mod import;
pub mod features;
pub mod data;
pub mod base;
pub mod ops;
pub mod optim;
pub mod quant;
pub mod rng;
pub mod schedule;
mod error;
pub mod executor;
pub mod files;
pub mod lora;
pub mod export;
pub mod peft;
pub mod train;

pub use error::{Error, Result};
