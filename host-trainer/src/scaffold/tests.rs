//! What projects say and hold. That they build and run is tested in `tests/tests/new.rs`.

use rankpatch_format::fixture;

use super::*;

/// This checkout.
fn here() -> PathBuf {
    checkout(&Path::new(env!("CARGO_MANIFEST_DIR")).join("..")).unwrap()
}

fn request<'a>(checkout: &'a Path, machine: &'a Machine, partitions: bool) -> Request<'a> {
    let network = fixture::encoder();
    let base = Image::build(&network, machine.layout, 1).unwrap();
    let question = Question::usual(&base.base().unwrap(), "unused").unwrap();
    let file = fixture::adapter(&network, &[(1, 2), (8, 5)], Some(3), 1.0, 3).write().unwrap();
    let adapters = vec![("one".to_owned(), file)];
    Request { name: "my-lamp", checkout, machine, base, adapters, question, partitions }
}

#[test]
fn no_placeholder_is_left_and_the_example_is_short() {
    let checkout = here();
    for machine in &MACHINES {
        for partitions in [false, true] {
            let project = project(&request(&checkout, machine, partitions)).unwrap();
            for (path, bytes) in &project.files {
                let extension = path.extension().and_then(|extension| extension.to_str());
                if !matches!(extension, Some("rpb" | "rpa" | "rpk" | "f32")) {
                    let text = std::str::from_utf8(bytes).unwrap();
                    assert!(!text.contains("{{") && !text.contains("}}"), "{}: {text}", path.display());
                }
            }
            let file =
                |name: &str| &project.files.iter().find(|(path, _)| path == Path::new(name)).unwrap().1;
            let main = std::str::from_utf8(file("src/main.rs")).unwrap();
            assert!(main.lines().count() <= 60, "{main}");
            assert!(std::str::from_utf8(file("README.md")).unwrap().contains(&project.expected));
            assert_eq!(project.files.iter().any(|(path, _)| path.ends_with("slots.rpk")), partitions);
        }
    }
    for template in [
        include_str!("../../../boards/template/text.rs"),
        include_str!("../../../boards/template/features.rs"),
    ] {
        assert!(template.lines().count() <= 60);
    }
}

#[test]
fn the_output_begins_and_ends_with_the_base() {
    let checkout = here();
    let project = project(&request(&checkout, &MACHINES[0], false)).unwrap();
    let lines: Vec<_> = project.expected.lines().collect();
    let [first, adapted, last] = lines.as_slice() else { panic!("{lines:?}") };
    assert_eq!(first, last);
    assert!(first.starts_with("the base: output ") && !adapted.starts_with("the base: "), "{lines:?}");
    assert_ne!(first.rsplit_once('('), adapted.rsplit_once('('));
}

#[test]
fn every_key_of_the_templates_has_a_value_and_values_are_not_looked_through() {
    let values = vec![("a", "{{b}}".to_owned()), ("b", "2".to_owned())];
    assert_eq!(fill("x{{a}}y{{b}}z{{unknown}}", &values), "x{{b}}y2z");
    let checkout = here();
    let values = values_of(&request(&checkout, &MACHINES[1], true));
    for template in [
        include_str!("../../../boards/template/manifest.toml"),
        include_str!("../../../boards/template/config.toml"),
        include_str!("../../../boards/template/toolchain.toml"),
        include_str!("../../../boards/template/README.md"),
        include_str!("../../../boards/template/board.rs"),
        include_str!("../../../boards/template/embedded.rs"),
        include_str!("../../../boards/template/partitions.rs"),
        include_str!("../../../boards/template/text.rs"),
        include_str!("../../../boards/template/features.rs"),
        include_str!("../../../boards/template/over_the_air.rs"),
        include_str!("../../../boards/template/memory.x"),
    ] {
        for part in template.split("{{").skip(1) {
            let key = part.split_once("}}").unwrap().0;
            assert!(values.iter().any(|(known, _)| *known == key), "{key}");
        }
    }
}

fn values_of(request: &Request<'_>) -> Vec<(&'static str, String)> {
    values(request, "").unwrap()
}

#[test]
fn what_does_not_fit_is_refused_with_both_numbers() {
    let checkout = here();
    let mut request = request(&checkout, &MACHINES[0], false);
    request.adapters.push(request.adapters[0].clone());
    let error = project(&request).unwrap_err().to_string();
    assert_eq!(error, "adapter \"one\" is given twice: expected files of different names");
    request.adapters.truncate(1);
    let mut small = MACHINES[0];
    small.flash.length = PROGRAM_BYTES + 100;
    request.machine = &small;
    let error = project(&request).unwrap_err();
    assert!(matches!(error, ScaffoldError::Room { expected: 100, found, .. } if found > 100), "{error}");
    request.partitions = true;
    project(&request).unwrap();
    let mut smaller = small;
    smaller.base.length = 10;
    request.machine = &smaller;
    let error = project(&request).unwrap_err().to_string();
    assert!(error.starts_with("base image: expected at most 10 bytes, found "), "{error}");
}

#[test]
fn folders_in_use_and_folders_without_the_crates_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    check_folder(folder.path()).unwrap();
    check_folder(&folder.path().join("new")).unwrap();
    let error = checkout(folder.path()).unwrap_err().to_string();
    assert!(error.ends_with("expected a checkout of Rankpatch, found no rust-toolchain.toml"), "{error}");
    std::fs::write(folder.path().join("a"), b"x").unwrap();
    let refused = |path: &Path| check_folder(path).unwrap_err().to_string();
    assert!(refused(folder.path()).ends_with("found one with files in it"));
    assert!(refused(&folder.path().join("a")).ends_with("found a file"));
}
