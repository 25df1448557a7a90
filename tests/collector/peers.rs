//! The same files, read by other programs: softflowd, a flow probe, and nfdump, which shows its flows.

use std::{
    collections::BTreeMap,
    fs,
    path::Path as File,
    process::{Command, Stdio},
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
    let path = Path::new();
    path.serve();
    let recording = Recording::start(&path.client, "peers", 0);
    for (number, size) in [0, 1000, 50_000, 1_000_000].into_iter().cycle().take(40).enumerate() {
        let to = if number % 2 == 0 { (SERVICE, SERVICE_PORT) } else { (servers()[number % 3], SERVER_PORT) };
        path.request(to, size);
    }
    let file = recording.end(&path);
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

/// By IPFIX from softflowd to nfcapd, in a namespace of their own.
fn theirs(file: &File) -> Directions {
    let network = Network::new();
    let directory = file.with_extension("nfcapd");
    fs::create_dir_all(&directory).expect("it can be made");
    let net = format!("--net={}", network.path().display());
    let mut nfcapd = Command::new("nsenter");
    nfcapd.args([&net, "nfcapd", "-p", "9995", "-b", "127.0.0.1", "-t", "3600", "-l"]).arg(&directory);
    let mut nfcapd = Killed(nfcapd.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("nfcapd runs"));
    // It listens, and nothing is there yet.
    until_read(&network, 9995);
    let mut softflowd = Command::new("nsenter");
    softflowd.args([&net, "softflowd", "-n", "127.0.0.1:9995", "-v", "9", "-r"]).arg(file);
    assert!(softflowd.output().expect("softflowd runs").status.success());
    // It writes its file when it ends, which is after it has read the socket.
    until_read(&network, 9995);
    signal(&nfcapd.0, Signal::SIGTERM);
    nfcapd.0.wait().expect("it ends");
    let output = Command::new("nfdump").args(["-q", "-o", "json", "-R"]).arg(&directory).output().expect("nfdump runs");
    let text = String::from_utf8(output.stdout).expect("it prints text");
    // Without the brackets.
    let list = format!("[{}]", text.trim().trim_end_matches(','));
    let flows: Vec<Value> = serde_json::from_str(&list).unwrap_or_else(|error| panic!("{error}: {text}"));
    let mut found = Directions::new();
    for flow in flows {
        let number = |key: &str| flow[key].as_u64().unwrap_or_default();
        let text = |key: &str| flow[key].as_str().unwrap_or_default().to_owned();
        if ![6, 17].contains(&number("proto")) {
            continue;
        }
        let key = (text("src4_addr"), number("src_port"), text("dst4_addr"), number("dst_port"), number("proto"));
        let direction = found.entry(key).or_default();
        direction.0 += number("in_packets");
        direction.1 += number("in_bytes");
    }
    fs::remove_dir_all(directory).expect("it exists");
    found
}
