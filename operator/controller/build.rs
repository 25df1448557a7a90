//! Finds libpcap.a, which `src/expression/libpcap.rs` links, and puts a function of ours between its parser and its scanner.

use std::{env, path::Path, process::Command};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=CC");
    let compiler = env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    // The compiler knows the distribution's library directories, also for cross-compilation.
    let output = Command::new(&compiler).arg("-print-file-name=libpcap.a").output();
    let path = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default();
    match Path::new(&path).parent() {
        // Without a directory, the compiler has not found it.
        Some(folder) if folder.is_absolute() => {
            println!("cargo::rustc-link-search=native={}", folder.display());
            // `__wrap_pcap_lex` in src/expression/position.rs.
            println!("cargo::rustc-link-arg=-Wl,--wrap=pcap_lex");
        }
        _ => println!("cargo::error=there is no libpcap.a for {compiler}: install libpcap-dev (make prerequisites)"),
    }
}
