//! Tests of factors that start at the base's principal directions (PiSSA).

use rankpatch_format::layout::Layout;
use rankpatch_format::link::Mode;

use super::tiny::{class_config, classes, config, network, texts};
use crate::base::Image;
use crate::export::export;
use crate::lora::{FloatAdapter, InitLora, LoraConfig};
use crate::sim::Simulator;
use crate::train::{Length, TrainConfig, Trainer, evaluate_float};
use crate::{peft, spectrum};

/// A run of so many steps, alpha twice the rank, that starts at the principal directions.
fn pissa(config: TrainConfig, steps: u64) -> TrainConfig {
    let lora = LoraConfig { init_lora_weights: InitLora::Pissa, dropout: 0.0, ..config.lora };
    TrainConfig { lora, length: Length::Steps(steps), ..config }
}

fn largest(adapter: &FloatAdapter) -> f64 {
    let values = adapter.sites.iter().map(|factors| spectrum::singular_values(factors).unwrap()[0]);
    values.fold(0.0, f64::max)
}

#[test]
fn before_the_first_step_the_base_is_what_it_was() {
    let trainer = Trainer::new(pissa(config(), 40), &network(), texts()).unwrap();
    let adapter = trainer.adapter().unwrap();
    let measure = |adapter| evaluate_float(trainer.model(), adapter, &texts().test).unwrap().value;
    let (base, found) = (measure(None), measure(Some(&adapter)));
    assert!((found / base - 1.0).abs() < 1e-6, "{base} {found}");
    assert!(largest(&adapter) < 1e-6, "{}", largest(&adapter));
    for factors in &adapter.sites {
        let site = &factors.site;
        assert_eq!((site.rank, site.alpha, site.scaling), (6, 12.0, 2.0), "{}", site.name);
        // The start is the best approximation of the weight that its rank allows.
        let weight = network()
            .sites()
            .nth(site.index.into())
            .map(|(_, weight)| crate::executor::dequantize(weight).into_owned());
        let (lora_a, lora_b) =
            spectrum::principal("", &weight.unwrap(), site.out_features, site.in_features, 3, 2.0).unwrap();
        assert_eq!(factors.lora_a, [lora_a.clone(), lora_a].concat());
        let halves: Vec<f32> =
            lora_b.chunks(3).flat_map(|row| row.iter().copied().chain(row.iter().map(|x| -x))).collect();
        assert_eq!(factors.lora_b, halves);
    }
}

#[test]
fn it_learns_and_what_is_written_is_what_was_trained() {
    let mut trainer = Trainer::new(pissa(config(), 60), &network(), texts()).unwrap();
    let start = trainer.adapter().unwrap();
    trainer.run(&mut (), None).unwrap();
    let adapter = trainer.adapter().unwrap();
    let test = &texts().test;
    let base = evaluate_float(trainer.model(), None, test).unwrap().value;
    let found = evaluate_float(trainer.model(), Some(&adapter), test).unwrap().value;
    assert!(found < 0.7 * base, "{base} {found}");
    for (before, after) in start.sites.iter().zip(&adapter.sites) {
        let (rank, inner) = (3, after.site.in_features);
        assert_ne!(after.lora_a[..rank * inner], before.lora_a[..rank * inner], "{}", after.site.name);
        assert_eq!(after.lora_a[rank * inner..], before.lora_a[rank * inner..], "the start stays");
        for (before, after) in before.lora_b.chunks(2 * rank).zip(after.lora_b.chunks(2 * rank)) {
            assert_ne!(after[..rank], before[..rank]);
            assert_eq!(after[rank..], before[rank..]);
        }
    }
    let image = Image::build(&network(), Layout::RowMajor, 4).unwrap();
    let file = export(&adapter, &network(), 1, |_| Ok(0)).unwrap().file;
    let device = Simulator::new(image).unwrap().with_adapter(file, Mode::Streamed).unwrap();
    let measured = device.evaluate(test).unwrap().value;
    assert!((measured / found - 1.0).abs() < 0.03, "{measured} {found}");

    let folder = tempfile::tempdir().unwrap();
    peft::write(&adapter, &network(), folder.path()).unwrap();
    let read = peft::read(folder.path(), &network()).unwrap();
    assert_eq!(read.sites, adapter.sites, "a plain update of twice the rank");
    let text = std::fs::read_to_string(folder.path().join("adapter_config.json")).unwrap();
    assert!(text.contains("\"init_lora_weights\": true"), "{text}");
}

#[test]
fn a_run_resumes_bit_for_bit_with_and_without_trimming() {
    for explained_variance in [None, Some(0.9)] {
        let config = || TrainConfig { explained_variance, save_steps: 9, ..pissa(class_config(), 20) };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("checkpoint.safetensors");
        let mut whole = Trainer::new(config(), &network(), classes()).unwrap();
        whole.run(&mut (), Some(&path)).unwrap();
        let mut resumed = Trainer::new(config(), &network(), classes()).unwrap();
        resumed.resume(&path).unwrap();
        assert_eq!(resumed.step(), 18);
        resumed.run(&mut (), None).unwrap();
        let (whole, resumed) = (whole.adapter().unwrap(), resumed.adapter().unwrap());
        assert_eq!(whole, resumed);
        let ranks: Vec<usize> = whole.sites.iter().map(|factors| factors.site.rank).collect();
        assert_eq!(ranks.iter().all(|rank| *rank == 6), explained_variance.is_none(), "{ranks:?}");
    }
}

#[test]
fn ranks_beyond_the_weight_start_as_plain_ones() {
    let mut config = pissa(config(), 8);
    config.lora.rank = 8;
    let trainer = Trainer::new(config, &network(), texts()).unwrap();
    let adapter = trainer.adapter().unwrap();
    // attn.k has 6 outputs: its components 6 and 7 have no singular value.
    let factors = adapter.sites.iter().find(|factors| factors.site.name == "layers.0.attn.k").unwrap();
    let rows: Vec<&[f32]> = factors.lora_a.chunks(12).take(8).collect();
    assert!(rows.iter().all(|row| row.iter().any(|value| *value != 0.0)));
    for row in factors.lora_b.chunks(16) {
        assert_eq!(row[6..8], [0.0; 2]);
    }
    assert!(largest(&adapter) < 1e-6);
}

#[test]
fn a_rank_that_no_file_can_hold_twice_is_refused() {
    let mut config = pissa(config(), 8);
    config.lora.rank = 129;
    let error = Trainer::new(config, &network(), texts()).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("expected 1 to 128, found 129"), "{error}");
}
