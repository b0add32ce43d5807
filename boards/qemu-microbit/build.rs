//! Turns `[package.metadata.board]` into the linker's `memory.x` and into `layout.rs`.

#[path = "../build/layout.rs"]
mod layout;

const STACK_AND_ARENA: &str = "
/* A stack of its own below the data: an overflow leaves RAM and faults instead of overwriting statics. */
_stack_start = ORIGIN(STACK) + LENGTH(STACK);
_stack_end = ORIGIN(STACK);

SECTIONS
{
  /* Not loaded and not cleared: arenas are scratch memory. */
  .psram (NOLOAD) : ALIGN(16)
  {
    *(.psram .psram.*);
  } > PSRAM
} INSERT AFTER .uninit;
";

fn main() {
    if !layout::is_device() {
        return;
    }
    let manifest = layout::manifest();
    let memory = layout::memory_x(&manifest, &["flash", "stack", "ram", "psram"]) + STACK_AND_ARENA;
    layout::write("memory.x", &memory);
    layout::write("layout.rs", &layout::layout_rs(&manifest, &["base", "slots", "psram"]));
    // Page-aligned segments would only pad the image: nothing here has an MMU.
    println!("cargo:rustc-link-arg-bins=--nmagic");
    // Functions of the same instructions are one: nothing here compares their addresses.
    println!("cargo:rustc-link-arg-bins=--icf=all");
    println!("cargo:rustc-link-arg-bins=-Tlink.x");
    println!("cargo:rustc-link-arg-bins=-Tdefmt.x");
}
