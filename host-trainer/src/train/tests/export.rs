//! Tests of what is written: the device's code reads it, agrees with the float adapter, and passes the self-test.

use rankpatch_format::adapter::{Adapter, Pooling};
use rankpatch_format::layout::Layout;
use rankpatch_format::link::Mode;
use rankpatch_format::write::AdapterData;

use super::tiny::{class_config, classes, config, network, texts};
use crate::Error;
use crate::base::Image;
use crate::export::{dequantize, export, hardly_rounded};
use crate::lora::{FloatAdapter, SiteFactors};
use crate::quant;
use crate::sim::Simulator;
use crate::train::{Length, TaskData, TrainConfig, Trainer, evaluate_float};

/// An adapter, its file and a device with it, after a run of so many steps.
fn exported(config: TrainConfig, data: TaskData, steps: u64) -> (Trainer, FloatAdapter, Vec<u8>, Simulator) {
    let config = TrainConfig { length: Length::Steps(steps), ..config };
    let mut trainer = Trainer::new(config, &network(), data).unwrap();
    trainer.run(&mut (), None).unwrap();
    let adapter = trainer.adapter().unwrap();
    let image = Image::build(&network(), Layout::RowMajor, 4).unwrap();
    let device = |file: &[u8]| Simulator::new(image.clone())?.with_adapter(file.to_vec(), Mode::Streamed);
    let file = export(&adapter, &network(), 3, |file| device(file)?.self_test_digest()).unwrap().file;
    let device = device(&file).unwrap();
    (trainer, adapter, file, device)
}

#[test]
fn the_device_measures_what_the_trainer_measured() {
    for (config, data, bound) in [(config(), texts(), 0.03), (class_config(), classes(), 0.03)] {
        let (trainer, adapter, _, device) = exported(config, data, 60);
        let test = &trainer.data().test;
        let float = evaluate_float(trainer.model(), Some(&adapter), test).unwrap();
        let streamed = device.evaluate(test).unwrap();
        assert_eq!((streamed.name, streamed.examples), (float.name, float.examples));
        assert!((streamed.value - float.value).abs() <= bound * float.value, "{streamed:?} {float:?}");
    }
}

#[test]
fn hardly_rounded_factors_are_the_float_ones_to_the_device() {
    let (trainer, adapter, file, device) = exported(config(), texts(), 30);
    let image = device.image().clone();
    let base = image.base().unwrap();
    // How far the updates of a file are from those of the float factors, all sites together.
    let error = |file: &[u8]| {
        let data = AdapterData::read(&Adapter::new(file, &base).unwrap(), &base);
        let written = dequantize(&data, &network()).unwrap();
        let square = |(float, written): (&SiteFactors, &SiteFactors)| -> f64 {
            let (float, written) = (delta_weight(float), delta_weight(written));
            float.iter().zip(written).map(|(float, written)| (float - written).powi(2)).sum()
        };
        adapter.sites.iter().zip(&written.sites).map(square).sum::<f64>().sqrt()
    };
    let fine = hardly_rounded(&adapter, &network()).unwrap();
    assert!(error(&fine) < 0.03 * error(&file), "{} {}", error(&fine), error(&file));

    let test = &trainer.data().test;
    let found =
        device.clone().without_adapter().with_adapter(fine, Mode::Streamed).unwrap().evaluate(test).unwrap();
    let float = evaluate_float(trainer.model(), Some(&adapter), test).unwrap();
    assert!((found.value / float.value - 1.0).abs() < 0.02, "{found:?} {float:?}");
    let mut wide = adapter;
    wide.sites[0].site.rank = 100;
    wide.sites[0].lora_a = vec![0.1; 100 * wide.sites[0].site.in_features];
    wide.sites[0].lora_b = vec![0.1; 100 * wide.sites[0].site.out_features];
    let file = hardly_rounded(&wide, &network()).unwrap();
    let refused = device.without_adapter().with_adapter(file, Mode::Streamed).map(|_| ()).unwrap_err();
    assert!(matches!(refused, Error::Format(rankpatch_format::Error::RankOutOfRange { .. })), "{refused}");
}

/// scaling * lora_b lora_a, `[out_features, in_features]`.
fn delta_weight(factors: &SiteFactors) -> Vec<f64> {
    let SiteFactors { site, lora_a, lora_b } = factors;
    let product = |o: usize, i: usize| -> f64 {
        let terms = (0..site.rank)
            .map(|j| f64::from(lora_b[o * site.rank + j]) * f64::from(lora_a[j * site.in_features + i]));
        site.scaling * terms.sum::<f64>()
    };
    (0..site.out_features).flat_map(|o| (0..site.in_features).map(move |i| product(o, i))).collect()
}

#[test]
fn a_file_says_what_it_holds_and_its_self_test_passes() {
    let (_, adapter, file, device) = exported(class_config(), classes(), 6);
    let image = device.image().clone();
    let base = image.base().unwrap();
    let read = Adapter::new(&file, &base).unwrap();
    let rank = 3;
    let factors: usize =
        adapter.sites.iter().map(|f| rank * (f.site.in_features + f.site.out_features)).sum();
    assert_eq!(read.payload_bytes(), factors + 2 * 12, "r (in + out) bytes a site, and the head");
    assert_eq!((read.body().task, read.header().sequence, read.body().alpha), ("tiny", 3, 6.0));
    let head = read.head().unwrap();
    assert_eq!(head.labels().collect::<Vec<_>>(), ["low", "high"]);
    assert_eq!(head.info.pooling, Pooling::Mean);
    assert_eq!(read.body().self_test.digest, device.self_test_digest().unwrap());
    device.session(|engine| Ok(engine.self_test()?)).unwrap();

    // A lost factor is a failed self-test.
    let mut data = AdapterData::read(&read, &base);
    data.patches[2].lora_b.fill(0);
    let broken = data.write().unwrap();
    let device = Simulator::new(image.clone()).unwrap().with_adapter(broken, Mode::Streamed).unwrap();
    assert!(device.session(|engine| Ok(engine.self_test()?)).is_err());
}

#[test]
fn a_file_read_back_gives_the_same_codes_again() {
    let (_, _, file, device) = exported(class_config(), classes(), 6);
    let image = device.image().clone();
    let base = image.base().unwrap();
    let data = AdapterData::read(&Adapter::new(&file, &base).unwrap(), &base);
    let float = dequantize(&data, &network()).unwrap();
    let again = crate::export::quantize(&float, &network(), 3).unwrap();
    for (first, second) in data.patches.iter().zip(&again.patches) {
        assert_eq!((first.site, &first.lora_a), (second.site, &second.lora_a));
        // The product of two rounded numbers may round the scale up by one unit, and with it some codes down by one.
        for (first, second) in first.scales.iter().zip(&second.scales) {
            assert!((0..=1).contains(&(i32::from(second.to_bits()) - i32::from(first.to_bits()))));
        }
        for (first, second) in first.lora_b.iter().zip(&second.lora_b) {
            assert!(first.abs_diff(*second) <= 1);
        }
    }
    assert_eq!(data.head, again.head);
}

#[test]
fn head_codes_stand_for_the_weight_within_half_a_step() {
    let weight = [0.5, -1.27, 0.3, 0.0, 0.0, 0.0, 2e-3, 1e-3, -5e-4];
    let codes = quant::quantize_head(&weight, 3, 3).unwrap();
    assert_eq!(codes.codes[3..6], [0, 0, 0]);
    for (at, (weight, found)) in weight.iter().zip(codes.dequantize()).enumerate() {
        let step = codes.scales[at / 3].to_f32();
        assert!((weight - found).abs() <= 0.5001 * step, "{weight} {found} {step}");
    }
    assert!(quant::quantize_head(&[1e9], 1, 1).is_err(), "no f16 holds that scale");
    assert!(quant::quantize_head(&[f32::NAN], 1, 1).is_err());
    assert!(quant::quantize_head(&[1.0], 1, 2).is_err());
}
