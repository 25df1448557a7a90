//! What has been captured, in one line at a terminal.

use std::{
    io::{self, IsTerminal as _, Write as _},
    time::{Duration, Instant},
};

use anstream::eprint;

use super::blocks::Counts;
use crate::console::{Console, counted, plain};

/// How often the line is written.
const INTERVAL: Duration = Duration::from_secs(1);

/// The line.
pub struct Status {
    console: Console,
    is_terminal: bool,
    began: Option<Instant>,
    written: Option<Instant>,
    /// What it tells.
    pub counts: Counts,
}

impl Status {
    /// Nothing is captured yet.
    pub fn new(console: Console) -> Self {
        let is_terminal = io::stderr().is_terminal() && !console.quiet;
        Self { console, is_terminal, began: None, written: None, counts: Counts::default() }
    }

    /// Whether frames have come.
    pub const fn has_begun(&self) -> bool {
        self.counts.packets > 0
    }

    /// Takes what was captured.
    pub fn update(&mut self, counts: &Counts) {
        let now = Instant::now();
        let began = *self.began.get_or_insert(now);
        for name in counts.interfaces.iter().skip(self.counts.interfaces.len()) {
            self.end();
            self.console.progress(&format!("first packet of {name}"));
        }
        self.counts.clone_from(counts);
        if self.is_terminal && self.written.is_none_or(|written| now - written >= INTERVAL) {
            eprint!("\r\x1b[K{}", plain(&line(now - began, counts)));
            let _ = io::stderr().flush();
            self.written = Some(now);
        }
    }

    /// Ends the line.
    pub fn end(&mut self) {
        if self.written.take().is_some() {
            eprint!("\r\x1b[K");
        }
    }
}

fn line(time: Duration, counts: &Counts) -> String {
    let seconds = time.as_secs();
    let size = size(counts.bytes);
    let Counts { packets, interfaces, .. } = counts;
    // Others have frames of which no pod is known, such as those without an IP address.
    let pods = counted(interfaces.iter().filter(|name| name.contains('/')).count(), "pod");
    format!("{:02}:{:02}  {size}  {packets} packets  {pods}  dropped {}", seconds / 60, seconds % 60, counts.dropped())
}

/// A number of bytes, with the unit that people read.
fn size(bytes: u64) -> String {
    let units = [("GB", 1_000_000_000), ("MB", 1_000_000), ("kB", 1000)];
    let unit = units.into_iter().find(|(_, size)| bytes >= *size);
    unit.map_or_else(
        || format!("{bytes} B"),
        |(unit, size)| format!("{}.{} {unit}", bytes / size, bytes % size * 10 / size),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_has_what_a_person_asks_for() {
        let mut counts = Counts::default();
        (counts.packets, counts.bytes, counts.interfaces) = (61_204, 48_290_000, vec!["shop/web".into()]);
        assert_eq!(line(Duration::from_secs(101), &counts), "01:41  48.2 MB  61204 packets  1 pod  dropped 0");
        assert_eq!(size(999), "999 B");
    }
}
