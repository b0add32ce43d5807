//! Turns `[package.metadata.kit]` into the linker's `memory.x` and into `layout.rs`.

#[path = "../build/layout.rs"]
mod layout;

fn main() {
    if !layout::is_device() {
        return;
    }
    let manifest = layout::manifest();
    layout::write("memory.x", &layout::memory_x(&manifest, &["flash", "ram"]));
    layout::write("layout.rs", &layout::layout_rs(&manifest, &["base", "slots", "arena"]));
    // Page-aligned segments would only pad the image: nothing here has an MMU.
    println!("cargo:rustc-link-arg-bins=--nmagic");
    println!("cargo:rustc-link-arg-bins=-Tlink.x");
    println!("cargo:rustc-link-arg-bins=-Tdefmt.x");
}
