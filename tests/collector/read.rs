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
    let mut command = Command::new(binary());
    command.arg("--read").arg(file).args(["--print", what]);
    if let Some(names) = names {
        let path = file.with_extension("names.json");
        fs::write(&path, names.to_string()).expect("it can be written");
        command.arg("--names").arg(path);
    }
    let output = command.output().expect("it runs");
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
