//! Shared firmware application.
#![no_std]
