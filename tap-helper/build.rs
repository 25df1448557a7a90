//! Compiles the eBPF programs with clang, and turns the constants that they share with the tap-helper into Rust.

use std::{
    env,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

fn main() {
    println!("cargo::rerun-if-changed=bpf");
    println!("cargo::rerun-if-env-changed=CLANG");
    let output = PathBuf::from(env::var("OUT_DIR").expect("cargo sets it"));
    for object in ["tap", "probe", "receiver"] {
        compile(&format!("bpf/{object}.bpf.c"), &output.join(object).with_extension("bpf.o"));
    }
    let header = fs::read_to_string("bpf/constants.h").expect("bpf/constants.h is readable");
    fs::write(output.join("constants.rs"), constants(&header)).expect("OUT_DIR is writable");
}

fn compile(source: &str, object: &Path) {
    let clang = env::var("CLANG").unwrap_or_else(|_| "clang".to_owned());
    let target = match env::var("CARGO_CFG_TARGET_ENDIAN").as_deref() {
        Ok("big") => "bpfeb",
        _ => "bpfel",
    };
    // -g: clang emits BTF, which describes the maps and the layout of their values.
    // v3: 32-bit jumps and arithmetic, which every kernel since 5.1 supports.
    let status = Command::new(&clang)
        .args(["-O2", "-g", "-Wall", "-Wextra", "-Werror", "-target", target, "-mcpu=v3", "-nostdinc"])
        .args(["-fno-ident", "-ffile-prefix-map=bpf=bpf", "-c", source, "-o"])
        .arg(object)
        .status();
    match status {
        Ok(status) if status.success() => {}
        Ok(status) => panic!("{clang} failed to compile tap-helper/{source}: {status}"),
        Err(error) => panic!(
            "cannot start {clang} ({error}), which compiles the eBPF programs. Install it with\n\n    \
             apt-get install -y --no-install-recommends clang\n\nor set CLANG to clang 12 or newer."
        ),
    }
}

/// A Rust constant for each `#define NAME NUMBER`.
fn constants(header: &str) -> String {
    header.lines().filter_map(|line| line.strip_prefix("#define ")).fold(String::new(), |mut rust, definition| {
        let (name, number) = definition.split_once(' ').expect("bpf/constants.h defines numbers only");
        writeln!(rust, "pub(super) const {name}: u32 = {number};").expect("writing to a String succeeds");
        rust
    })
}
