//! Tests of training on a tiny random network with synthetic data.

mod config;
mod export;
mod hub;
mod many;
mod peft;
mod pissa;
mod relative;
mod run;
mod tasks;
mod tiny;
mod trimming;
