//! The spans of a text, of the simulator or of a device, for people and programs.

use serde::Serialize;

use super::console::{Table, fields};
use crate::data::text::TextSpan;

/// A span with its part of the text.
#[derive(Debug, Serialize)]
struct Told {
    kind: String,
    text: String,
    /// In bytes of the text, the end not included.
    start: usize,
    end: usize,
}

/// The spans of a text.
#[derive(Debug, Serialize)]
pub(super) struct SpanAnswer {
    spans: Vec<Told>,
    digest: String,
}

impl SpanAnswer {
    pub(super) fn new(text: &str, spans: &[TextSpan], digest: u64) -> Self {
        let told = |TextSpan { start, end, kind }: &TextSpan| Told {
            kind: kind.clone(),
            text: text.get(*start..*end).unwrap_or_default().to_owned(),
            start: *start,
            end: *end,
        };
        Self { spans: spans.iter().map(told).collect(), digest: format!("{digest:#018x}") }
    }

    pub(super) fn text(&self) -> String {
        let mut table = Table::new(2, &["span", "text", "from", "to"]);
        for Told { kind, text, start, end } in &self.spans {
            table.row(&[kind, text, start, end]);
        }
        format!("{table}{}", fields(&[("digest", self.digest.clone())]))
    }
}
