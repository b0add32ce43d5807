//! `key`, `sign` and `verify`.

use super::{Fixture, exit};

#[test]
fn keys_are_made_once_and_shown() {
    let fixture = Fixture::new();
    let made = fixture.run("key new -o @keys/lamp.key --format json").json();
    let secret = std::fs::read_to_string(fixture.path("keys/lamp.key")).unwrap();
    let public = std::fs::read_to_string(fixture.path("keys/lamp.pub")).unwrap();
    assert!(secret.starts_with("rankpatch secret key 1\n") && public.starts_with("rankpatch public key 1\n"));
    assert_eq!(public.lines().nth(1), made["public_key"].as_str());
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = std::fs::metadata(fixture.path("keys/lamp.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "readable for its owner only");
    }
    for file in ["keys/lamp.key", "keys/lamp.pub"] {
        let shown = fixture.run(&format!("key show @{file}")).text();
        let id = made["key_id"].as_str().unwrap();
        assert_eq!(
            shown,
            format!("key id      {id}\npublic key  {}\n", made["public_key"].as_str().unwrap())
        );
    }
    fixture.run("key new -o @keys/lamp.key").fails(exit::FAILURE, "lamp.key");
    assert_eq!(std::fs::read_to_string(fixture.path("keys/lamp.key")).unwrap(), secret, "not overwritten");
    let other = fixture.run("key new -o @other.key --format json").json();
    assert_ne!(other["key_id"], made["key_id"]);
    fixture.write("bad.key", b"rankpatch secret key 1\n00112233\n");
    fixture.run("key show @bad.key").fails(exit::BAD_INPUT, "expected 64 hexadecimal digits");
    let failed = fixture.run("sign @decoder.rpa --key @keys/lamp.pub --product lamp");
    failed.fails(exit::BAD_INPUT, "kind of key: expected rankpatch secret key 1");
}

#[test]
fn adapters_are_signed_and_verified() {
    let fixture = Fixture::new();
    fixture.run("key new -o @lamp.key").text();
    fixture.run("key new -o @other.key").text();
    fixture.run("verify @decoder.rpa --key @lamp.pub").fails(exit::BAD_INPUT, "not signed");
    let sign = "sign @decoder.rpa --key @lamp.key --product lamp --sequence 9 --step-limit 5";
    let signed = fixture.run(&format!("{sign} -o @signed.rpa --format json")).json();
    assert_eq!((signed["sequence"].as_u64(), signed["step_limit"].as_u64()), (Some(9), Some(5)));
    fixture.run(&format!("{sign} -o @again.rpa")).text();
    assert_eq!(fixture.read("signed.rpa"), fixture.read("again.rpa"), "same inputs, same bytes");
    let verify = |line: &str| fixture.run(&format!("verify @signed.rpa {line}"));
    let text = verify("--key @other.pub --key @lamp.pub --product lamp --base @decoder.rpb --floor 8").text();
    assert!(text.starts_with("signature  correct, by key ") && text.contains("9, at most 5"), "{text}");
    verify("--key @other.pub").fails(exit::BAD_INPUT, "unknown key");
    verify("--key @lamp.pub --product kettle").fails(exit::BAD_INPUT, "for another product");
    verify("--key @lamp.pub --base @encoder.rpb").fails(exit::BAD_INPUT, "for another base");
    verify("--key @lamp.pub --floor 9").fails(exit::BAD_INPUT, "expected at least 10, found 9");
    verify("--key @lamp.pub --floor 3").fails(exit::BAD_INPUT, "expected at most 8, found 9");
    let inspected = fixture.run("inspect @signed.rpa --base @decoder.rpb").text();
    assert!(
        inspected.contains("signed     by key ") && inspected.contains("sequence   9, at most 5"),
        "{inspected}"
    );
    // One bit anywhere: the checksum notices it, or the signature does.
    let whole = fixture.read("signed.rpa");
    for at in [12, 50, 100, whole.len() / 2, whole.len() - 64, whole.len() - 1] {
        let mut changed = whole.clone();
        changed[at] ^= 1;
        fixture.write("changed.rpa", &changed);
        let ran = fixture.run("verify @changed.rpa --key @lamp.pub");
        assert_eq!(ran.code, exit::BAD_INPUT, "byte {at}: {}", ran.out);
    }
    // Signed again by another key: the content stays, everything else is that key's.
    fixture.run("sign @signed.rpa --key @other.key --product kettle --sequence 2").text();
    verify("--key @other.pub --product kettle --base @decoder.rpb --floor 0").text();
    fixture
        .run("sign @decoder.rpa --key @lamp.key --product lamp --step-limit 65537")
        .fails(exit::USAGE, "65537");
}
