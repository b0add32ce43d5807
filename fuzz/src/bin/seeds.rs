//! Writes the valid inputs that every target starts from into `corpus/TARGET/seed-NAME`.

use std::path::Path;

fn main() -> std::io::Result<()> {
    for target in rankpatch_tests::fuzz::TARGETS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name);
        std::fs::create_dir_all(&folder)?;
        for (name, bytes) in (target.seeds)() {
            std::fs::write(folder.join(format!("seed-{name}")), bytes)?;
        }
    }
    Ok(())
}
