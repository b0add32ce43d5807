//! Folders that are damaged, or hold what is not supported: one message that names the part.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::super::load;
use crate::Error;
use crate::data::test_data::carried;

/// A copy of a family's folder that goes away with the test.
pub(super) struct Copy(tempfile::TempDir);

impl Copy {
    pub(super) fn of(family: &str) -> Self {
        let copy = Self(tempfile::tempdir().unwrap());
        for file in fs::read_dir(carried("hf-golden").join(family)).unwrap() {
            let file = file.unwrap().path();
            if file.is_file() {
                fs::copy(&file, copy.path().join(file.file_name().unwrap())).unwrap();
            }
        }
        copy
    }

    pub(super) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(super) fn error(&self) -> Error {
        load(self.path()).unwrap_err()
    }

    /// Sets an option, or removes it.
    pub(super) fn option(&self, key: &str, value: Option<Value>) -> &Self {
        let path = self.path().join("config.json");
        let mut config: BTreeMap<String, Value> = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        match value {
            Some(value) => config.insert(key.into(), value),
            None => config.remove(key),
        };
        fs::write(path, serde_json::to_vec(&config).unwrap()).unwrap();
        self
    }

    /// Writes the tensors anew, `change`d.
    pub(super) fn tensors(&self, change: impl FnOnce(&mut HashMap<String, candle_core::Tensor>)) -> &Self {
        let path = self.path().join("model.safetensors");
        let mut tensors = candle_core::safetensors::load(&path, &candle_core::Device::Cpu).unwrap();
        change(&mut tensors);
        candle_core::safetensors::save(&tensors, path).unwrap();
        self
    }
}

/// Each message names the option and the value.
#[test]
fn options_that_are_not_supported() {
    for (family, key, value, part) in [
        ("llama", "model_type", json!("mamba"), "model_type: expected"),
        ("llama", "model_type", json!(7), "expected a word, found 7"),
        (
            "llama",
            "hidden_act",
            json!("relu"),
            r#"hidden_act: expected "silu": nothing else is supported, found "relu""#,
        ),
        ("llama", "pretraining_tp", json!(2), "pretraining_tp: expected 1"),
        (
            "llama",
            "architectures",
            json!(["LlamaForSequenceClassification"]),
            "expected LlamaForCausalLM or LlamaModel",
        ),
        (
            "llama",
            "rope_parameters",
            json!({"rope_type": "yarn", "factor": 2.0}),
            r#"rope_parameters.rope_type: expected default, linear or llama3, found "yarn""#,
        ),
        (
            "llama",
            "rope_parameters",
            json!({"rope_type": "linear"}),
            "rope_parameters.factor: expected a number above 0, found nothing",
        ),
        (
            "llama",
            "rope_parameters",
            json!({"rope_theta": 9.0, "partial_rotary_factor": 0.5}),
            "partial_rotary_factor: expected no such option, found 0.5",
        ),
        ("llama", "rope_scaling", json!("linear"), "rope_scaling: expected an object"),
        ("llama", "head_dim", json!(5), "head_dim: expected an even number"),
        ("llama", "num_key_value_heads", json!(4), "expected a divisor of num_attention_heads 6, found 4"),
        ("llama", "quantization_config", json!({"bits": 4}), "quantization_config: expected no such option"),
        (
            "llama",
            "logit_scale",
            json!(0.5),
            "logit_scale: expected no such option: what it would change is not known, found 0.5",
        ),
        ("llama", "rms_norm_eps", json!(0), "rms_norm_eps: expected a number above 0, found 0"),
        ("llama", "tie_word_embeddings", json!("yes"), "expected true or false"),
        ("gpt2", "activation_function", json!("relu"), r#"found "relu""#),
        ("gpt2", "scale_attn_weights", json!(false), "scale_attn_weights: expected true"),
        ("gpt2", "add_cross_attention", json!(true), "add_cross_attention: expected false"),
        ("gpt2", "n_head", json!(3), "n_head: expected a divisor of the width 20, found 3"),
        ("gpt2", "n_embd", json!(-20), "n_embd: expected a whole number from 1, found -20"),
    ] {
        let copy = Copy::of(family);
        let error = copy.option(key, Some(value)).error().to_string();
        assert!(error.contains(part) && error.contains("config.json"), "{error}");
    }
    for (family, key) in [
        ("llama", "model_type"),
        ("llama", "vocab_size"),
        ("llama", "max_position_embeddings"),
        ("gpt2", "n_layer"),
        ("gpt2", "activation_function"),
    ] {
        let error = Copy::of(family).option(key, None).error().to_string();
        assert!(
            error.contains(&format!("config.json: {key}: expected")) && error.ends_with("found nothing"),
            "{error}"
        );
    }
}

/// What is off, and what says nothing about the computation, is passed over.
#[test]
fn options_without_effect() {
    let copy = Copy::of("llama");
    for (key, value) in [
        ("some_new_switch", json!(false)),
        ("another", Value::Null),
        ("attention_dropout", json!(0.3)),
        ("torch_dtype", json!("bfloat16")),
        ("sliding_window", Value::Null),
    ] {
        copy.option(key, Some(value));
    }
    load(copy.path()).unwrap();
}

#[test]
fn tensors_that_do_not_fit() {
    const NAME: &str = "model.layers.1.mlp.up_proj.weight";
    let error = Copy::of("llama").tensors(|tensors| drop(tensors.remove(NAME))).error();
    assert!(
        matches!(&error, Error::MissingTensor { tensor, expected, .. } if tensor == NAME && expected == &[36, 24]),
        "{error}"
    );
    let narrow = |tensors: &mut HashMap<String, candle_core::Tensor>| {
        let short = tensors[NAME].narrow(1, 0, 23).unwrap().contiguous().unwrap();
        tensors.insert(NAME.into(), short);
    };
    let error = Copy::of("llama").tensors(narrow).error().to_string();
    assert!(
        error.ends_with(r#""model.layers.1.mlp.up_proj.weight": expected shape [36, 24], found [36, 23]"#),
        "{error}"
    );
    let wide = |tensors: &mut HashMap<String, candle_core::Tensor>| {
        let wide = tensors[NAME].to_dtype(candle_core::DType::F64).unwrap();
        tensors.insert(NAME.into(), wide);
    };
    let error = Copy::of("llama").tensors(wide).error().to_string();
    assert!(error.ends_with("expected elements of type F32, F16 or BF16, found F64"), "{error}");
    let norm = |tensors: &mut HashMap<String, candle_core::Tensor>| {
        let norm = tensors["model.norm.weight"].clone();
        tensors.insert("model.layers.0.self_attn.q_norm.weight".into(), norm);
    };
    let error = Copy::of("llama").tensors(norm).error().to_string();
    assert!(error.ends_with("found also model.layers.0.self_attn.q_norm.weight"), "{error}");
    // The options say that there are more layers than the file has.
    let error = Copy::of("gpt2").option("n_layer", Some(json!(3))).error();
    assert!(
        matches!(&error, Error::MissingTensor { tensor, .. } if tensor == "transformer.h.2.ln_1.weight"),
        "{error}"
    );
}

#[test]
fn files_that_are_cut_or_something_else() {
    let copy = Copy::of("gpt2");
    let path = copy.path().join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    for (content, part) in [
        (&bytes[..bytes.len() - 7], format!("expected {} bytes, found {}", bytes.len(), bytes.len() - 7)),
        (&bytes[..40], "another or a cut file?".into()),
        (&bytes[..5], "found 5 bytes".into()),
        (&b"{\"not\": \"a model\"} and no header either"[..], "another or a cut file?".into()),
    ] {
        fs::write(&path, content).unwrap();
        let error = copy.error().to_string();
        assert!(error.contains(&part) && error.contains("model.safetensors"), "{error}");
    }
    let mut damaged = bytes.clone();
    damaged[8..12].copy_from_slice(b"????");
    fs::write(&path, damaged).unwrap();
    assert!(copy.error().to_string().contains("a header that is none"));
    fs::remove_file(&path).unwrap();
    assert!(matches!(copy.error(), Error::Io { .. }));
    fs::write(copy.path().join("config.json"), "[1, 2").unwrap();
    assert!(copy.error().to_string().contains("config.json: content: expected a JSON object"));
}

#[test]
fn shards_that_do_not_fit_their_index() {
    let copy = Copy::of("llama-tied");
    let path = copy.path().join("model.safetensors.index.json");
    let text = fs::read_to_string(&path).unwrap();
    let index: Value = serde_json::from_str(&text).unwrap();
    let first = index["weight_map"]["model.norm.weight"].as_str().unwrap();
    for (name, part) in [
        ("model-00009-of-00009.safetensors", "model-00009-of-00009.safetensors: "),
        ("../gpt2/model.safetensors", "expected names of files beside it"),
    ] {
        fs::write(&path, text.replace(first, name)).unwrap();
        let error = copy.error().to_string();
        assert!(error.contains(part), "{error}");
    }
    let mut other = index.clone();
    let second = index["weight_map"]["model.embed_tokens.weight"].as_str().unwrap();
    assert_ne!(first, second);
    other["weight_map"]["model.norm.weight"] = json!(second);
    fs::write(&path, other.to_string()).unwrap();
    let error = copy.error().to_string();
    assert!(error.contains("weight_map of model.norm.weight: expected model-"), "{error}");
    fs::write(&path, text).unwrap();
    fs::remove_file(copy.path().join(first)).unwrap();
    assert!(matches!(copy.error(), Error::Io { .. }));
}
