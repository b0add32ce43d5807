//! Turns `[package.metadata.board]` into the linker's `memory.x` and into `layout.rs`.

#[path = "../build/layout.rs"]
mod layout;

const SECTIONS: &str = r#"
REGION_ALIAS("REGION_TEXT", FLASH);
REGION_ALIAS("REGION_RODATA", FLASH);
REGION_ALIAS("REGION_DATA", RAM);
REGION_ALIAS("REGION_BSS", RAM);
REGION_ALIAS("REGION_HEAP", RAM);
REGION_ALIAS("REGION_STACK", STACK);

_stack_end = ORIGIN(STACK);

SECTIONS
{
  /* Not loaded and not cleared: arenas are scratch memory. */
  .psram (NOLOAD) : ALIGN(16)
  {
    *(.psram .psram.*);
  } > PSRAM
} INSERT AFTER .bss;
"#;

fn main() {
    if !layout::is_device() {
        return;
    }
    let manifest = layout::manifest();
    let memory = layout::memory_x(&manifest, &["flash", "stack", "ram", "psram"]) + SECTIONS;
    layout::write("memory.x", &memory);
    layout::write("layout.rs", &layout::layout_rs(&manifest, &["base", "slots", "psram"]));
    // Page-aligned segments would only pad the image: nothing here has an MMU.
    println!("cargo:rustc-link-arg-bins=--nmagic");
    // Functions of the same instructions are one: nothing here compares their addresses.
    println!("cargo:rustc-link-arg-bins=--icf=all");
    println!("cargo:rustc-link-arg-bins=-Tmemory.x");
    println!("cargo:rustc-link-arg-bins=-Tlink.x");
    println!("cargo:rustc-link-arg-bins=-Tdefmt.x");
}
