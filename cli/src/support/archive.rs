//! An archive whose parts are bounded, with an index.

use std::io::{self, Write};

use flate2::{Compression, write::GzEncoder};

/// Bytes of a part. What is longer is cut, which the index tells.
pub const MAX_PART: usize = 8 << 20;
/// Bytes of all parts, before they are compressed.
const MAX_TOTAL: usize = 512 << 20;
/// Folder of all parts.
const FOLDER: &str = "podtap-support";

/// A compressed archive that is written as it comes.
pub struct Archive<W: Write> {
    tar: tar::Builder<GzEncoder<W>>,
    written: usize,
    index: Vec<String>,
    /// Seconds since 1970, of all parts.
    time: u64,
    is_complete: bool,
}

impl<W: Write> Archive<W> {
    /// An empty one.
    pub fn new(output: W, time: u64) -> Self {
        let tar = tar::Builder::new(GzEncoder::new(output, Compression::default()));
        Self { tar, written: 0, index: Vec::new(), time, is_complete: true }
    }

    /// Adds a part.
    pub fn add(&mut self, path: &str, content: &[u8]) -> io::Result<()> {
        if self.written.saturating_add(content.len().min(MAX_PART)) > MAX_TOTAL {
            self.missing(path, "the archive would be too large");
            return Ok(());
        }
        let part = &content[..content.len().min(MAX_PART)];
        if part.len() < content.len() {
            self.missing(path, &format!("only the first {} of {} bytes", part.len(), content.len()));
        } else {
            self.index.push(format!("{path}: {} bytes", part.len()));
        }
        self.written += part.len();
        self.append(path, part)
    }

    /// Notes what the archive lacks.
    pub fn missing(&mut self, path: &str, why: &str) {
        self.is_complete = false;
        self.index.push(format!("{path}: MISSING: {why}"));
    }

    /// Writes the index, and the end. Whether nothing is missing.
    pub fn finish(mut self) -> io::Result<bool> {
        let index = self.index.join("\n") + "\n";
        self.append("index.txt", index.as_bytes())?;
        self.tar.into_inner()?.finish()?.flush()?;
        Ok(self.is_complete)
    }

    fn append(&mut self, path: &str, content: &[u8]) -> io::Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(self.time);
        self.tar.append_data(&mut header, format!("{FOLDER}/{path}"), content)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn parts_are_bounded_and_the_index_tells() {
        let mut output = Vec::new();
        let mut archive = Archive::new(&mut output, 0);
        archive.add("a/short.txt", b"text").expect("it can be written");
        archive.add("long.txt", &vec![b'x'; MAX_PART + 1]).expect("it can be written");
        archive.missing("logs", "you may not");
        assert!(!archive.finish().expect("it can be written"));
        let mut read = tar::Archive::new(flate2::read::GzDecoder::new(&output[..]));
        let mut parts = Vec::new();
        for entry in read.entries().expect("an archive") {
            let mut entry = entry.expect("a part");
            let mut text = String::new();
            entry.read_to_string(&mut text).expect("text");
            parts.push((entry.path().expect("a path").display().to_string(), text));
        }
        let sizes: Vec<_> = parts.iter().map(|(path, text)| (path.as_str(), text.len())).collect();
        assert_eq!(&sizes[..2], [("podtap-support/a/short.txt", 4), ("podtap-support/long.txt", MAX_PART)]);
        let (path, index) = &parts[2];
        assert_eq!(path, "podtap-support/index.txt");
        assert_eq!(
            index,
            &format!(
                "a/short.txt: 4 bytes\nlong.txt: MISSING: only the first {MAX_PART} of {} bytes\nlogs: MISSING: you may not\n",
                MAX_PART + 1
            )
        );
    }

    #[test]
    fn the_whole_is_bounded() {
        let mut archive = Archive::new(io::sink(), 0);
        archive.written = MAX_TOTAL - 1;
        archive.add("fits", b"x").expect("it can be written");
        archive.add("does-not", b"x").expect("it can be written");
        assert_eq!(archive.index, ["fits: 1 bytes", "does-not: MISSING: the archive would be too large"]);
    }
}
