//! Finds libpcap.a, which `src/expression/libpcap.rs` names.

use std::{env, path::Path, process::Command};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=CC");
    let compiler = env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    // It knows the distribution's folders, also those of another architecture.
    let output = Command::new(&compiler).arg("-print-file-name=libpcap.a").output();
    let path = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default();
    match Path::new(&path).parent() {
        // Without a folder: not found.
        Some(folder) if folder.is_absolute() => println!("cargo::rustc-link-search=native={}", folder.display()),
        _ => println!("cargo::error=there is no libpcap.a for {compiler}: install libpcap-dev (make prerequisites)"),
    }
}
