//! Rankpatch format.
#![no_std]
