//! Devices with everything: 1 MB of flash that holds firmware, a base and an adapter in every slot that there is room for, booted from one image in
//! QEMU and switched through all of its tasks.

use rankpatch::bundle::{self, Geometry};
use rankpatch::client::{Device, Options, Tcp};
use rankpatch::sim::{Input, Simulator};
use rankpatch_format::adapter::Adapter;
use rankpatch_format::digest::XorShift32;
use rankpatch_format::fixture;
use rankpatch_format::layout::Layout;
use rankpatch_format::link::Mode;
use rankpatch_format::write::{AdapterData, HeadData, Network, PatchData};
use xtask::board::Board;
use xtask::firmware::{self, Reads};
use xtask::flash::Division;
use xtask::qemu::{Options as Emulation, Qemu};

use crate::qemu::sealed;
use crate::{adapter, golden_clips, image, signed};

const FLASH_BYTES: usize = 1 << 20;

/// A product in one image, booted.
struct Product {
    device: Device<Tcp>,
    qemu: Qemu,
    /// The base alone, then with each slot's adapter.
    hosts: Vec<Simulator>,
}

/// The carried adapters and `filler` ones, as many as there are slots for files of their size, which must be `slots`.
fn product(
    name: &str,
    simulator: &Simulator,
    carried: Vec<Vec<u8>>,
    filler: impl Fn(u32) -> AdapterData,
    slots: usize,
) -> Product {
    let board = Board::find("qemu-mps2-an386").unwrap();
    let base = simulator.image().bytes().to_vec();
    let reads = Reads::of_vocabulary(simulator.base().unwrap().vocab_size().into());
    let firmware_bytes = firmware::flash_bytes(&board, reads).unwrap();
    let page_bytes = board.page_bytes as usize;
    let mut files = carried;
    for seed in files.len()..slots {
        files.push(sealed(&filler(seed as u32), simulator));
    }
    let files: Vec<Vec<u8>> = files.iter().zip(1..).map(|(file, sequence)| signed(file, sequence)).collect();
    let largest = files.iter().map(Vec::len).max().unwrap();
    let plan = bundle::plan(FLASH_BYTES, firmware_bytes as usize, base.len(), largest, page_bytes).unwrap();
    println!("{name}: {plan:?}, files of at most {largest} bytes");
    assert_eq!(plan.slots, slots, "what fits has changed");
    let geometry = Geometry {
        slots: plan.slots,
        slot_bytes: plan.slot_bytes,
        journal_pages: plan.journal_bytes / page_bytes,
        page_bytes,
        word_bytes: 4,
        erased: 0xFF,
    };
    let partition = bundle::build(&geometry, &files, None).unwrap();
    let parts = [firmware_bytes, base.len() as u64, partition.len() as u64];
    let division = Division::new(&board, FLASH_BYTES as u64, parts, plan.slot_bytes as u64).unwrap();
    let used = division.slots.origin + division.slots.length - division.flash.origin;
    assert_eq!(used as usize + plan.free_bytes, FLASH_BYTES, "the plan and the image differ");
    let elf = firmware::build_divided(&board, reads, &division, name).unwrap();
    let flash = elf.with_extension("bin");
    std::fs::write(&flash, division.image(&elf, &base, &partition).unwrap()).unwrap();
    let qemu = Qemu::boot(&board, &elf, &Emulation { flash: Some(flash), ..Emulation::default() }).unwrap();
    let transport = Tcp::connect(&qemu.link_address().to_string()).unwrap();
    let device = Device::new(transport, Options::default()).unwrap();
    let mut hosts = vec![simulator.clone()];
    hosts.extend(files.into_iter().map(|file| simulator.clone().with_adapter(file, Mode::Streamed).unwrap()));
    Product { device, qemu, hosts }
}

impl Product {
    /// Switches to every task in turn and then at random, `switches` times in all, and to the base at the end; asks each time.
    fn session(
        mut self,
        switches: usize,
        ask: impl Fn(&mut Device<Tcp>) -> Vec<f32>,
        expect: impl Fn(&Simulator) -> Vec<f32>,
    ) {
        let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<_>>();
        let expected: Vec<_> = self.hosts.iter().map(|host| bits(expect(host))).collect();
        let (plain, expected) = expected.split_first().unwrap();
        assert_eq!(usize::from(self.device.info().unwrap().n_slots), expected.len());
        assert!(bits(ask(&mut self.device)) == *plain, "the base differs");
        let mut random = XorShift32::new(12);
        for switch in 0..switches {
            let slot =
                if switch < expected.len() { switch } else { random.next_u32() as usize % expected.len() };
            let activated = self.device.activate(slot as u8, Mode::Streamed, 0).unwrap();
            assert_eq!(activated.weight_bytes_copied, 0);
            let found = bits(ask(&mut self.device));
            assert!(found == expected[slot], "switch {switch}: slot {slot} differs from the host");
            assert!(found != *plain, "switch {switch}: slot {slot} changes nothing");
        }
        self.device.detach().unwrap();
        assert!(bits(ask(&mut self.device)) == *plain, "the base has not come back");
        self.qemu.stop();
    }
}

/// Places of sites whose names end in one of `endings`.
fn sites(network: &Network, endings: &[&str]) -> Vec<u16> {
    let names = network.site_names.iter().zip(0..);
    names
        .filter(|(name, _)| endings.iter().any(|ending| name.ends_with(ending)))
        .map(|(_, site)| site)
        .collect()
}

/// A carried adapter without what is not at `sites`: its size is that of the others, and its answers are its own.
fn cut(file: &[u8], simulator: &Simulator, sites: &[u16]) -> Vec<u8> {
    let base = simulator.base().unwrap();
    let carried = Adapter::new(file, &base).unwrap();
    let mut patches = Vec::new();
    for patch in carried.patches(&base).filter(|patch| sites.contains(&patch.site)) {
        patches.push(PatchData {
            site: patch.site,
            scales: patch.component_scales().map(half::f16::from_f32).collect(),
            lora_a: patch.lora_a.to_vec(),
            lora_b: patch.lora_b.to_vec(),
        });
    }
    let head = carried.head().map(|head| HeadData {
        pooling: head.info.pooling,
        scales: head.row_scales().map(half::f16::from_f32).collect(),
        bias: head.bias().collect(),
        labels: head.labels().map(str::to_owned).collect(),
        codes: head.codes.to_vec(),
    });
    let body = carried.body();
    let data = AdapterData {
        task: body.task.to_owned(),
        base_id: base.id(),
        sequence: 1,
        alpha: body.alpha,
        patches,
        biases: Vec::new(),
        head,
        self_test: body.self_test,
    };
    sealed(&data, simulator)
}

#[test]
fn a_megabyte_holds_kwt1_with_twenty_tasks() {
    let simulator = Simulator::new(image("kwt1", Layout::Dsp4x4)).unwrap();
    let network = Network::read(&simulator.base().unwrap());
    let q_and_v = sites(&network, &["attn.q", "attn.v"]);
    assert_eq!(q_and_v.len(), 24);
    let speaker = cut(&adapter("speaker"), &simulator, &q_and_v);
    let ranks: Vec<_> = q_and_v.iter().map(|site| (*site, 4)).collect();
    let filler = |seed| {
        let data = fixture::adapter(&network, &ranks, Some(12), 0.05, seed + 1);
        AdapterData { task: format!("random-{seed}"), ..data }
    };
    let product = product("kwt1-everything", &simulator, vec![speaker], filler, 20);
    let (clips, _) = golden_clips();
    let clip = &clips[7];
    product.session(
        20,
        |device| device.run_features(clip, 98).unwrap().values,
        |host| host.outputs(&[Input::Features(clip)]).unwrap().remove(0),
    );
}

#[test]
fn a_megabyte_holds_stories_with_thirteen_tasks() {
    let simulator = Simulator::new(image("stories260k", Layout::Dsp4x4)).unwrap();
    let network = Network::read(&simulator.base().unwrap());
    let ranks: Vec<_> = (0..network.site_names.len() as u16 - 1).map(|site| (site, 8)).collect();
    let filler = |seed| {
        let data = fixture::adapter(&network, &ranks, None, 0.05, seed + 1);
        AdapterData { task: format!("random-{seed}"), ..data }
    };
    let carried = vec![adapter("names"), adapter("intent")];
    let product = product("stories260k-everything", &simulator, carried, filler, 13);
    let text = "play the newest song of the week";
    product.session(
        100,
        |device| device.run_text(text).unwrap().values,
        |host| host.outputs(&[Input::Tokens(&host.encode(text).unwrap())]).unwrap().remove(0),
    );
}
