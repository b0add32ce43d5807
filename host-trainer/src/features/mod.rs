//! Features from samples, computed on the host in float. Training and the golden clips use them until the front end is
//! an operator of the graph.

pub mod mfcc;
mod spectrum;

pub use mfcc::Mfcc;
