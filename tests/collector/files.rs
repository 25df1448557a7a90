//! Files of the exporter on a volume that is full.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use podtap_tests::{
    exporter::export,
    net::Network,
    pcap::output,
    wait::{PATIENCE, until},
};

const KIB: usize = 1 << 10;

/// A file system in memory with 4 MiB, unmounted when dropped.
struct Volume(PathBuf);

impl Volume {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("podtap-volume-{}", std::process::id()));
        fs::create_dir_all(&path).expect("a directory");
        output(Command::new("mount").args(["-t", "tmpfs", "-o", "size=4M", "podtap-volume"]).arg(&path));
        Self(path)
    }

    /// Whether not even a byte finds room.
    fn is_full(&self) -> bool {
        let path = self.0.join("probe");
        let is_full = fs::write(&path, "x").is_err();
        fs::remove_file(&path).expect("a name needs no room");
        is_full
    }

    /// What complete files have, and the names of others.
    fn content(&self) -> (String, Vec<PathBuf>) {
        let folders = list(&self.0);
        let files = folders.iter().flat_map(|folder| list(folder));
        let (complete, parts): (Vec<_>, Vec<_>) =
            files.partition(|file| file.extension().is_some_and(|end| end == "jsonl"));
        (complete.iter().map(|file| fs::read_to_string(file).expect("text")).collect(), parts)
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
        let _ = fs::remove_dir(&self.0);
    }
}

/// The entries of a directory, in order.
fn list(path: &Path) -> Vec<PathBuf> {
    let mut entries: Vec<_> =
        fs::read_dir(path).expect("a directory").map(|entry| entry.expect("an entry").path()).collect();
    entries.sort();
    entries
}

#[test]
fn a_full_volume_delays_flows_and_loses_none() {
    let volume = Volume::new();
    let filler = volume.0.join("filler");
    fs::write(&filler, vec![0; 3500 * KIB]).expect("there is room");
    let line = |port| {
        format!(r#"{{"Proto":17,"SrcAddr":"10.0.0.1","SrcPort":{port},"DstAddr":"10.0.0.2","DstPort":80}}"#) + "\n"
    };
    let lines: String = (0..30_000).map(line).collect();
    assert!(lines.len() > 2000 * KIB);
    let sinks = format!("sinks: [{{name: history, files: {{directory: {}, format: JSONLines}}}}]", volume.0.display());
    let exported = thread::scope(|scope| {
        let exported = scope.spawn(|| export(&Network::new(), &lines, &sinks));
        until("the volume is full", PATIENCE, || if volume.is_full() { Ok(()) } else { Err("there is room") });
        fs::remove_file(&filler).expect("it exists");
        exported.join().expect("it does not panic")
    });
    assert!(exported.status.success(), "{}", exported.errors);
    assert!(exported.errors.contains("No space left on device"), "{}", exported.errors);
    let (written, parts) = volume.content();
    assert!(written == lines, "{} bytes of {} were written", written.len(), lines.len());
    assert_eq!(parts, Vec::<PathBuf>::new());
}
