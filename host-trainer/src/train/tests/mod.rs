//! Tests of training on a tiny random network with synthetic data.

mod biases;
mod config;
mod export;
mod full;
mod head;
mod hub;
mod keys;
mod many;
mod peft;
mod peft_library;
mod pissa;
mod relative;
mod run;
mod slots;
mod tasks;
mod tiny;
mod trimming;
