//! The carried adapters as files: what their self-tests state is what the device's code computes, and the test key signed
//! them. `cargo xtask golden` writes both anew after a change of the numerics.

use std::fs;

use rankpatch::keys::{SecretKey, read_public, verify};
use rankpatch::sim::Simulator;
use rankpatch_format::adapter::{Adapter, Preview};
use rankpatch_format::layout::Layout;
use rankpatch_format::link::Mode;
use rankpatch_format::write::AdapterData;

use crate::{image, path};

#[test]
fn carried_adapters_state_what_the_device_computes_and_are_signed() {
    let write = std::env::var_os("RANKPATCH_WRITE_GOLDEN").is_some();
    let bases: Vec<_> = fs::read_dir(path("tests/data/bases"))
        .unwrap()
        .map(|entry| image(entry.unwrap().file_name().to_str().unwrap(), Layout::RowMajor))
        .collect();
    let mut files: Vec<_> =
        fs::read_dir(path("tests/data/adapters")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "rpa"));
    assert!(files.len() >= 3, "{files:?}");
    for path_of_file in files {
        let mut file = fs::read(&path_of_file).unwrap();
        let header = Preview::new(&file).unwrap().header;
        let image =
            bases.iter().find(|image| image.base().unwrap().id() == header.base_id).expect("its base");
        let simulator = Simulator::new(image.clone()).unwrap();
        let digest_of = |file: &[u8]| {
            simulator.clone().with_adapter(file.to_vec(), Mode::Streamed).unwrap().self_test_digest().unwrap()
        };
        if write {
            let base = image.base().unwrap();
            let mut data = AdapterData::read(&Adapter::new(&file, &base).unwrap(), &base);
            data.self_test.digest = digest_of(&file);
            file = data.write().unwrap();
            let key = SecretKey::read(&path("tests/data/keys/test.key")).unwrap();
            key.sign(&mut file, header.product, header.sequence, header.step_limit).unwrap();
            fs::write(&path_of_file, &file).unwrap();
        }
        let stated = Preview::new(&file).unwrap().body.self_test.digest;
        assert_eq!(stated, digest_of(&file), "{}", path_of_file.display());
        verify(&file, &[read_public(&path("tests/data/keys/test.pub")).unwrap()]).unwrap();
    }
}
