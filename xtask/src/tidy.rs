//! Rules for source files that no compiler checks.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use xtask::{ExitCode, workspace_root};

/// A file longer than this should have been split.
const MAX_LINES: usize = 800;

/// The radio's name, which this project never writes but once, in the README, to say that it is not meant.
const RADIO: &str = concat!("Lo", "Ra");

/// Macros that stand for code nobody has written.
const PLACEHOLDERS: [&str; 2] = [concat!("todo", "!("), concat!("unimplemented", "!(")];

/// Kinds of files whose words are checked.
const TEXT_FILES: [&str; 6] = ["rs", "md", "toml", "py", "sh", "yml"];

/// Prints every offence on stderr.
pub(crate) fn run() -> Result<ExitCode> {
    let offences = check(workspace_root())?;
    for offence in &offences {
        eprintln!("{offence}");
    }
    eprintln!("tidy: {} offences", offences.len());
    Ok(if offences.is_empty() { ExitCode::Success } else { ExitCode::Failure })
}

/// Every offence as `path:line: rule`, in the order of the paths.
pub(crate) fn check(root: &Path) -> Result<Vec<String>> {
    let mut files = Vec::new();
    collect(root, Path::new(""), &mut files)?;
    files.sort();
    let mut offences = Vec::new();
    let mut mentions = 0;
    for file in files {
        let text = fs::read_to_string(root.join(&file))
            .with_context(|| format!("cannot read {}", file.display()))?;
        let name = file.to_string_lossy().replace('\\', "/");
        let mut offence = |line: usize, rule: &str| offences.push(format!("{name}:{line}: {rule}"));
        for (i, line) in text.lines().enumerate() {
            if has_word(line, RADIO) {
                mentions += usize::from(name == "README.md");
                if name != "README.md" || mentions > 1 {
                    offence(i + 1, "expected the method's name in capitals, found the radio's");
                }
            }
        }
        if file.extension().is_some_and(|kind| kind == "rs") {
            check_rust(&name, &text, &mut offence);
        }
    }
    Ok(offences)
}

fn check_rust(name: &str, text: &str, offence: &mut impl FnMut(usize, &str)) {
    if !text.starts_with("//!") {
        offence(1, "expected a module that opens with `//!` and says what it is for");
    }
    if text.lines().count() > MAX_LINES {
        offence(MAX_LINES + 1, "expected at most 800 lines: split the file");
    }
    let may_be_unsafe =
        name.starts_with("boards/") || name.contains("/kernels/") || name.ends_with("/kernels.rs");
    for (i, line) in text.lines().enumerate() {
        let code = code_of(line);
        if code.trim_start().starts_with("#[ignore") {
            offence(i + 1, "expected every test to run, found an ignored one");
        }
        if !may_be_unsafe && has_word(&code, "unsafe") {
            offence(i + 1, "expected unsafe code in kernels and boards only");
        }
        if PLACEHOLDERS.iter().any(|placeholder| code.contains(placeholder)) {
            offence(i + 1, "expected code, found a placeholder");
        }
    }
}

/// Paths of the text files under `folder`, relative to `root`. Hidden and generated folders are left out.
fn collect(root: &Path, folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let path = root.join(folder);
    for entry in fs::read_dir(&path).with_context(|| format!("cannot read {}", path.display()))? {
        let entry = entry?;
        let name = entry.file_name();
        let text = name.to_string_lossy();
        if text.starts_with('.') || text == "target" {
            continue;
        }
        let relative = folder.join(&name);
        if entry.file_type()?.is_dir() {
            collect(root, &relative, files)?;
        } else if relative.extension().is_some_and(|kind| TEXT_FILES.iter().any(|known| kind == *known)) {
            files.push(relative);
        }
    }
    Ok(())
}

/// The line without string literals and without the comment at its end. Good enough for one line at a time.
fn code_of(line: &str) -> String {
    let mut code = String::with_capacity(line.len());
    let mut in_string = false;
    let mut previous = ' ';
    for (i, c) in line.char_indices() {
        if in_string {
            in_string = c != '"' || previous == '\\';
            // An escaped backslash escapes nothing.
            previous = if previous == '\\' && c == '\\' { ' ' } else { c };
            continue;
        }
        if line[i..].starts_with("//") {
            break;
        }
        if c == '"' && previous != '\'' {
            in_string = true;
        } else {
            code.push(c);
        }
        previous = c;
    }
    code
}

/// Whether `word` occurs in `text` with no letter, digit or underscore beside it.
fn has_word(text: &str, word: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(word).any(|(at, _)| {
        !text[..at].chars().next_back().is_some_and(is_part)
            && !text[at + word.len()..].chars().next().is_some_and(is_part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules_broken(name: &str, text: &str) -> Vec<usize> {
        let mut lines = Vec::new();
        check_rust(name, text, &mut |line, _| lines.push(line));
        lines
    }

    #[test]
    fn each_rule_is_seen_where_it_is_broken_and_only_there() {
        assert!(rules_broken("a.rs", "//! Good.\nfn f() {}\n").is_empty());
        assert_eq!(rules_broken("a.rs", "fn f() {}\n"), [1]);
        assert_eq!(rules_broken("a.rs", &format!("//! Long.\n{}", "\n".repeat(MAX_LINES))), [MAX_LINES + 1]);
        assert_eq!(rules_broken("a.rs", &["//! A.", concat!("    #[", "ignore]")].join("\n")), [2]);
        assert_eq!(rules_broken("a.rs", &["//! A.", PLACEHOLDERS[0]].join("\n")), [2]);
        let with_unsafe = "//! A.\n// unsafe here\n#![deny(unsafe_code)]\nlet x = \"an unsafe word\"; // unsafe\nunsafe { f() }\n";
        assert_eq!(rules_broken("device-runtime/src/engine.rs", with_unsafe), [5]);
        assert!(rules_broken("device-runtime/src/kernels/dsp.rs", with_unsafe).is_empty());
        assert!(rules_broken("boards/common/src/nor.rs", with_unsafe).is_empty());
    }

    #[test]
    fn strings_and_comments_are_no_code() {
        assert_eq!(code_of(r#"f("a \" unsafe \\", '"', 1); // unsafe"#), "f(, '\"', 1); ");
        assert!(has_word("say LoRA, not x", "LoRA") && !has_word("LoRAConfig", "LoRA"));
    }

    #[test]
    fn the_repository_is_tidy() {
        let offences = check(workspace_root()).unwrap();
        assert!(offences.is_empty(), "{offences:#?}");
    }
}
