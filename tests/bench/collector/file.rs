//! Flows of a capture file: the collector beside a flow probe and tshark.

use std::{
    fs,
    io::{self, BufRead as _, BufReader},
    net::Ipv4Addr,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use nix::sys::signal::Signal;
use podtap_tests::{
    child::signal,
    frames::{ACK, FIN, SYN, tcp},
    net::Network,
    pcap::File,
    wait::{PATIENCE, until},
};

use crate::{
    arguments::Arguments,
    interrupt,
    programs::command,
    table::{PRODUCT, SOFTFLOWD, TSHARK, Table},
};

const TIME: &str = "2 million frames of 100,000 TCP connections in a file: CPU time";
const MEMORY: &str = "the same: peak resident memory";

/// The collector without flows as JSON lines.
const MAP: &str = "PodTap, map";

const CONNECTIONS: u32 = 100_000;
/// Segments of a connection between its handshake and its end: a request, and the response.
const SEGMENTS: u32 = 14;
const PAYLOAD: u32 = 100;
/// Between two frames of all.
const INTERVAL: Duration = Duration::from_micros(5);
const PORT: u16 = 9995;

/// The step of a connection in which the server closes it.
const LAST: u32 = SEGMENTS + 3;

/// A column, and what measures it.
type Program<'a> = (&'static str, Box<dyn Fn() -> Result<Usage, String> + 'a>);

/// CPU seconds, and bytes.
#[derive(Clone, Copy, Debug, Default)]
struct Usage {
    time: f64,
    memory: f64,
}

pub fn measure(arguments: &Arguments, collector: &Path) -> Table {
    let mut table = Table::new("file").row(TIME, "s", "less than each").row(MEMORY, "MiB", "less than each");
    let file = File::timed((0..).map(|number| INTERVAL * number).zip(frames()));
    let programs: [Program<'_>; 4] = [
        (PRODUCT, Box::new(|| flows(collector, file.path()))),
        (MAP, Box::new(|| map(collector, file.path()))),
        (SOFTFLOWD, Box::new(|| softflowd(file.path()))),
        (TSHARK, Box::new(|| tshark(file.path()))),
    ];
    for round in 0..arguments.rounds {
        for step in 0..programs.len() {
            if interrupt::stopped() {
                return table;
            }
            let (column, program) = &programs[(round + step) % programs.len()];
            match program() {
                Ok(usage) => {
                    table.record(TIME, column, round, Ok(usage.time));
                    table.record(MEMORY, column, round, Ok(usage.memory / f64::from(1 << 20)));
                }
                Err(why) => table.record(TIME, column, round, Err(why)),
            }
        }
    }
    table
}

/// All connections at once: of each one frame, then the next one of each.
fn frames() -> impl Iterator<Item = Vec<u8>> {
    (0..SEGMENTS + 6).flat_map(|step| (0..CONNECTIONS).map(move |number| frame(number, step)))
}

fn frame(number: u32, step: u32) -> Vec<u8> {
    let client = (Ipv4Addr::from_bits(Ipv4Addr::new(10, 0, 0, 0).to_bits() + number), 40_000);
    let server = (Ipv4Addr::from_bits(Ipv4Addr::new(10, 200, 0, 0).to_bits() + number % 1000), 443);
    // Initial sequence numbers, and what the ends have sent before this step.
    let (mine, theirs) = (number, !number);
    let (sent, received) = (u32::from(step > 3), step.saturating_sub(4).min(SEGMENTS - 1));
    let (mine, theirs) = (mine + 1 + sent * PAYLOAD, theirs.wrapping_add(1 + received * PAYLOAD));
    let payload = [b'x'; PAYLOAD as usize];
    match step {
        0 => tcp(client, server, SYN, (mine - 1, 0), b""),
        1 => tcp(server, client, SYN | ACK, (theirs.wrapping_sub(1), mine), b""),
        2 => tcp(client, server, ACK, (mine, theirs), b""),
        3 => tcp(client, server, ACK, (mine, theirs), &payload),
        4..LAST => tcp(server, client, ACK, (theirs, mine), &payload),
        LAST => tcp(server, client, FIN | ACK, (theirs, mine), b""),
        _ if step == LAST + 1 => tcp(client, server, FIN | ACK, (mine, theirs.wrapping_add(1)), b""),
        _ => tcp(server, client, ACK, (theirs.wrapping_add(1), mine + 1), b""),
    }
}

/// The collector, with a line per flow and direction.
fn flows(collector: &Path, file: &Path) -> Result<Usage, String> {
    let mut command = Command::new(collector);
    command.arg("--read").arg(file).args(["--print", "flows"]);
    counted(command, &file.with_extension("flows"), |line| line.starts_with('{'), 2 * CONNECTIONS as usize)
}

/// The collector, with the map of who calls whom.
fn map(collector: &Path, file: &Path) -> Result<Usage, String> {
    let mut command = Command::new(collector);
    command.arg("--read").arg(file).args(["--print", "map"]);
    counted(command, &file.with_extension("map"), |line| line.starts_with('{'), 1)
}

/// tshark, with a line per connection.
fn tshark(file: &Path) -> Result<Usage, String> {
    let mut command = Command::new("tshark");
    command.arg("-n").arg("-r").arg(file).args(["-q", "-z", "conv,tcp"]);
    counted(command, &file.with_extension("tshark"), |line| line.contains(" <-> "), CONNECTIONS as usize)
}

/// softflowd and nfcapd, which stores its flows; both together.
fn softflowd(file: &Path) -> Result<Usage, String> {
    let network = Network::new();
    let directory = file.with_extension("nfcapd");
    fs::create_dir_all(&directory).map_err(|error| error.to_string())?;
    let to = directory.to_str().ok_or("a path without text")?;
    let mut nfcapd =
        command(network.path(), &["nfcapd", "-p", &PORT.to_string(), "-b", "127.0.0.1", "-t", "3600", "-l", to]);
    let nfcapd = nfcapd.stdout(Stdio::null()).stderr(Stdio::null()).spawn().map_err(|error| error.to_string())?;
    let socket = || network.run(&format!("ss -Hlun sport = :{PORT}"));
    let until_read = || {
        until("nfcapd has read all flows", PATIENCE, || {
            let socket = socket();
            if socket.split_whitespace().nth(1) == Some("0") { Ok(()) } else { Err(socket) }
        });
    };
    until_read();
    let (collector, from) = (format!("127.0.0.1:{PORT}"), file.to_str().ok_or("a path without text")?);
    // Without a limit of the flows that it knows, it would forget most of them early.
    let words = ["softflowd", "-d", "-m", "200000", "-n", &collector, "-v", "9", "-r", from];
    let probe = command(network.path(), &words).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let probe = usage(&probe.map_err(|error| error.to_string())?)?;
    until_read();
    signal(&nfcapd, Signal::SIGTERM);
    let store = usage(&nfcapd)?;
    fs::remove_dir_all(directory).map_err(|error| error.to_string())?;
    Ok(Usage { time: probe.time + store.time, memory: probe.memory + store.memory })
}

/// Runs a program, which must print so many lines of a kind.
fn counted(
    mut command: Command,
    output: &Path,
    is_counted: fn(&str) -> bool,
    expected: usize,
) -> Result<Usage, String> {
    let name = format!("{command:?}");
    let message = |error: io::Error| format!("{name}: {error}");
    let file = fs::File::create(output).map_err(message)?;
    let child = command.stdout(file).stderr(Stdio::null()).spawn().map_err(message)?;
    let usage = usage(&child)?;
    // Not all of it at once: the memory of this process would count for those that it starts.
    let lines = BufReader::new(fs::File::open(output).map_err(message)?).lines();
    let lines = lines.map_while(Result::ok).filter(|line| is_counted(line)).count();
    fs::remove_file(output).map_err(message)?;
    if lines == expected { Ok(usage) } else { Err(format!("{name}: {lines} lines instead of {expected}")) }
}

/// Waits until a program ends. Returns what it used.
#[expect(unsafe_code, reason = "std does not tell what a child has used")]
fn usage(child: &Child) -> Result<Usage, String> {
    let pid = libc::pid_t::try_from(child.id()).map_err(|error| error.to_string())?;
    let mut status = 0;
    // SAFETY: a struct of integers.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both are live.
    if unsafe { libc::wait4(pid, &raw mut status, 0, &raw mut usage) } < 0 {
        return Err(io::Error::last_os_error().to_string());
    }
    if status != 0 {
        return Err(format!("it failed with status {status}"));
    }
    #[expect(clippy::cast_precision_loss, reason = "the seconds and kibibytes of a program")]
    let time = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    #[expect(clippy::cast_precision_loss, reason = "likewise")]
    let memory = usage.ru_maxrss as f64 * 1024.0;
    Ok(Usage { time: time(usage.ru_utime) + time(usage.ru_stime), memory })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_two_million_frames() {
        assert_eq!(CONNECTIONS * (SEGMENTS + 6), 2_000_000);
        let payload: usize = (0..SEGMENTS + 6).map(|step| frame(7, step).len() - 54).sum();
        assert_eq!(payload, (SEGMENTS * PAYLOAD) as usize);
    }
}
