//! Tests of training on a tiny random network with synthetic data.

mod config;
mod peft;
mod run;
mod tiny;
