//! Runs the documentation: every command of every `console` block in `docs/`, in an empty folder, with the program that was just
//! built in the search path. Lines of output that a page shows must be printed.
//!
//! A block is `$ command` lines, each followed by what it prints to the standard output: nothing (it is not looked at), or lines of
//! which `...` stands for any lines, and `...` in a line for anything. A comment `<!-- file: NAME -->` before another block makes it a
//! file. A command that ends in `&` runs until the page ends. Port 7000 stands for a free one, the folder `rankpatch` is a link to this
//! repository.
#![cfg(unix)]

use std::ffi::OsString;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Longest wait for a program in the background to listen.
const START: Duration = Duration::from_mins(1);

/// A part of a page that is acted on.
#[derive(Debug, PartialEq)]
enum Step {
    File { name: String, text: String },
    Command { line: String, shown: Vec<String> },
}

fn steps(page: &str) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut name = None;
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        if let Some(file) = line.strip_prefix("<!-- file: ").and_then(|rest| rest.strip_suffix(" -->")) {
            name = Some(file.to_owned());
            continue;
        }
        let Some(kind) = line.strip_prefix("```") else { continue };
        let block: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
        if let Some(name) = name.take() {
            steps.push(Step::File { name, text: block.join("\n") + "\n" });
        } else if kind == "console" {
            for line in block {
                match (line.strip_prefix("$ "), steps.last_mut()) {
                    (Some(command), _) => {
                        // What people read behind two spaces is no part of the command.
                        let command = command.split("  #").next().unwrap_or_default().trim_end();
                        steps.push(Step::Command { line: command.to_owned(), shown: Vec::new() });
                    }
                    (None, Some(Step::Command { shown, .. })) => shown.push(line.to_owned()),
                    (None, _) => panic!("a console block starts with a command, found {line:?}"),
                }
            }
        }
    }
    steps
}

/// Whether a line that a page shows stands for one that was printed; columns may be wider.
fn fits(shown: &str, printed: &str) -> bool {
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    let (shown, printed) = (words(shown), words(printed));
    let mut parts = shown.split("...");
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = printed.strip_prefix(first.trim_end()) else { return false };
    let parts: Vec<&str> = parts.map(str::trim).collect();
    let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
    for part in middle {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

/// Whether the shown lines are the printed ones, a line `...` standing for any number of them.
fn all_fit(shown: &[String], printed: &[&str]) -> bool {
    match shown.split_first() {
        None => printed.is_empty(),
        Some((gap, rest)) if gap.trim() == "..." => {
            (0..=printed.len()).any(|skipped| all_fit(rest, &printed[skipped..]))
        }
        Some((line, rest)) => {
            printed.split_first().is_some_and(|(first, others)| fits(line, first) && all_fit(rest, others))
        }
    }
}

/// A folder in which a page is followed.
struct Reader {
    folder: tempfile::TempDir,
    /// Remembers what a page exports.
    environment: PathBuf,
    path: OsString,
    port: u16,
    background: Vec<Child>,
}

impl Reader {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        std::fs::create_dir(folder.path().join("work")).unwrap();
        std::os::unix::fs::symlink(repository, folder.path().join("work/rankpatch")).unwrap();
        let own = Path::new(env!("CARGO_BIN_EXE_rankpatch")).parent().unwrap().to_owned();
        let others = std::env::var_os("PATH").unwrap_or_default();
        let path = std::env::join_paths(std::iter::once(own).chain(std::env::split_paths(&others))).unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        Self { environment: folder.path().join("environment"), folder, path, port, background: Vec::new() }
    }

    fn shell(&self, script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]).current_dir(self.folder.path().join("work")).env("PATH", &self.path);
        command.stdin(Stdio::null());
        command
    }

    fn follow(&mut self, step: Step) {
        let (line, shown) = match step {
            Step::File { name, text } => {
                return std::fs::write(self.folder.path().join("work").join(name), text).unwrap();
            }
            Step::Command { line, shown } => (line, shown),
        };
        let there = self.environment.display().to_string();
        let own = line.replace("127.0.0.1:7000", &format!("127.0.0.1:{}", self.port));
        let before = format!("if [ -f '{there}' ]; then . '{there}'; fi\n");
        if let Some(program) = own.strip_suffix('&') {
            let started = self.shell(&format!("{before}exec {program}")).stdout(Stdio::null()).spawn();
            self.background.push(started.unwrap());
            let end = Instant::now() + START;
            while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
                assert!(Instant::now() < end, "nobody listens after: {line}");
                std::thread::sleep(Duration::from_millis(50));
            }
            return;
        }
        let script = format!("{before}{own}\ncode=$?\nexport -p > '{there}'\nexit $code\n");
        let ran = self.shell(&script).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (out, err) = (text(&ran.stdout), text(&ran.stderr));
        assert!(ran.status.success(), "$ {line}\n{out}{err}{}", ran.status);
        let printed: Vec<&str> = out.lines().map(str::trim_end).collect();
        let fitting = shown.is_empty() || all_fit(&shown, &printed);
        assert!(fitting, "$ {line}\nexpected:\n{}\nfound:\n{out}", shown.join("\n"));
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        for child in &mut self.background {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn page(name: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(name);
    let steps =
        steps(&std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display())));
    let commands = steps.iter().filter(|step| matches!(step, Step::Command { .. })).count();
    assert!(commands > 0, "{name} has no commands");
    let mut reader = Reader::new();
    for step in steps {
        reader.follow(step);
    }
}

/// The pages that are run, one test each; `every_page_is_run` compares them with the folder.
const PAGES: &[&str] = &["bases.md", "choosing.md", "keys.md", "limits.md", "partitions.md", "tutorial.md"];

#[test]
fn bases() {
    page("bases.md");
}

#[test]
fn choosing() {
    page("choosing.md");
}

#[test]
fn keys() {
    page("keys.md");
}

#[test]
fn limits() {
    page("limits.md");
}

#[test]
fn partitions() {
    page("partitions.md");
}

#[test]
fn tutorial() {
    page("tutorial.md");
}

#[test]
fn every_page_is_run() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    let mut pages: Vec<String> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| Path::new(name).extension().is_some_and(|kind| kind == "md") && name != "README.md")
        .collect();
    pages.sort();
    assert_eq!(pages, PAGES);
    // Links between the pages, and to the rest of the repository.
    for name in pages.iter().map(String::as_str).chain(["README.md"]) {
        let text = std::fs::read_to_string(folder.join(name)).unwrap();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = target.split('#').next().unwrap_or_default();
            let there = file.is_empty() || file.starts_with("http") || folder.join(file).exists();
            assert!(there, "{name} links to {target}, which is not there");
        }
    }
}

#[test]
fn lines_are_compared_as_said() {
    assert!(fits("a ... b", "a   1 2 b") && fits("a b", "a   b") && fits("...", "") && fits("a...", "a"));
    assert!(!fits("a ... b", "a b c") && !fits("a", "a b") && !fits("a ... b ... c", "a c b"));
    let shown = |lines: &[&str]| lines.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert!(all_fit(&shown(&["a", "...", "d"]), &["a", "b", "c", "d"]));
    assert!(!all_fit(&shown(&["a", "d"]), &["a", "b", "d"]) && !all_fit(&shown(&["a"]), &["a", "b"]));
    let page =
        "x\n<!-- file: f -->\n```toml\nk = 1\n```\n```console\n$ a b  # c\n1\n$ d &\n```\n```sh\nno\n```\n";
    let expected = [
        Step::File { name: "f".into(), text: "k = 1\n".into() },
        Step::Command { line: "a b".into(), shown: vec!["1".into()] },
        Step::Command { line: "d &".into(), shown: Vec::new() },
    ];
    assert_eq!(steps(page), expected);
}
