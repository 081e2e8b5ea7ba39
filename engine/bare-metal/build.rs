//! Names the linker script.

fn main() {
    let folder = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    // Where each machine's memory begins; the image stands 512 KiB further up, where boot loaders
    // of 64-bit Arm put it by its header.
    let memory: u64 = match std::env::var_os("CARGO_FEATURE_RASPI3") {
        Some(_) => 0,
        None => 0x4000_0000,
    };
    println!("cargo:rustc-link-arg-bins=--defsym=MEMORY={memory:#x}");
    println!("cargo:rustc-link-arg-bins=-T{folder}/image.ld");
    println!("cargo:rerun-if-changed=image.ld");
}
