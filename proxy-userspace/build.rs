//! Embeds the BPF object: `target/bpf/shunt-ebpf.o`, or the file that SHUNT_EBPF_OBJECT names.
//!
//! A clone without the object still builds: an empty file stands in, and loading it is refused
//! with a sentence that says what to do.

use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() {
    println!("cargo::rerun-if-env-changed=SHUNT_EBPF_OBJECT");
    let object = match env::var_os("SHUNT_EBPF_OBJECT") {
        Some(path) => PathBuf::from(path),
        None => default_object(),
    };
    println!("cargo::rerun-if-changed={}", object.display());
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let bytes = fs::read(&object).unwrap_or_default();
    fs::write(out.join("shunt-ebpf.o"), bytes).expect("OUT_DIR is writable");
}

/// Returns the object's usual place; makes an empty file there if there is none, because cargo
/// runs a build script every time when a file that it watches is missing.
fn default_object() -> PathBuf {
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let root = manifest.parent().unwrap_or(Path::new("."));
    let object = root.join("target/bpf/shunt-ebpf.o");
    if !object.exists()
        && let Some(folder) = object.parent()
        && fs::create_dir_all(folder).is_ok()
    {
        // Where even that fails, the build goes on without the object.
        let _ = fs::write(&object, []);
    }
    object
}
