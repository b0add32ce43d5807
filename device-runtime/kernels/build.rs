//! Tells the kernels what `cfg` does not on stable Rust: whether the core is of the Armv8-M Mainline profile.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-check-cfg=cfg(armv8m_main)");
    if std::env::var("TARGET").is_ok_and(|target| target.starts_with("thumbv8m.main")) {
        println!("cargo:rustc-cfg=armv8m_main");
    }
}
