//! What a run leaves for people and programs: its summary, the course that its log tells of, and a page of both.
//!
//! This module knows files and numbers of finished runs. It does not know how they were trained or measured.

mod history;
mod html;
mod plot;
mod sites;
mod summary;
#[cfg(test)]
mod tests;

pub use history::{Evaluation, History, Step};
pub use html::{REPORT, write as write_report};
pub use sites::{Site, sites};
pub use summary::{AdapterFile, AfterTraining, Metrics, SUMMARY, Summary};
