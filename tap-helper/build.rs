//! Compiles the eBPF programs. Of headers they need only their own; of tools, clang.

use std::{env, path::Path, process::Command};

fn main() {
    println!("cargo::rerun-if-changed=bpf");
    println!("cargo::rerun-if-env-changed=CLANG");
    let clang = env::var("CLANG").unwrap_or_else(|_| "clang".to_owned());
    let output = env::var("OUT_DIR").expect("cargo sets it");
    // Debug information becomes BTF, by which the loader finds the maps.
    let endianness = match env::var("CARGO_CFG_TARGET_ENDIAN").as_deref() {
        Ok("big") => "bpfeb",
        _ => "bpfel",
    };
    for program in ["tap", "probe"] {
        let source = format!("bpf/{program}.bpf.c");
        let object = Path::new(&output).join(format!("{program}.bpf.o"));
        // v3: jumps and arithmetic on 32 bits, which every kernel since 5.1 has.
        let status = Command::new(&clang)
            .args(["-O2", "-g", "-Wall", "-Wextra", "-Werror", "-target", endianness, "-mcpu=v3", "-nostdinc"])
            .args(["-fno-ident", "-ffile-prefix-map=bpf=bpf", "-c", &source, "-o"])
            .arg(&object)
            .status();
        match status {
            Ok(status) if status.success() => {}
            Ok(status) => panic!("{clang} could not compile tap-helper/{source}: {status}"),
            Err(error) => panic!(
                "{clang} does not start ({error}). It compiles the eBPF programs: install it with\n\n    \
                 apt-get install -y --no-install-recommends clang\n\nor set CLANG to one of version 12 or newer."
            ),
        }
    }
}
