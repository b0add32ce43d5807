//! Dumps of a partition: refused with an error, or read; what was read is whole, and a bundle of it reads the same.

use rankpatch::bundle::{self, Contents, Geometry};
use rankpatch_format::adapter::Preview;
use rankpatch_format::fixture;

use super::Target;

pub(super) const TARGET: Target = Target { name: "bundle", run, seeds };

/// Partitions that would be larger are not tried: a geometry may ask for any amount.
const MAX_PARTITION_BYTES: usize = 1 << 16;

/// The first five bytes are the geometry, the rest is the image, and what it lacks is erased.
fn geometry([slots, slot, journal, word, kind]: [u8; 5]) -> Geometry {
    let page_bytes = if kind & 2 == 0 { 512 } else { 1024 };
    Geometry {
        slots: usize::from(slots % 40),
        // Mostly whole pages.
        slot_bytes: usize::from(slot % 8) * page_bytes + usize::from(slot / 250),
        journal_pages: usize::from(journal % 10),
        page_bytes,
        word_bytes: usize::from(word % 33),
        erased: match kind / 4 % 16 {
            0 => 0x5A,
            _ if kind & 1 == 0 => 0xFF,
            _ => 0x00,
        },
    }
}

fn run(data: &[u8]) {
    let Some((first, content)) = data.split_first_chunk() else { return };
    let geometry = geometry(*first);
    let capacity = geometry.partition_bytes();
    if capacity > MAX_PARTITION_BYTES {
        return;
    }
    // A dump that is too short is refused.
    assert!(
        content.len() >= capacity || bundle::read(&geometry, content).is_err(),
        "half a partition was read"
    );
    let mut image = content.to_vec();
    image.resize(capacity.max(content.len()), geometry.erased);
    let Ok(contents) = bundle::read(&geometry, &image) else { return };
    check(&geometry, &contents);
    let files: Vec<Vec<u8>> = contents.slots.iter().map(|slot| slot.file.clone()).collect();
    let files: Vec<_> = files.into_iter().filter(|file| Preview::new(file).is_ok()).collect();
    let Ok(again) = bundle::build(&geometry, &files, None) else { return };
    let again = bundle::read(&geometry, &again).expect("what was built can be read");
    check(&geometry, &again);
    let sorted = |files: &mut Vec<Vec<u8>>| files.sort();
    let mut found: Vec<_> = again.slots.into_iter().map(|slot| slot.file).collect();
    found.retain(|file| !file.is_empty());
    let mut expected = files;
    sorted(&mut expected);
    sorted(&mut found);
    assert_eq!(found, expected, "a bundle holds other files than were put into it");
}

fn check(geometry: &Geometry, contents: &Contents) {
    assert_eq!(contents.slots.len(), geometry.slots);
    assert!(contents.active.is_none_or(|slot| slot < geometry.slots), "a slot that does not exist is active");
    for slot in &contents.slots {
        assert_eq!(slot.file.len(), slot.file_bytes);
        assert!(slot.file_bytes < geometry.slot_bytes, "a file larger than its slot");
        assert_eq!(slot.task.is_some(), slot.sequence.is_some());
    }
}

fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let network = fixture::decoder();
    let file = |sequence| {
        let data = fixture::adapter(&network, &[(0, 1)], None, 0.1, sequence);
        let mut file = data.write().expect("a valid adapter");
        let header = rankpatch_format::header::Header::new(&file).expect("a header");
        let header = rankpatch_format::header::Header { sequence, ..header };
        rankpatch_format::header::set_header(&mut file, &header).expect("a whole file");
        file
    };
    let seed = |first: [u8; 5], files: &[Vec<u8>], active| {
        let image = bundle::build(&geometry(first), files, active).expect("files that fit");
        [&first[..], &image].concat()
    };
    let (one, two) = (file(3), file(5));
    let task = Preview::new(&one).expect("a valid file").body.task.to_owned();
    vec![
        ("empty", seed([2, 1, 3, 4, 4], &[], None)),
        ("two", seed([3, 4, 3, 8, 4], &[one.clone(), two], None)),
        ("active", seed([1, 2, 3, 1, 7], &[one], Some(&task))),
    ]
}
