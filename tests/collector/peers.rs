//! The same files, read by other programs: softflowd, a flow probe, and nfdump, which shows its flows.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path as File, PathBuf},
    process::{self, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use nix::sys::signal::Signal;
use podtap_tests::{
    child::{Killed, signal},
    net::Network,
};
use serde_json::Value;

use crate::{
    network::{Path, Recording, SERVER_PORT, SERVICE, SERVICE_PORT, servers, until_read},
    read,
};

/// Addresses, ports and protocol of a direction; frames and octets of IP packets.
pub type Directions = BTreeMap<(String, u64, String, u64, u64), (u64, u64)>;

#[test]
fn flows_packets_and_octets_are_those_of_softflowd() {
    let file = recorded("peers");
    let ours = of_file(&file);
    assert!(ours.len() >= 80, "{ours:?}");
    assert_eq!(ours, theirs(&file));
    // Other formats of the file say the same.
    for format in ["pcapng", "nsecpcap"] {
        let converted = file.with_extension(format);
        let status = Command::new("editcap").args(["-F", format]).args([&file, &converted]).status();
        assert!(status.expect("editcap runs").success());
        assert_eq!(read::print(&file, None, "flows"), read::print(&converted, None, "flows"), "{format}");
        fs::remove_file(converted).expect("it exists");
    }
    fs::remove_file(file).expect("it exists");
}

/// A file with connections to a service and to its servers.
pub fn recorded(name: &str) -> PathBuf {
    let path = Path::new();
    path.serve();
    let recording = Recording::start(&path.client, name, 0);
    for (number, size) in [0, 1000, 50_000, 1_000_000].into_iter().cycle().take(40).enumerate() {
        let to = if number % 2 == 0 { (SERVICE, SERVICE_PORT) } else { (servers()[number % 3], SERVER_PORT) };
        path.request(to, size);
    }
    recording.end(&path)
}

/// The collector's, of a file.
pub fn of_file(file: &File) -> Directions {
    directions(&read::print(file, None, "flows"))
}

/// The collector's, from the lines that it prints.
pub fn directions(lines: &str) -> Directions {
    let mut found = Directions::new();
    for flow in read::parse(lines) {
        let number = |key: &str| flow[key].as_u64().unwrap_or_else(|| panic!("{key} of {flow}"));
        let text = |key: &str| flow[key].as_str().expect("an address").to_owned();
        let frames = number("Packets");
        let direction = found
            .entry((text("SrcAddr"), number("SrcPort"), text("DstAddr"), number("DstPort"), number("Proto")))
            .or_default();
        direction.0 += frames;
        // Without Ethernet headers.
        direction.1 += number("Bytes") - 14 * frames;
    }
    found
}

/// softflowd's, by IPFIX.
pub fn theirs(file: &File) -> Directions {
    let nfcapd = Nfcapd::start();
    let collector = format!("127.0.0.1:{NFCAPD}");
    nfcapd.network.run(&format!("softflowd -n {collector} -v 9 -r {}", file.display()));
    let flows = nfcapd.end();
    let found = stored(&flows);
    assert_eq!(found.len(), flows.iter().filter(|flow| is_counted(flow)).count(), "each direction is one flow");
    found
}

/// Where nfcapd listens.
pub const NFCAPD: u16 = 9995;

/// nfcapd, in a network namespace of its own.
pub struct Nfcapd {
    pub network: Network,
    directory: PathBuf,
    child: Killed,
}

impl Nfcapd {
    /// Returns when it listens.
    pub fn start() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let network = Network::new();
        let directory = env::temp_dir().join(format!("podtap-nfcapd-{}-{number}", process::id()));
        fs::create_dir_all(&directory).expect("it can be made");
        let mut nfcapd = Command::new("nsenter");
        nfcapd.arg(format!("--net={}", network.path().display())).args(["nfcapd", "-p", &NFCAPD.to_string()]);
        nfcapd.args(["-b", "127.0.0.1", "-t", "3600", "-l"]).arg(&directory).stdout(Stdio::null());
        let child = Killed(nfcapd.stderr(Stdio::null()).spawn().expect("nfcapd runs"));
        // It listens, and nothing is there yet.
        until_read(&network, NFCAPD);
        Self { network, directory, child }
    }

    /// Ends it, and returns the flows that nfdump reads in its file.
    pub fn end(mut self) -> Vec<Value> {
        // It writes its file when it ends, which is after it has read the socket.
        until_read(&self.network, NFCAPD);
        signal(&self.child.0, Signal::SIGTERM);
        self.child.0.wait().expect("it ends");
        let mut nfdump = Command::new("nfdump");
        let output = nfdump.args(["-q", "-o", "json", "-R"]).arg(&self.directory).output().expect("nfdump runs");
        let text = String::from_utf8(output.stdout).expect("it prints text");
        // Without the brackets.
        let list = format!("[{}]", text.trim().trim_end_matches(','));
        serde_json::from_str(&list).unwrap_or_else(|error| panic!("{error}: {text}"))
    }
}

impl Drop for Nfcapd {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Whether a flow of nfdump is of TCP or UDP.
pub fn is_counted(flow: &Value) -> bool {
    [6, 17].contains(&flow["proto"].as_u64().unwrap_or_default())
}

/// The directions of nfdump's flows.
pub fn stored(flows: &[Value]) -> Directions {
    let mut found = Directions::new();
    for flow in flows.iter().filter(|flow| is_counted(flow)) {
        let number = |key: &str| flow[key].as_u64().unwrap_or_default();
        let text = |key: &str| flow[key].as_str().unwrap_or_default().to_owned();
        let source = (text("src4_addr"), number("src_port"));
        let destination = (text("dst4_addr"), number("dst_port"));
        for (from, to, direction) in [(&source, &destination, "in"), (&destination, &source, "out")] {
            let packets = number(&format!("{direction}_packets"));
            if packets > 0 {
                let key = (from.0.clone(), from.1, to.0.clone(), to.1, number("proto"));
                let counted = found.entry(key).or_default();
                counted.0 += packets;
                counted.1 += number(&format!("{direction}_bytes"));
            }
        }
    }
    found
}
