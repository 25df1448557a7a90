//! Programs that capture from an interface.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    path::Path,
    process::{ChildStderr, Stdio},
    thread,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    counters::run_and_wait,
    programs::{Background, command},
    table::{PRODUCT, TCPDUMP},
};

/// The kernel passes frames on, and a program takes them, within this time.
const SETTLE: Duration = Duration::from_secs(1);

/// A program, and what it prints when it captures and when it ends.
pub struct Reader {
    pub column: &'static str,
    words: Vec<String>,
    ready: &'static str,
    /// What follows the number of captured frames, and what follows that of dropped ones.
    counts: [&'static str; 2],
}

/// What a program captured in all; and for how many seconds the thread that does it ran during the work, and waited for its core.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Outcome {
    pub captured: u64,
    pub dropped: u64,
    pub ran: f64,
    pub waited: f64,
}

impl Reader {
    /// The collector, and tcpdump with a ring of the same size.
    pub fn all(collector: &Path) -> [Self; 2] {
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect();
        [
            Self {
                column: PRODUCT,
                words: words(&format!("{} --interface lo --print nothing", collector.display())),
                ready: "capturing",
                counts: [" frames captured", " dropped by the kernel"],
            },
            Self {
                column: TCPDUMP,
                words: words("tcpdump -n -i lo -B 16384 -w /dev/null"),
                ready: "listening on",
                counts: [" packets captured", " packets dropped by kernel"],
            },
        ]
    }

    /// Runs it in a network namespace during some work and what has to be done before that. Returns what both returned.
    pub fn during<T>(
        &self,
        network: &Path,
        before: impl FnOnce() -> Result<T, String>,
        work: impl FnOnce() -> Result<T, String>,
    ) -> Result<([T; 2], Outcome), String> {
        let words: Vec<&str> = self.words.iter().map(String::as_str).collect();
        let child = command(network, &words).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        let mut running = Background(child.map_err(|error| format!("{}: {error}", self.column))?);
        let mut errors = BufReader::new(running.0.stderr.take().ok_or("no standard error")?);
        self.wait(&mut errors)?;
        let time = |process| run_and_wait(process).ok_or("it has ended");
        let process = running.0.id();
        let first = before()?;
        thread::sleep(SETTLE);
        let start = time(process)?;
        let second = work()?;
        thread::sleep(SETTLE);
        let end = time(process)?;
        let [ran, waited] = [0, 1].map(|index| end[index] - start[index]);
        let pid = i32::try_from(process).map_err(|error| error.to_string())?;
        kill(Pid::from_raw(pid), Signal::SIGTERM).map_err(|error| error.to_string())?;
        let mut text = String::new();
        errors.read_to_string(&mut text).map_err(|error| error.to_string())?;
        let [captured, dropped] = self.counts.map(|count| number_before(&text, count));
        let outcome = captured.zip(dropped).map(|(captured, dropped)| Outcome { captured, dropped, ran, waited });
        Ok(([first, second], outcome.ok_or(text)?))
    }

    fn wait(&self, errors: &mut BufReader<ChildStderr>) -> Result<(), String> {
        let mut text = String::new();
        while !text.contains(self.ready) {
            if errors.read_line(&mut text).map_err(|error| error.to_string())? == 0 {
                return Err(format!("{} has ended: {text}", self.column));
            }
        }
        Ok(())
    }
}

/// The number that ends where `what` begins.
fn number_before(text: &str, what: &str) -> Option<u64> {
    let (before, _) = text.split_once(what)?;
    before.rsplit(|letter: char| !letter.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_by_what_follows_them() {
        let tcpdump = "2250000 packets captured\n2250010 packets received by filter\n7 packets dropped by kernel\n";
        assert_eq!(number_before(tcpdump, " packets captured"), Some(2_250_000));
        assert_eq!(number_before(tcpdump, " packets dropped by kernel"), Some(7));
        let collector = "podtap-collector: 2800000 frames captured, 12 dropped by the kernel, 0 left out";
        assert_eq!(number_before(collector, " frames captured"), Some(2_800_000));
        assert_eq!(number_before(collector, " dropped by the kernel"), Some(12));
        assert_eq!(number_before("capturing", " frames captured"), None);
    }
}
