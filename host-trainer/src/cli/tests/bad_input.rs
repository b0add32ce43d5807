//! Runs that cannot go on: each ends with one message and its own exit code, and leaves what was there as it was.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

use super::{Fixture, Ran, exit, f32_file};
use crate::cli::exit::Failure;

/// A task of texts on the small decoder, with a run of 6 steps and a checkpoint every two.
fn trained() -> Fixture {
    let fixture = Fixture::new();
    let lines: String = (0..40).map(|at| ["abcabc\n", "cab\n", "bca\n"][at % 3]).collect();
    fixture.write("own.txt", lines.as_bytes());
    let task = "task = \"own\"\nbase = \"decoder.rpb\"\ndataset = \"text\"\ndata = \"own.txt\"\nsteps = 6\nsave_steps = 2\n\
                batch_size = 4\nrank = 2\nalpha = 6\nlr = 1e-2\nwarmup_steps = 0\ndevice = \"cpu\"\n";
    fixture.write("own.toml", task.as_bytes());
    fixture.run("train @own.toml --out @out").text();
    fixture
}

/// Every file below the output folder with its bytes.
fn outputs(fixture: &Fixture) -> BTreeMap<String, Vec<u8>> {
    fn walk(folder: &Path, found: &mut BTreeMap<String, Vec<u8>>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else {
                found.insert(path.display().to_string(), std::fs::read(&path).unwrap());
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(&fixture.path("out"), &mut found);
    found
}

/// Runs a command line that fails, and checks that no output has changed, none is new and no part of a file is left.
#[track_caller]
fn fails_and_leaves_outputs(fixture: &Fixture, line: &str, code: u8, expected: &str) {
    let before = outputs(fixture);
    fixture.run(line).fails(code, expected);
    let after = outputs(fixture);
    assert!(before == after, "{line} left {:?} of {:?}", after.keys(), before.keys());
}

#[test]
fn a_gpu_that_is_not_there_is_named() {
    let fixture = trained();
    let line = "train @own.toml --out @out --device cuda:63";
    fails_and_leaves_outputs(&fixture, line, exit::FAILURE, "found \"cuda:63\"");
    assert!(fixture.run(line).err.contains("hint: --device cpu trains on the processor"));
}

#[test]
fn out_of_gpu_memory_says_what_to_lower() {
    let error = candle_core::Error::Msg("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")".into());
    let failure = Failure::from(crate::Error::from(error));
    assert_eq!(failure.code, exit::FAILURE);
    let text = failure.render();
    assert!(text.starts_with("error: DriverError(CUDA_ERROR_OUT_OF_MEMORY"), "{text}");
    assert!(text.contains("hint: lower --batch-size") && text.contains("--max-length"), "{text}");
    let other = Failure::from(crate::Error::from(candle_core::Error::Msg("no such kernel".into())));
    assert_eq!((other.code, other.hint), (exit::FAILURE, None));
}

/// One example among many is too large for the network: the loss of its batch is no number.
#[test]
fn a_run_that_diverges_keeps_the_last_good_checkpoint() {
    let fixture = Fixture::new();
    let values: Vec<f32> = (0..40 * 18).map(|at| (at as f32 * 0.37).sin()).collect();
    let labels: Vec<u8> = (0..40).map(|at| at % 2).collect();
    let write = |values: &[f32]| {
        let bytes = f32_file(values);
        let view = |dtype, shape: &[usize], bytes| TensorView::new(dtype, shape.to_vec(), bytes).unwrap();
        let views = [
            ("features", view(Dtype::F32, &[40, 2, 9], &bytes)),
            ("labels", view(Dtype::U8, &[40], &labels)),
        ];
        fixture.write("own.safetensors", &safetensors::serialize(views, None).unwrap());
    };
    fixture.write(
        "own.toml",
        b"task = \"own\"\nbase = \"encoder.rpb\"\ndataset = \"features\"\ndata = \"own.safetensors\"\nepochs = 1\n\
          batch_size = 3\nsave_steps = 1\nrank = 2\nalpha = 6\nlr = 1e-2\ndevice = \"cpu\"\n",
    );
    write(&values);
    fixture.run("train @own.toml --out @out").text();
    let before = outputs(&fixture);

    let run = |rest: &str| fixture.run(&format!("train @own.toml --out @out --progress json {rest}"));
    let events = |ran: &Ran| -> Vec<Value> {
        ran.err.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    };
    let message =
        |ran: &Ran| ran.err.lines().find(|line| line.starts_with("error: ")).unwrap_or("none").to_owned();
    let saved = |ran: &Ran| -> Vec<u64> {
        let saved = events(ran).into_iter().filter(|event| event["event"] == "saved");
        saved.filter_map(|event| event["step"].as_u64()).collect()
    };
    // An example that is learned, and not at once.
    let (ran, saved) = (0..40)
        .step_by(3)
        .find_map(|example| {
            let mut values = values.clone();
            values[example * 18..][..18].iter_mut().step_by(2).for_each(|value| *value = 3e38);
            write(&values);
            let ran = run("");
            let saved = saved(&ran);
            (ran.code == exit::FAILURE && saved.len() > 1).then_some((ran, saved))
        })
        .expect("a run that diverges after its second checkpoint");
    assert!(
        message(&ran).contains("the training has diverged: expected a finite loss at step"),
        "{}",
        ran.err
    );
    assert!(ran.err.contains("hint: start again with a lower --learning-rate"), "{}", ran.err);

    // What was exported before is there still.
    let after = outputs(&fixture);
    let of_a_run = |path: &str| path.ends_with("checkpoint.safetensors") || path.ends_with("log.jsonl");
    for (path, bytes) in before.iter().filter(|(path, _)| !of_a_run(path)) {
        assert!(after.get(path) == Some(bytes), "{path} has changed");
    }
    // The checkpoint is good: the run goes on from it, to the same end.
    let again = run("--resume");
    assert_eq!((again.code, message(&again)), (exit::FAILURE, message(&ran)));
    assert_eq!(events(&again)[0]["first_step"].as_u64(), saved.last().copied());
    assert!(again.err.contains("\"event\":\"step\""), "{}", again.err);
}

#[test]
fn a_checkpoint_of_another_run_is_refused() {
    let fixture = trained();
    let resume = |rest: &str| format!("train @own.toml --out @out --resume {rest}");
    for (change, expected) in [
        ("--learning-rate 2e-2", "learning_rate of the saved run: expected 0.02, found 0.01"),
        ("--rank 3", "lora of the saved run"),
        ("--seed 8", "seed of the saved run: expected 8, found 0"),
        ("--steps 7", "length of the saved run"),
    ] {
        fails_and_leaves_outputs(&fixture, &resume(change), exit::BAD_INPUT, expected);
    }
    fixture.write("other.txt", &b"abc\nbca\n".repeat(9));
    fails_and_leaves_outputs(
        &fixture,
        &resume("--data @other.txt"),
        exit::BAD_INPUT,
        "digest of the saved run's data",
    );
    let mut other = rankpatch_format::fixture::decoder();
    other.max_rows -= 1;
    fixture.write("other.rpb", &other.write(rankpatch_format::layout::Layout::RowMajor, 1).unwrap());
    fails_and_leaves_outputs(
        &fixture,
        &resume("--base @other.rpb"),
        exit::BAD_INPUT,
        "base of the saved run: expected",
    );
    // The same run goes on and gives the same file.
    let file = fixture.read("out/own.rpa");
    fixture.run(&resume("")).text();
    assert!(fixture.read("out/own.rpa") == file);
}

/// Files that were cut, that lie about their lengths, or ask for more memory than there is.
#[test]
fn a_corrupt_safetensors_file_is_refused() {
    let fixture = trained();
    let header = |json: &str, data: usize| {
        [&(json.len() as u64).to_le_bytes(), json.as_bytes(), &vec![0; data]].concat()
    };
    let good = fixture.read("out/checkpoint.safetensors");
    let tensor = |shape: &str, end: u64| {
        format!("{{\"features\":{{\"dtype\":\"F32\",\"shape\":{shape},\"data_offsets\":[0,{end}]}}}}")
    };
    let bad = [
        Vec::new(),
        b"short".to_vec(),
        good[..good.len() - 1].to_vec(),
        good[..20].to_vec(),
        u64::MAX.to_le_bytes().to_vec(),
        [&(1u64 << 40).to_le_bytes()[..], &good[8..]].concat(),
        header("{}x", 0),
        header(&tensor("[1,1,1]", 1 << 50), 4),
        header(&tensor("[1,1,2]", 4), 4),
        header(&tensor("[4611686018427387904,4,4]", 4), 4),
        header(&tensor("[1152921504606846976,1,1]", 4), 4),
        header(&tensor("[1,1,1]", 4).replace("[0,", "[5,"), 4),
        header(&tensor("[1,1,1]", 4).replace("F32", "Q9"), 4),
    ];
    fixture.write(
        "arrays.toml",
        b"task = \"arrays\"\nbase = \"encoder.rpb\"\ndataset = \"features\"\ndata = \"bad.safetensors\"\n",
    );
    let peft = fixture.path("out/peft/adapter_model.safetensors");
    let (good_peft, good_checkpoint) = (std::fs::read(&peft).unwrap(), good);
    for bytes in bad {
        fixture.write("bad.safetensors", &bytes);
        let data = "train @arrays.toml --out @out";
        fails_and_leaves_outputs(
            &fixture,
            data,
            exit::BAD_INPUT,
            "bad.safetensors: file: expected safetensors",
        );
        let model = "base build --from @bad.safetensors -o @out/x.rpb";
        fails_and_leaves_outputs(&fixture, model, exit::BAD_INPUT, "bad.safetensors");

        fixture.write("out/checkpoint.safetensors", &bytes);
        let resume = "train @own.toml --out @out --resume";
        fails_and_leaves_outputs(&fixture, resume, exit::BAD_INPUT, "checkpoint.safetensors");
        fixture.write("out/checkpoint.safetensors", &good_checkpoint);

        fixture.write("out/peft/adapter_model.safetensors", &bytes);
        let folder = "eval --task @own.toml --adapter @out/peft";
        fails_and_leaves_outputs(&fixture, folder, exit::BAD_INPUT, "adapter_model.safetensors");
        fixture.write("out/peft/adapter_model.safetensors", &good_peft);
    }
}

#[test]
fn a_peft_folder_that_does_not_fit_is_refused() {
    let fixture = trained();
    let export = |base: &str| format!("export --from @out/peft --base @{base} -o @out/new.rpa");
    // Of another base by its identity, and, where that is not known, by its tensors.
    let other = export("encoder.rpb");
    fails_and_leaves_outputs(&fixture, &other, exit::BAD_INPUT, "rankpatch.json: base_id: expected");
    std::fs::remove_file(fixture.path("out/peft/rankpatch.json")).unwrap();
    let good = fixture.read("out/peft/adapter_model.safetensors");
    let file = safetensors::SafeTensors::deserialize(&good).unwrap();
    let renamed = |layers: &str, query: &str| {
        let name = |name: &str| name.replace("model.layers.", layers).replace("self_attn.q_proj", query);
        safetensors::serialize(file.iter().map(|(old, view)| (name(old), view)), None).unwrap()
    };
    let own = renamed("layers.", "attn.q");
    fixture.write("out/peft/adapter_model.safetensors", &own);
    let expected = "lora_A.weight\": expected shape [2, 15], found [2, 12]";
    fails_and_leaves_outputs(&fixture, &other, exit::BAD_INPUT, expected);
    let bert = renamed("bert.encoder.layer.", "attention.self.query");
    fixture.write("out/peft/adapter_model.safetensors", &bert);
    let expected = "tensor: expected factors of a site of tiny-decoder (layers.0.attn.q, ";
    fails_and_leaves_outputs(&fixture, &export("decoder.rpb"), exit::BAD_INPUT, expected);
    assert!(fixture.run(&export("decoder.rpb")).err.contains("(of another architecture?)"));
    for (half, other) in [("lora_A", "lora_B"), ("lora_B", "lora_A")] {
        let absent = format!("model.layers.0.self_attn.q_proj.{half}.weight");
        let rest = file.iter().filter(|(name, _)| !name.ends_with(&absent));
        let rest = safetensors::serialize(rest, None).unwrap();
        fixture.write("out/peft/adapter_model.safetensors", &rest);
        let there = absent.replace(half, other);
        let expected = format!("expected base_model.model.{absent} beside {there}, found none");
        fails_and_leaves_outputs(&fixture, &export("decoder.rpb"), exit::BAD_INPUT, &expected);
    }
    fixture.write("out/peft/adapter_model.safetensors", &good);

    let path = fixture.path("out/peft/adapter_config.json");
    let good: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    for (key, value, expected) in [
        ("peft_type", json!("IA3"), "peft_type: expected \"LORA\", found \"IA3\""),
        ("use_dora", json!(true), "use_dora: expected none: plain LoRA, found true"),
        ("lora_bias", json!(true), "lora_bias: expected none"),
        ("layer_replication", json!([[0, 1]]), "layer_replication: expected none"),
        (
            "bias",
            json!("boft_only"),
            "bias: expected \"none\", \"lora_only\" or \"all\", found \"boft_only\"",
        ),
        (
            "init_lora_weights",
            json!("pissa_niter_4"),
            "init_lora_weights: expected one that leaves the base as it is",
        ),
        ("alpha_pattern", json!({"(": 1.0}), "alpha_pattern: expected regular expressions"),
        ("r", json!(-1), "adapter_config.json: content: expected the fields of an adapter"),
    ] {
        let mut bad = good.clone();
        bad[key] = value;
        std::fs::write(&path, bad.to_string()).unwrap();
        fails_and_leaves_outputs(&fixture, &export("decoder.rpb"), exit::BAD_INPUT, expected);
    }
    std::fs::write(&path, "{").unwrap();
    fails_and_leaves_outputs(
        &fixture,
        &export("decoder.rpb"),
        exit::BAD_INPUT,
        "adapter_config.json: content",
    );
    std::fs::write(&path, good.to_string()).unwrap();
    let tensors = fixture.path("out/peft/adapter_model.safetensors");
    std::fs::rename(&tensors, fixture.path("out/peft/adapter_model.bin")).unwrap();
    let expected =
        "tensors: expected adapter_model.safetensors (convert it: PEFT's save_pretrained writes safetensors)";
    fails_and_leaves_outputs(&fixture, &export("decoder.rpb"), exit::BAD_INPUT, expected);
    std::fs::remove_file(fixture.path("out/peft/adapter_model.bin")).unwrap();
    fails_and_leaves_outputs(&fixture, &export("decoder.rpb"), exit::BAD_INPUT, "adapter_model.safetensors");
}

#[test]
fn a_result_that_cannot_be_written_is_a_failure() {
    let fixture = trained();
    // A file is where a folder would have to be.
    let line = "train @own.toml --out @own.txt/out";
    fails_and_leaves_outputs(&fixture, line, exit::FAILURE, "cannot be written");
    let line = "export --from @out/peft --base @decoder.rpb -o @own.txt/x.rpa";
    fails_and_leaves_outputs(&fixture, line, exit::FAILURE, "cannot be written");
    if cfg!(target_os = "linux") {
        let from = super::carried("bases/stories260k");
        let line = format!("base build --from {} -o /dev/full", from.display());
        fails_and_leaves_outputs(
            &fixture,
            &line,
            exit::FAILURE,
            "/dev/full: cannot be written: No space left on device",
        );
    }
}

/// A PEFT folder becomes a file for devices, and the file a folder again.
#[test]
fn adapters_are_exported_both_ways() {
    let fixture = trained();
    let written = fixture
        .run("export --peft @out/peft --base @decoder.rpb -o @new.rpa --sequence 1 --format json")
        .json();
    assert!(fixture.read("new.rpa") == fixture.read("out/own.rpa"), "the same factors give the same file");
    let summary: Value = serde_json::from_slice(&fixture.read("out/summary.json")).unwrap();
    for key in ["task", "base_id", "sites", "payload_bytes", "adapter_file_bytes", "self_test_digest"] {
        assert_eq!(written[key], summary[key], "{key}");
    }
    let named =
        fixture.run("export --from @out/peft --base @decoder.rpb -o @named.rpa --task other --sequence 9");
    assert!(named.text().contains("other"));
    let report = fixture.run("inspect @named.rpa --base @decoder.rpb --format json").json();
    assert_eq!((&report["task"], &report["sequence"]), (&json!("other"), &json!(9)));

    fixture.run("export --from @new.rpa --base @decoder.rpb -o @folder").text();
    let eval = |adapter: &str| {
        let line = format!("eval --task @own.toml --adapter @{adapter} --on float --format json");
        fixture.run(&line).json()["metric"]["value"].as_f64().unwrap()
    };
    let (file, folder) = (eval("new.rpa"), eval("folder"));
    assert!((file / folder - 1.0).abs() < 1e-6, "{file} {folder}");
    fixture
        .run("export --from @out/peft --base @decoder.rpb -o @x.rpa --task 123456789012345678901234567890123")
        .fails(exit::USAGE, "--task: expected 1 to 32 bytes");
    fixture
        .run("export --from @out/peft --base @decoder.rpb -o @x.rpa --pooling last")
        .fails(exit::BAD_INPUT, "expected an adapter with a task head");
    let headed = "export --from @encoder.rpa --base @encoder.rpb -o @head";
    fixture.run(&format!("{headed} --labels a,b")).fails(exit::USAGE, "--labels: expected 3 names, found 2");
    let written = fixture.run(&format!("{headed} --labels a,b,c --format json")).json();
    assert_eq!(written["labels"], json!(["a", "b", "c"]));
}
