//! Users' own texts: JSON lines, CSV, and plain text with an example a line.
//!
//! A record has one of three forms, which its keys or columns tell: `text` and `label`; `prompt` and `completion`; `text` alone. All
//! records of a file have the same form. Other keys and columns are passed over. Files are UTF-8, with or without the mark of one at
//! the start; lines end in `\n` or `\r\n`.

use std::path::Path;

use serde_json::{Map, Value};

use crate::{Error, Result};

/// A record of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// A text to be learned.
    Text(String),
    /// A text of which only the second part is learned.
    Completion {
        /// What is given.
        prompt: String,
        /// What is to follow.
        completion: String,
    },
    /// A text and its class.
    Labelled {
        /// The text.
        text: String,
        /// Name of the class.
        label: String,
    },
}

/// What records are made of.
const PARTS: [&str; 4] = ["text", "label", "prompt", "completion"];

/// The forms of a record, and what they are made of.
const FORMS: &str = "`text` and `label`, `prompt` and `completion`, or `text`";

impl Record {
    /// The record with these fields, or `None` if they are those of no form.
    fn new(mut field: impl FnMut(&str) -> Option<String>) -> Option<Self> {
        match (field("text"), field("label"), field("prompt"), field("completion")) {
            (Some(text), Some(label), ..) => Some(Self::Labelled { text, label }),
            (Some(text), None, ..) => Some(Self::Text(text)),
            (None, _, Some(prompt), Some(completion)) => Some(Self::Completion { prompt, completion }),
            _ => None,
        }
    }

    /// Name of the class, if the record has one.
    pub fn label(&self) -> Option<&str> {
        if let Self::Labelled { label, .. } = self { Some(label) } else { None }
    }

    fn form(&self) -> &'static str {
        match self {
            Self::Text(_) => "`text`",
            Self::Completion { .. } => "`prompt` and `completion`",
            Self::Labelled { .. } => "`text` and `label`",
        }
    }

    /// The first of its parts that has nothing in it. A prompt may be empty.
    fn empty_part(&self) -> Option<&'static str> {
        match self {
            Self::Text(text) if text.is_empty() => Some("text"),
            Self::Completion { completion, .. } if completion.is_empty() => Some("completion"),
            Self::Labelled { text, label } if text.is_empty() || label.is_empty() => Some("text or label"),
            _ => None,
        }
    }
}

/// Reads a file of JSON lines: one object a line, with the keys of a record. A label may also be a number, or true or false. Empty
/// lines are passed over.
///
/// # Errors
/// [`Error::Io`] (also for bytes that are no UTF-8), [`Error::Field`] with the line, [`Error::EmptyDataSet`].
pub fn json_lines(path: &Path) -> Result<Vec<Record>> {
    let text = read_text(path)?;
    let lines = (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty());
    let records = lines.map(|(number, line)| {
        let object: Map<String, Value> = serde_json::from_str(line).map_err(|error| {
            Error::field(path, format!("line {number}"), format!("a JSON object with {FORMS}"), error)
        })?;
        let mut odd = None;
        let record = Record::new(|name| match object.get(name)? {
            Value::String(text) => Some(text.clone()),
            Value::Number(_) | Value::Bool(_) if name == "label" => object.get(name).map(Value::to_string),
            other => {
                odd = Some(format!("{name} = {other}"));
                None
            }
        });
        let found = || odd.unwrap_or_else(|| keys(object.keys().map(String::as_str)));
        let record = record.ok_or_else(|| {
            Error::field(path, format!("line {number}"), format!("strings {FORMS}"), found())
        })?;
        Ok((number, record))
    });
    alike(path, records.collect::<Result<_>>()?)
}

/// Reads a CSV file (RFC 4180) whose first row names the columns, each of those that are read once.
///
/// # Errors
/// [`Error::Io`], [`Error::Field`] with the line, [`Error::EmptyDataSet`].
pub fn csv(path: &Path) -> Result<Vec<Record>> {
    let file = std::fs::File::open(path).map_err(Error::io(path))?;
    let mut reader = csv::Reader::from_reader(std::io::BufReader::new(file));
    let malformed = |error: csv::Error| {
        let line = error.position().map_or(1, csv::Position::line);
        Error::field(path, format!("line {line}"), "CSV in UTF-8 with as many fields as the first row", error)
    };
    let columns = reader.headers().map_err(malformed)?.clone();
    // The mark of UTF-8 is taken off by the reader.
    let column = |name: &str| columns.iter().position(|column| column.trim() == name);
    for name in PARTS {
        if columns.iter().filter(|column| column.trim() == name).count() > 1 {
            return Err(Error::field(
                path,
                "columns",
                format!("one that is called {name}"),
                keys(columns.iter()),
            ));
        }
    }
    let mut records = Vec::new();
    for row in reader.records() {
        let row = row.map_err(malformed)?;
        let line = row.position().map_or(1, csv::Position::line);
        let record = Record::new(|name| Some(row.get(column(name)?)?.to_owned()));
        let found = || keys(columns.iter());
        let record = record.ok_or_else(|| Error::field(path, "columns", FORMS, found()))?;
        records.push((line, record));
    }
    alike(path, records)
}

/// Reads a text file: an example a line; empty lines are passed over.
///
/// # Errors
/// [`Error::Io`], [`Error::EmptyDataSet`].
pub fn lines(path: &Path) -> Result<Vec<Record>> {
    let text = read_text(path)?;
    let lines = (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty());
    alike(path, lines.map(|(number, line)| (number, Record::Text(line.to_owned()))).collect())
}

/// A file of UTF-8 without its mark.
fn read_text(path: &Path) -> Result<String> {
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    Ok(match text.strip_prefix('\u{feff}') {
        Some(unmarked) => unmarked.to_owned(),
        None => text,
    })
}

fn keys<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<&str> = names.collect();
    if names.is_empty() { "none".into() } else { names.join(", ") }
}

/// The records, if there are any, all of them have one form and none lacks its content.
fn alike(path: &Path, records: Vec<(u64, Record)>) -> Result<Vec<Record>> {
    let Some(form) = records.first().map(|(_, record)| record.form()) else {
        return Err(Error::EmptyDataSet { path: path.to_path_buf(), part: "training" });
    };
    for (line, record) in &records {
        let what = || format!("line {line}");
        if record.form() != form {
            return Err(Error::field(path, what(), format!("{form} as in the first record"), record.form()));
        }
        if let Some(part) = record.empty_part() {
            return Err(Error::field(path, what(), format!("a {part} that is not empty"), "nothing"));
        }
    }
    Ok(records.into_iter().map(|(_, record)| record).collect())
}
