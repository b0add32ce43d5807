//! Where a command writes: results to one stream, progress and logs to another. Tests give it buffers.

use std::io::{self, IsTerminal as _, Write};

use clap::ValueEnum;
use serde::Serialize;

use super::exit::Outcome;

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object, for programs.
    Json,
}

/// The streams of a command.
pub struct Console<'a> {
    /// Results.
    pub out: &'a mut dyn Write,
    /// Progress, logs and errors.
    pub err: &'a mut dyn Write,
    /// Whether a person reads `err` as it is written. If not, progress is silent or in plain lines.
    pub interactive: bool,
}

/// Runs `body` on the streams of the process.
pub fn with_standard_streams<R>(body: impl FnOnce(&mut Console<'_>) -> R) -> R {
    let (stdout, stderr) = (io::stdout(), io::stderr());
    let interactive = stderr.is_terminal();
    body(&mut Console { out: &mut stdout.lock(), err: &mut &stderr, interactive })
}

impl Console<'_> {
    /// Prints a result: the value as JSON, or the text that `text` makes of it.
    ///
    /// # Errors
    /// If the stream cannot be written to.
    pub fn print<V: Serialize>(
        &mut self,
        format: Format,
        value: &V,
        text: impl FnOnce(&V) -> String,
    ) -> Outcome {
        match format {
            Format::Text => write!(self.out, "{}", text(value))?,
            Format::Json => {
                serde_json::to_writer_pretty(&mut *self.out, value).map_err(io::Error::from)?;
                writeln!(self.out)?;
            }
        }
        Ok(self.out.flush()?)
    }

    /// A line of progress, if a person is there to read it.
    pub fn note(&mut self, line: &str) {
        if self.interactive {
            self.log(line);
        }
    }

    /// A line of the log. Losing it is no failure of the command.
    pub fn log(&mut self, line: &str) {
        let _ = writeln!(self.err, "{line}");
    }
}

/// A table in plain text: the first columns left-aligned, the others, which hold numbers, right-aligned.
#[derive(Debug, Clone)]
pub struct Table {
    left: usize,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings; `left` columns hold words.
    pub fn new(left: usize, headings: &[&str]) -> Self {
        Self { left, rows: vec![headings.iter().map(ToString::to_string).collect()] }
    }

    /// Whether it has headings only.
    pub fn is_empty(&self) -> bool {
        self.rows.len() < 2
    }

    /// Adds a row.
    pub fn row(&mut self, cells: &[&dyn std::fmt::Display]) {
        self.rows.push(cells.iter().map(ToString::to_string).collect());
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
        };
        let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
        for row in &self.rows {
            let padded = |(column, (cell, width)): (usize, (&String, &usize))| {
                if column < self.left { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
            };
            let cells: Vec<String> = row.iter().zip(&widths).enumerate().map(padded).collect();
            writeln!(f, "{}", cells.join("  ").trim_end())?;
        }
        Ok(())
    }
}

/// Lines of `name  value`, the names padded to one width.
pub fn fields(fields: &[(&str, String)]) -> String {
    let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let lines: Vec<String> =
        fields.iter().map(|(name, value)| format!("{name:<width$}  {value}\n")).collect();
    lines.concat()
}

/// A count with a comma between groups of three digits.
pub fn grouped(count: impl TryInto<u64>) -> String {
    let digits = count.try_into().unwrap_or(u64::MAX).to_string();
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().filter_map(|group| str::from_utf8(group).ok()).collect();
    groups.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_align_words_left_and_numbers_right() {
        let mut table = Table::new(1, &["site", "rank", "bytes"]);
        table.row(&[&"layers.0.attn.q", &8, &grouped(1024u32)]);
        table.row(&[&"ü", &16, &grouped(7u32)]);
        let expected =
            "site             rank  bytes\nlayers.0.attn.q     8  1,024\nü                  16      7\n";
        assert_eq!(table.to_string(), expected);
        assert_eq!(fields(&[("a", "1".into()), ("bcd", "2".into())]), "a    1\nbcd  2\n");
        assert_eq!(
            [grouped(0u8), grouped(999u32), grouped(1_234_567_890_123u64)],
            ["0", "999", "1,234,567,890,123"]
        );
    }
}
