//! Rankpatch runtime.
#![no_std]
