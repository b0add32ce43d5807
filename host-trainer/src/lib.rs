//! Rankpatch trainer.
