//! Tests of the report: what it says, that names stay names, and that the same run gives the same page.

use std::path::PathBuf;

use super::html::page;
use super::plot::Ink;
use super::{AdapterFile, AfterTraining, Evaluation, History, Metrics, SUMMARY, Site, Step, Summary};
use crate::lora::Bias;
use crate::rng::Rng;
use crate::train::{Method, Metric, MetricName, TrainConfig};

/// What a name must not be able to do.
const HOSTILE: &str = "</td><script>alert('1')</script><img src=x onerror=\"a&b\">";

fn summary(name: &str) -> Summary {
    let site = |index: usize| Site {
        name: format!("{name}.{index}"),
        in_features: 12,
        out_features: 7 + index,
        rank: 3,
        scaling: 2.5,
        payload_bytes: 3 * (19 + index),
        singular_values: vec![0.5, 0.25 / (1.0 + index as f64), 0.0],
        norm_ratio: 0.0175 * index as f64,
    };
    Summary {
        task: name.into(),
        base: name.into(),
        base_id: "00ff".into(),
        sites: 2,
        rank: 3,
        alpha: 7.5,
        trained: 12_345,
        steps: 60,
        file: Some(AdapterFile {
            adapter: PathBuf::from("a.rpa"),
            adapter_file_bytes: 411,
            payload_bytes: 150,
            self_test_digest: "0x1".into(),
        }),
        metric: Metrics {
            name: MetricName::BitsPerCharacter,
            examples: 1000,
            base: Some(3.5),
            after_training: Some(AfterTraining {
                step: 48,
                float: 1.25,
                float_device: Some(1.2525),
                device: 1.3125,
            }),
            adapter_float: 1.2,
            adapter_float_device: Some(1.205),
            adapter_device: Some(1.21),
        },
        training_seconds: 71.0,
        method: Method::Lora,
        peft: Some(PathBuf::from("peft")),
        model: None,
        peft_bytes: 2345,
        per_site: (1..3).map(site).collect(),
    }
}

fn history() -> History {
    let mut rng = Rng::new(4, "report");
    let steps = (1..=60).map(|step| Step {
        step,
        loss: 3.0 / step as f64 + 0.2 * f64::from(rng.uniform()),
        learning_rate: 1e-3 * (61 - step) as f64,
        tokens_per_second: 900.0,
        seconds: step as f64,
    });
    let evaluations = [20, 40, 60].map(|step| Evaluation {
        step,
        metric: Metric { name: MetricName::BitsPerCharacter, value: 30.0 / step as f64, examples: 1000 },
    });
    History {
        steps: steps.collect(),
        evaluations: evaluations.into(),
        quantized_from: Some(48),
        seconds: 71.0,
    }
}

fn config(name: &str) -> TrainConfig {
    TrainConfig { task: name.into(), data: PathBuf::from(name), ..TrainConfig::default() }
}

#[test]
fn a_page_says_what_a_run_made() {
    let page = page(&summary("names"), &history(), &config("names")).unwrap();
    for expected in [
        "<h1>names</h1>",
        "<b>1.2100</b><span>Bits per character on the device, base alone 3.5000",
        "411\u{a0}B",
        "<td>1.2500</td><td>1.2525</td><td>1.3125</td><td>+0.0600</td>",
        "<td>1.2000</td><td>1.2050</td><td>1.2100</td><td>+0.0050</td>",
        "took the device from 1.3125 to 1.2100 (lower is better)",
        "<td class=\"word\">names.2</td><td>9 x 12</td><td>3</td><td>2.5</td><td>63</td><td>3.50 %",
        "<td class=\"word\">lora.rank</td><td class=\"word\">8</td>",
        "quantization-aware part</span>",
    ] {
        assert!(page.contains(expected), "{expected} is not in {page}");
    }
    // Four plots, and a row of bars for each site.
    assert_eq!((page.matches("<figure").count(), page.matches("<svg").count()), (4, 4 + 2));
    let lines = |ink: Ink| page.matches(&format!("stroke=\"{}\" stroke-width=\"", ink.code())).count();
    assert_eq!(lines(Ink::Main), 3, "loss, learning rate, metric");
    assert_eq!(lines(Ink::Faint), 1 + 2, "losses, and the spectra of two sites");
    assert!(page.contains("prefers-color-scheme: dark") && page.contains("name=\"viewport\""));
    // 150 bytes of codes, 123 of them factors: the rest is a head.
    assert!(page.contains("<td class=\"word\">Codes of the task head</td><td>27</td>"));
}

#[test]
fn a_page_needs_nothing_else_and_is_the_same_again() {
    let make = || page(&summary("names"), &history(), &config("names")).unwrap();
    let page = make();
    assert_eq!(page, make());
    let elsewhere = page.replace("xmlns=\"http://www.w3.org/2000/svg\"", "").replace("http-equiv", "");
    for word in ["http", "//", "<script", "<link", "@import", "url(", "src="] {
        assert!(!elsewhere.contains(word), "{word}");
    }
}

#[test]
fn names_stay_names() {
    let found = page(&summary(HOSTILE), &history(), &config(HOSTILE)).unwrap();
    for tag in ["<script", "<img", "onerror=\"", "alert('"] {
        assert!(!found.contains(tag), "{tag}");
    }
    let text = "&lt;/td&gt;&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;&lt;img src=x onerror=&quot;a&amp;b&quot;&gt;";
    // Title, heading, base, two sites, and two keys of the configuration.
    assert_eq!(found.matches(text).count(), 7);
    let tags = |page: &str| page.matches('<').count();
    assert_eq!(tags(&found), tags(&page(&summary("names"), &history(), &config("names")).unwrap()));
}

#[test]
fn a_run_without_evaluations_or_a_quantization_aware_part_has_a_page() {
    let mut summary = summary("short");
    summary.metric = Metrics {
        name: MetricName::Accuracy,
        base: None,
        after_training: None,
        adapter_float: 0.925,
        adapter_float_device: None,
        adapter_device: Some(0.9),
        ..summary.metric
    };
    summary.per_site.iter_mut().for_each(|site| site.singular_values = vec![0.0]);
    let history = History { steps: history().steps[..1].to_vec(), ..History::default() };
    let page = page(&summary, &history, &config("short")).unwrap();
    assert!(page.contains("<td>92.50 %</td><td>-</td><td>90.00 %</td><td>-2.50 points</td>"));
    assert!(
        page.contains("its codes were made after training")
            && !page.contains("quantization-aware part</span>")
    );
    assert_eq!(page.matches("<figure").count(), 2, "loss and learning rate");
    assert!(!page.contains("NaN") && !page.contains("inf"));
}

/// A base that devices do not run: the same page about the PEFT folder, without a word on files and codes.
#[test]
fn a_run_without_a_file_for_devices_has_a_page() {
    let mut summary = summary("float");
    summary.file = None;
    summary.trained = 123 + 27;
    summary.metric =
        Metrics { after_training: None, adapter_float_device: None, adapter_device: None, ..summary.metric };
    let history = History { quantized_from: None, ..history() };
    let page = page(&summary, &history, &config("float")).unwrap();
    for expected in [
        "<b>1.2000</b><span>Bits per character in float, base alone 3.5000",
        "<td class=\"word\">Adapter</td><td>1.2000</td>",
        "<td class=\"word\">Floats of the factors</td><td>492</td>",
        "<td class=\"word\">Floats of the task head</td><td>108</td>",
        "PEFT folder</td><td>2\u{202f}345</td>",
        "<th>Numbers</th>",
    ] {
        assert!(page.contains(expected), "{expected} is not in {page}");
    }
    for word in ["odes", "on the device", "quantization-aware part</span>", "rounding costs"] {
        assert!(!page.contains(word), "{word} is in {page}");
    }
    assert_eq!(page.matches("<figure").count(), 4);
    let mut config = config("float");
    config.lora.bias = Bias::LoraOnly;
    let page = super::html::page(&summary, &history, &config).unwrap();
    assert!(page.contains("<td class=\"word\">Floats of the task head, biases</td><td>108</td>"));
}

/// `summary.json` is flat, has no field of a file that there is none of, and reads back as it was, NaN included.
#[test]
fn summaries_read_back_as_they_were() {
    let folder = tempfile::tempdir().unwrap();
    let back = |summary: &Summary| {
        summary.write(folder.path()).unwrap();
        let text = std::fs::read_to_string(folder.path().join(SUMMARY)).unwrap();
        (Summary::read(folder.path()).unwrap(), serde_json::from_str::<serde_json::Value>(&text).unwrap())
    };
    let mut summary = summary("flat");
    let (read, json) = back(&summary);
    assert_eq!(read, summary);
    assert_eq!((json["adapter_file_bytes"].as_u64(), json["adapter"].as_str()), (Some(411), Some("a.rpa")));
    assert_eq!(json["metric"]["adapter_device"], 1.21);

    summary.metric.adapter_device = Some(f64::NAN);
    let (read, _) = back(&summary);
    assert!(read.metric.adapter_device.is_some_and(f64::is_nan) && read.file == summary.file);

    summary.metric.adapter_device = None;
    summary.file = None;
    let (read, json) = back(&summary);
    assert_eq!(read, summary);
    assert!(json.get("adapter_file_bytes").is_none() && json["metric"].get("adapter_device").is_none());

    let damaged = json.to_string().replace("\"metric\":{", "\"metric\":{\"adapter_device\":1,");
    std::fs::write(folder.path().join(SUMMARY), damaged).unwrap();
    let error = Summary::read(folder.path()).unwrap_err().to_string();
    assert!(error.contains("missing field `adapter`"), "{error}");
}
