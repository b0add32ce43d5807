//! Tests of PEFT folders: what goes out comes in again, and what does not fit is refused.

use std::fs;
use std::path::Path;

use super::tiny::{class_config, classes, config, network, texts};
use crate::Error;
use crate::lora::FloatAdapter;
use crate::peft;
use crate::train::{Length, TaskData, TrainConfig, Trainer};

fn adapter(config: TrainConfig, data: TaskData) -> FloatAdapter {
    let mut trainer =
        Trainer::new(TrainConfig { length: Length::Steps(3), ..config }, &network(), data).unwrap();
    trainer.run(&mut (), None).unwrap();
    trainer.adapter().unwrap()
}

fn json(path: &Path) -> serde_json::Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn a_folder_comes_back_as_it_went_out() {
    let folder = tempfile::tempdir().unwrap();
    let mut ranks = config();
    ranks.lora.rank_pattern = [("ffn.down".to_owned(), 5)].into();
    ranks.lora.alpha_pattern = [("attn.q".to_owned(), 1.5)].into();
    ranks.lora.use_rslora = true;
    for (name, original) in
        [("text", adapter(ranks, texts())), ("classes", adapter(class_config(), classes()))]
    {
        let path = folder.path().join(name);
        peft::write(&original, &network(), &path).unwrap();
        let read = peft::read(&path, &network()).unwrap();
        assert_eq!(read.sites, original.sites, "sites, ranks, scalings and every bit of the factors");
        assert_eq!(read.head, original.head);
        assert_eq!((read.task, read.base_id), (original.task.clone(), original.base_id));
        // The same adapter gives the same files.
        let again = folder.path().join("again");
        peft::write(&original, &network(), &again).unwrap();
        for file in ["adapter_config.json", "adapter_model.safetensors", "rankpatch.json"] {
            assert_eq!(fs::read(path.join(file)).unwrap(), fs::read(again.join(file)).unwrap(), "{file}");
        }
    }
    let config = json(&folder.path().join("text/adapter_config.json"));
    assert_eq!(config["peft_type"], "LORA");
    assert_eq!(
        (&config["r"], &config["lora_alpha"], &config["use_rslora"]),
        (&3.into(), &6.0.into(), &true.into())
    );
    assert_eq!(config["rank_pattern"], serde_json::json!({ "layers.0.ffn.down": 5 }));
    assert_eq!(config["alpha_pattern"], serde_json::json!({ "layers.0.attn.q": 1.5 }));
    assert_eq!(config["target_modules"].as_array().unwrap().len(), 6);
    let bytes = fs::read(folder.path().join("classes/adapter_model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let shape = |name: &str| file.tensor(name).unwrap().shape().to_vec();
    assert_eq!(shape("base_model.model.layers.0.attn.k.lora_A.weight"), [3, 12]);
    assert_eq!(shape("base_model.model.layers.0.attn.k.lora_B.weight"), [6, 3]);
    assert_eq!(shape("base_model.model.head.weight"), [2, 12]);
}

#[test]
fn a_folder_without_our_extra_file_is_read_too() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mood");
    let original = adapter(class_config(), classes());
    peft::write(&original, &network(), &path).unwrap();
    fs::remove_file(path.join("rankpatch.json")).unwrap();
    let read = peft::read(&path, &network()).unwrap();
    assert_eq!(read.sites, original.sites);
    assert_eq!(read.task, "mood");
    assert_eq!(read.head.unwrap().labels, ["0", "1"]);
}

#[test]
fn what_does_not_fit_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    peft::write(&adapter(config(), texts()), &network(), path).unwrap();
    let refusal = || peft::read(path, &network()).map(|_| ()).unwrap_err().to_string();

    let config_path = path.join("adapter_config.json");
    let good = json(&config_path);
    for (key, value, expected) in [
        ("peft_type", serde_json::json!("IA3"), "peft_type: expected \"LORA\", found \"IA3\""),
        ("use_dora", serde_json::json!(true), "use_dora: expected none: plain LoRA, found true"),
        (
            "bias",
            serde_json::json!("some"),
            "bias: expected \"none\", \"lora_only\" or \"all\", found \"some\"",
        ),
        ("r", serde_json::json!(0), "r: expected 1 or more, found 0"),
    ] {
        let mut bad = good.clone();
        bad[key] = value;
        fs::write(&config_path, bad.to_string()).unwrap();
        assert!(refusal().contains(expected), "{}", refusal());
    }
    fs::write(&config_path, good.to_string()).unwrap();

    let mut other = network();
    other.site_names[0] = "layers.0.attn.query".into();
    fs::remove_file(path.join("rankpatch.json")).unwrap();
    let error = peft::read(path, &other).unwrap_err().to_string();
    assert!(
        error.contains("layers.0.attn.query") && error.contains("found base_model.model.layers.0.attn.q."),
        "{error}"
    );

    let tensors = path.join("adapter_model.safetensors");
    let bytes = fs::read(&tensors).unwrap();
    fs::write(&tensors, &bytes[..bytes.len() - 1]).unwrap();
    assert!(refusal().contains("expected safetensors"), "{}", refusal());
    fs::remove_file(&tensors).unwrap();
    assert!(matches!(peft::read(path, &network()), Err(Error::Io { .. })));
}

#[test]
fn the_adapter_of_another_base_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    peft::write(&adapter(config(), texts()), &network(), folder.path()).unwrap();
    let mut other = network();
    other.max_rows += 1;
    let error = peft::read(folder.path(), &other).unwrap_err().to_string();
    assert!(error.contains("base_id: expected") && error.contains(&network().id().to_string()), "{error}");
}
