//! Hugging Face folders on the command line: they build, their texts run and train, and what is wrong with them is said once.

use std::fs;
use std::path::PathBuf;

use super::{Fixture, carried, exit};

pub(super) fn folder(family: &str) -> PathBuf {
    carried(&format!("hf-golden/{family}"))
}

/// A copy of a family's folder in the fixture, under the name `model`.
fn copy(fixture: &Fixture, family: &str) {
    fs::create_dir_all(fixture.path("model")).unwrap();
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        fs::copy(folder(family).join(file), fixture.path("model").join(file)).unwrap();
    }
}

#[test]
fn a_folder_becomes_a_base_that_runs_texts() {
    let fixture = Fixture::new();
    let from = folder("bert");
    let from = from.display();
    let built = fixture.run(&format!("base build --from {from} -o @bert.rpb --format json")).json();
    assert_eq!((built["name"].as_str(), built["sites"].as_u64()), (Some("bert"), Some(14)));
    let text = format!("sim --base @bert.rpb --text cat --tokenizer {from} --format json");
    let answer = fixture.run(&text).json();
    assert_eq!(answer["values"].as_array().unwrap().len(), 3);
    assert!(["calm", "loud", "odd"].contains(&answer["label"].as_str().unwrap()));
    let ran = fixture.run("sim --base @bert.rpb --text cat");
    assert!(ran.err.contains("hint: a base of a Hugging Face model takes ids"), "{}", ran.err);
    ran.fails(exit::BAD_INPUT, "has no tokenizer");
}

#[test]
fn a_folder_trains_on_texts() {
    let fixture = Fixture::new();
    copy(&fixture, "gpt2");
    fixture.write("texts.txt", "the cat sat on a mat\nthe cat sat on the mat\n".repeat(6).as_bytes());
    let task = "task = \"cats\"\nbase = \"model\"\ndataset = \"text\"\ndata = \"texts.txt\"\nrank = 2\n\
                target_modules = [\"c_attn\"]\nsteps = 3\nbatch_size = 4\ndevice = \"cpu\"\n";
    fixture.write("task.toml", task.as_bytes());
    let trained = fixture.run("train @task.toml -o @out --format json").json();
    assert_eq!(trained["sites"].as_u64().or(trained["sites"].as_array().map(|s| s.len() as u64)), Some(6));
    // The image has no tokenizer: it is named, or the text cannot be split.
    fixture.run("base build --from @model -o @gpt2.rpb").text();
    let eval = "eval --task @task.toml --base @gpt2.rpb --adapter @out/cats.rpa";
    fixture.run(eval).fails(exit::BAD_INPUT, "`tokenizer`");
    let task = format!("{task}tokenizer = \"model\"\n");
    fixture.write("task.toml", task.as_bytes());
    let measured = fixture.run(&format!("{eval} --format json")).json();
    assert_eq!(measured["metric"]["name"], "bits_per_character");
}

#[test]
fn folders_that_cannot_be_read_end_with_one_message() {
    let fixture = Fixture::new();
    copy(&fixture, "gpt2");
    let build = || fixture.run("base build --from @model -o @model.rpb");
    let config = fixture.read("model/config.json");
    let text = String::from_utf8(config.clone()).unwrap();
    for (from, to, expected) in [
        ("\"gpt2\"", "\"gpt9\"", "model_type: expected"),
        (
            "\"n_layer\": 2",
            "\"n_layer\": 3",
            "there is no tensor \"transformer.h.2.ln_1.weight\", expected one of shape [20]",
        ),
        ("\"n_embd\": 20", "\"n_embd\": 24", "expected shape [61, 24], found [61, 20]"),
        ("\"n_head\": 4,", "", "n_head: expected a whole number from 1, found nothing"),
        ("\"gelu_new\"", "\"relu\"", "activation_function: expected"),
    ] {
        assert!(text.contains(from), "{from} is not in {text}");
        fixture.write("model/config.json", text.replace(from, to).as_bytes());
        build().fails(exit::BAD_INPUT, expected);
    }
    fixture.write("model/config.json", &config);
    let tensors = fixture.read("model/model.safetensors");
    fixture.write("model/model.safetensors", &tensors[..tensors.len() / 2]);
    build().fails(exit::BAD_INPUT, "model.safetensors: safetensors file: expected");
    fixture.write("model/model.safetensors", b"nothing of the kind");
    build().fails(exit::BAD_INPUT, "expected a whole safetensors file");
    assert!(!fixture.path("model.rpb").exists());
    fixture.write("model/model.safetensors", &tensors);
    fixture.write("texts.txt", b"a cat\nthe cat\n");
    let task = "task = \"cats\"\nbase = \"model\"\ndataset = \"text\"\ndata = \"texts.txt\"\n";
    fixture.write("task.toml", task.as_bytes());
    fixture.write("model/tokenizer.json", b"{}");
    fixture
        .run("train @task.toml -o @out")
        .fails(exit::BAD_INPUT, "tokenizer.json: content: expected a tokenizer");
    fs::remove_file(fixture.path("model/tokenizer.json")).unwrap();
    fixture.run("train @task.toml -o @out").fails(exit::BAD_INPUT, "tokenizer.json of its model");
}
