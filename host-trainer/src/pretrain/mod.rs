//! Bases from scratch: a small decoder or encoder with random weights, for the trainer to train in full.
//!
//! A run is [`crate::train::Trainer`]'s with `method = "full"`; this module only makes what it starts from: the network, a
//! vocabulary of the training texts, and the examples.

mod config;
mod data;
mod network;
#[cfg(test)]
mod tests;
mod vocabulary;

pub use config::{Decoder, Encoder, PretrainConfig, Shape};
pub use data::prepare;
