//! Turns `[package.metadata.kit]` into the linker's `memory.x` and into `layout.rs`.

#[path = "../build/layout.rs"]
mod layout;

/// Where the boot ROM looks for the description of the image: within the first 4 KiB, with a second block at the end.
const BLOCKS: &str = "
SECTIONS
{
  .start_block : ALIGN(4)
  {
    __start_block_addr = .;
    KEEP(*(.start_block));
    KEEP(*(.boot_info));
  } > FLASH
} INSERT AFTER .vector_table;

_stext = ADDR(.start_block) + SIZEOF(.start_block);

SECTIONS
{
  .end_block : ALIGN(4)
  {
    __end_block_addr = .;
    KEEP(*(.end_block));
  } > FLASH
} INSERT AFTER .uninit;
";

fn main() {
    if !layout::is_device() {
        return;
    }
    let manifest = layout::manifest();
    layout::write("memory.x", &(layout::memory_x(&manifest, &["flash", "ram"]) + BLOCKS));
    layout::write("layout.rs", &layout::layout_rs(&manifest, &["base", "slots", "arena"]));
    println!("cargo:rustc-link-arg-bins=--nmagic");
    println!("cargo:rustc-link-arg-bins=-Tlink.x");
    println!("cargo:rustc-link-arg-bins=-Tdefmt.x");
}
