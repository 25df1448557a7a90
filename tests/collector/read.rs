//! Runs the collector on files.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use podtap_tests::collector::binary;
use serde_json::Value;

/// What it prints.
pub fn print(file: &Path, names: Option<&Value>, what: &str) -> String {
    let Some(names) = names else { return print_with(file, &[], what) };
    let path = file.with_extension("names.json");
    fs::write(&path, names.to_string()).expect("it can be written");
    print_with(file, &["--names", path.to_str().expect("a path of letters")], what)
}

/// What it prints with these arguments.
pub fn print_with(file: &Path, arguments: &[&str], what: &str) -> String {
    let output = Command::new(binary()).arg("--read").arg(file).args(["--print", what]).args(arguments).output();
    let output = output.expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("it prints text")
}

/// The flows of TCP and UDP, one object per direction.
pub fn flows(file: &Path, names: Option<&Value>) -> Vec<Value> {
    parse(&print(file, names, "flows"))
}

/// Those of lines.
pub fn parse(lines: &str) -> Vec<Value> {
    let flows = lines.lines().map(|line| serde_json::from_str(line).expect("each line is an object"));
    flows.filter(|flow: &Value| flow["SrcPort"].is_u64()).collect()
}

/// Merges files by the time of their frames.
pub fn merge(files: &[PathBuf]) -> PathBuf {
    let merged = files[0].with_extension("merged.pcap");
    let status = Command::new("mergecap").args(["-F", "pcap", "-w"]).arg(&merged).args(files).status();
    assert!(status.expect("mergecap runs").success());
    merged
}
