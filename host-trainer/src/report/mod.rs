//! What a run leaves for people and programs: its summary, and the course that its log tells of.
//!
//! This module knows files and numbers of finished runs. It does not know how they were trained or measured.

mod history;
mod summary;

pub use history::{Evaluation, History, Step};
pub use summary::{Metrics, SUMMARY, Summary};
