//! Names of projects: what cargo takes for a package with a program, and what does not clash with what a project has already.

use super::ScaffoldError;

/// Longest name.
const MAX_BYTES: usize = 64;

/// Names that mean something else: crates of the language, folders of cargo's output, dependencies and programs of a project.
const TAKEN: [&str; 20] = [
    "alloc",
    "build",
    "bytemuck",
    "core",
    "cortex-m",
    "cortex-m-rt",
    "cortex-m-semihosting",
    "deps",
    "embedded-io",
    "examples",
    "incremental",
    "over-the-air",
    "proc-macro",
    "rankpatch-board",
    "rankpatch-format",
    "rankpatch-runtime",
    "self",
    "static-cell",
    "std",
    "test",
];

/// Words of the language.
const KEYWORDS: [&str; 51] = [
    "abstract", "as", "async", "await", "become", "box", "break", "const", "continue", "crate", "do", "dyn",
    "else", "enum", "extern", "false", "final", "fn", "for", "gen", "if", "impl", "in", "let", "loop",
    "macro", "match", "mod", "move", "mut", "override", "priv", "pub", "ref", "return", "static", "struct",
    "super", "trait", "true", "try", "type", "typeof", "unsafe", "unsized", "use", "virtual", "where",
    "while", "yield", "union",
];

/// Whether a project can have this name.
///
/// # Errors
/// [`ScaffoldError::Name`].
pub fn check_name(name: &str) -> Result<(), ScaffoldError> {
    let refuse = |expected| Err(ScaffoldError::Name { found: name.to_owned(), expected });
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if !name.starts_with(|c: char| c.is_ascii_alphabetic()) || !name.chars().all(is_part) {
        return refuse("a letter, then letters, digits, - and _");
    }
    if name.len() > MAX_BYTES {
        return refuse("at most 64 characters");
    }
    if KEYWORDS.contains(&name) {
        return refuse("a name that is no keyword of Rust");
    }
    if TAKEN.contains(&name.replace('_', "-").as_str()) {
        return refuse("a name that is not a crate's or cargo's already");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_crates() {
        for name in ["hello", "a", "my-lamp_2", "Lamp"] {
            check_name(name).unwrap();
        }
        let long = "x".repeat(MAX_BYTES + 1);
        let wrong = ["", "2lamps", "-x", "_x", "läuft", "a b", "a/b", "a.b", "fn", "std", "cortex_m", &long];
        for name in wrong {
            let error = check_name(name).unwrap_err().to_string();
            assert!(error.starts_with(&format!("project name {name:?}: expected ")), "{error}");
        }
    }
}
