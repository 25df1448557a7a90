//! tcpdump, which writes the headers of what it reads from a receiver's interface to a file.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{self, Stdio},
    time::Duration,
};

use podtap_tests::wait::until;

use crate::programs::{Background, command};

/// A running tcpdump. Killed when dropped, and its file is deleted.
pub struct Reader {
    _tcpdump: Background,
    files: [PathBuf; 2],
}

impl Reader {
    /// Starts it, and returns when it reads.
    pub fn begin(network: &Path, interface: &str) -> Result<Self, String> {
        let files = ["pcap", "log"].map(|kind| env::temp_dir().join(format!("bench-{}.{kind}", process::id())));
        let frames = files[0].display().to_string();
        let log = fs::File::create(&files[1]).map_err(|error| error.to_string())?;
        let mut tcpdump = command(network, &["tcpdump", "-i", interface, "-s", "128", "-w", &frames]);
        let child = tcpdump.stdout(Stdio::null()).stderr(log).spawn().map_err(|error| error.to_string())?;
        let reader = Self { _tcpdump: Background(child), files };
        until("tcpdump reads", Duration::from_secs(10), || {
            let log = fs::read_to_string(&reader.files[1]).unwrap_or_default();
            if log.contains("listening on") { Ok(()) } else { Err(log) }
        });
        Ok(reader)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        for file in &self.files {
            let _ = fs::remove_file(file);
        }
    }
}
