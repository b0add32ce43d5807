//! A disk that takes no more: the process may write files up to a size, as on a full disk whatever is larger fails.
#![cfg(target_os = "linux")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

/// Trains a small task in `folder`, with files of at most `blocks` of 512 bytes.
fn train(folder: &Path, blocks: Option<u32>, rate: &str) -> Output {
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/bases/stories260k");
    let texts = ["one day a cat sat", "a dog ran", "they all went home", "the end"].join("\n").repeat(4);
    fs::write(folder.join("own.txt"), texts).unwrap();
    let task = format!(
        "task = \"own\"\nbase = {:?}\ndataset = \"text\"\ndata = \"own.txt\"\nsteps = 2\nbatch_size = 2\nrank = 2\ndevice = \"cpu\"\n",
        base.display().to_string()
    );
    fs::write(folder.join("own.toml"), task).unwrap();
    // Without the signal that a write beyond the limit sends, the write fails.
    let limit = blocks.map_or("unlimited".into(), |blocks| blocks.to_string());
    let script = format!("trap '' XFSZ; ulimit -f {limit}; exec \"$0\" \"$@\"");
    let mut command = Command::new("sh");
    command.args(["-c", &script, env!("CARGO_BIN_EXE_rankpatch"), "train", "own.toml", "--out", "out"]);
    command.args(["--learning-rate", rate]).current_dir(folder).output().unwrap()
}

/// The files below a folder.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.insert(path.display().to_string(), fs::read(&path).unwrap());
        }
    }
    found
}

#[test]
fn a_full_disk_leaves_earlier_outputs_as_they_were() {
    let folder = tempfile::tempdir().unwrap();
    let first = train(folder.path(), None, "1e-3");
    assert!(first.status.success(), "{}", String::from_utf8_lossy(&first.stderr));
    let out = folder.path().join("out");
    let before = files(&out);
    assert!(before.len() >= 6, "{:?}", before.keys());
    // Enough for the log and the smaller files, too little for the factors.
    let ran = train(folder.path(), Some(40), "2e-3");
    let message = String::from_utf8_lossy(&ran.stderr);
    assert_eq!(ran.status.code(), Some(1), "{message}");
    let error: Vec<&str> = message.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(error.len(), 1, "{message}");
    assert!(error[0].contains("adapter_model.safetensors: cannot be written: File too large"), "{message}");
    let after = files(&out);
    assert!(after == before, "{:?} became {:?}", before.keys(), after.keys());
    // With room again the same command succeeds.
    assert!(train(folder.path(), None, "2e-3").status.success());
    assert!(files(&out) != before);
}
