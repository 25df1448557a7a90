//! Frames that the collector writes, read by tshark and capinfos.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use podtap_tests::{
    collector::{Collector, binary, pod},
    frames::{connection, ip, udp},
    pcap::{self, File},
    wait::{PATIENCE, until},
};
use serde_json::{Value, json};

use crate::{
    network::{self, SERVICE},
    pod::{CART, OUTSIDE, WEB},
};

fn names() -> Value {
    json!({"pods": [pod("web", "web", WEB), pod("cart", "cart", CART)],
        "services": [{"namespace": "shop", "name": "cart", "addresses": [SERVICE], "ports": [{"port": 80}]}]})
}

/// A directory that is removed when this is dropped.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("podtap-written-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).expect("a directory");
        Self(path)
    }

    /// The files, in order.
    fn files(&self) -> Vec<PathBuf> {
        let mut files: Vec<PathBuf> =
            fs::read_dir(&self.0).expect("it exists").map(|entry| entry.expect("an entry").path()).collect();
        files.sort();
        files
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Reads a capture and writes it again.
fn write(from: &Path, to: &Path, arguments: &[&str]) {
    let file = to.with_extension("names.json");
    fs::write(&file, names().to_string()).expect("it can be written");
    let mut command = Command::new(binary());
    command.arg("--read").arg(from).arg("--names").arg(&file).args(["--print", "nothing", "--write"]).arg(to);
    let output = command.args(arguments).output().expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    fs::remove_file(file).expect("it exists");
}

/// A pod's call of a service, of the outside, the view of the other pod, and a frame without IP.
fn frames() -> Vec<Vec<u8>> {
    let mut frames = connection((WEB, 40_000), (SERVICE, 80));
    frames.extend(connection((WEB, 40_001), (OUTSIDE, 443)));
    frames.push(udp((WEB, 5000), (CART, 6000), b"from web"));
    // As routed to the other pod.
    frames.push(ip(
        WEB,
        CART,
        63,
        17,
        &[0x13, 0x88, 0x17, 0x70, 0, 16, 0, 0, b'f', b'r', b'o', b'm', b' ', b'w', b'e', b'b'],
    ));
    frames.push([&[0xff; 6][..], &[2, 0, 0, 0, 0, 1, 8, 6], &[0; 28]].concat());
    frames
}

/// What capinfos says of a file, by its heading.
fn capinfos(file: &Path) -> BTreeMap<String, String> {
    let text = pcap::output(Command::new("capinfos").args(["-M", "-c", "-I", "-t", "-E"]).arg(file));
    let text = String::from_utf8(text).expect("text");
    let lines = text.lines().filter_map(|line| line.split_once([':', '=']));
    let mut found = BTreeMap::new();
    for (key, value) in lines {
        // What follows of the same name is of an interface.
        found.entry(key.trim().to_owned()).or_insert_with(|| value.trim().to_owned());
    }
    found
}

fn packets(file: &Path) -> usize {
    let all = capinfos(file);
    all["Number of packets"].parse().unwrap_or_else(|error| panic!("{error}: {all:?}"))
}

/// Kinds and bodies of the blocks of a file.
fn blocks(file: &Path) -> Vec<(u32, Vec<u8>)> {
    let bytes = fs::read(file).expect("it was written");
    let word = |at: usize| u32::from_le_bytes(*bytes[at..].first_chunk().expect("a whole block"));
    let (mut at, mut blocks) = (0, Vec::new());
    while at < bytes.len() {
        let length = word(at + 4) as usize;
        assert_eq!(word(at + length - 4) as usize, length, "both lengths are the same");
        blocks.push((word(at), bytes[at + 8..at + length - 4].to_vec()));
        at += length;
    }
    blocks
}

/// Received and dropped frames of each interface, by the statistics at the end of a file.
pub fn statistics(file: &Path) -> Vec<(u64, u64)> {
    let of = |body: &[u8], code: u16| {
        let mut options = &body[12..];
        while let [a, b, c, d, rest @ ..] = options {
            let length = usize::from(u16::from_le_bytes([*c, *d]));
            if u16::from_le_bytes([*a, *b]) == code {
                return u64::from_le_bytes(*rest.first_chunk().expect("eight bytes"));
            }
            options = &rest[length.next_multiple_of(4)..];
        }
        panic!("no option {code}");
    };
    blocks(file).iter().filter(|(kind, _)| *kind == 5).map(|(_, body)| (of(body, 4), of(body, 5))).collect()
}

#[test]
fn tshark_and_capinfos_read_what_was_written() {
    let directory = Directory::new("whole");
    let frames = frames();
    let (from, to) = (File::of(&frames), directory.0.join("all.pcapng"));
    write(from.path(), &to, &[]);
    let found = capinfos(&to);
    assert_eq!(found["Number of packets"], frames.len().to_string());
    assert_eq!(found["Number of interfaces in file"], "3", "{found:?}");
    assert!(found["File type"].contains("pcapng"), "{found:?}");
    // The same frames, at the same times.
    let read =
        |file: &Path| pcap::fields(file, ["frame.time_epoch", "frame.len", "frame.protocols", "ip.src", "udp.payload"]);
    assert_eq!(read(&to), read(from.path()));
    let rows =
        pcap::fields(&to, ["frame.interface_name", "frame.interface_description", "frame.packet_flags_direction"]);
    let pod = |name: &str| format!("shop/{name}");
    let described = "Deployment web on node n1".to_owned();
    for (number, row) in rows.iter().enumerate() {
        let expected = match number {
            // Every other frame of a connection is the server's, at first.
            0..14 => {
                let inbound = [1, 3, 5].contains(&(number % 7));
                [pod("web"), described.clone(), if inbound { "0x00000001" } else { "0x00000002" }.to_owned()]
            }
            14 => [pod("web"), described.clone(), "0x00000002".to_owned()],
            15 => [pod("cart"), "Deployment cart on node n1".to_owned(), "0x00000001".to_owned()],
            _ => ["interface 0 of the files".to_owned(), String::new(), String::new()],
        };
        assert_eq!(row, &expected, "frame {number}");
    }
    assert_eq!(statistics(&to), [(15, 0), (1, 0), (1, 0)]);
    // The collector reads its own files, and finds the same flows.
    let list = |file: &Path| crate::read::print(file, Some(&names()), "map");
    assert_eq!(list(&to), list(from.path()));
}

#[test]
fn addresses_have_names() {
    let directory = Directory::new("names");
    let (from, to) = (File::of(&frames()), directory.0.join("all.pcapng"));
    write(from.path(), &to, &[]);
    // -N n: only by what the file says; nothing is looked up.
    let mut command = Command::new("tshark");
    command.arg("-r").arg(&to).args(["-N", "n", "-T", "fields", "-e", "ip.src_host", "-e", "ip.dst_host"]);
    let text = String::from_utf8(pcap::output(&mut command)).expect("text");
    let pairs: BTreeSet<&str> = text.lines().collect();
    let outside = OUTSIDE.to_string();
    let expected = [
        "web.shop.pod\tcart.shop.svc",
        "cart.shop.svc\tweb.shop.pod",
        &format!("web.shop.pod\t{outside}"),
        &format!("{outside}\tweb.shop.pod"),
        "web.shop.pod\tcart.shop.pod",
        "\t",
    ];
    assert_eq!(pairs, expected.into());
}

#[test]
fn each_of_several_files_can_be_read_alone() {
    let directory = Directory::new("rotated");
    let frames: Vec<Vec<u8>> = (0..3000).map(|port| udp((WEB, port), (CART, 9), &[b'x'; 1000])).collect();
    let (from, to) = (File::of(&frames), directory.0.join("part.pcapng"));
    write(from.path(), &to, &["--write-size", "1", "--write-files", "2"]);
    let names: Vec<String> =
        directory.files().iter().map(|path| path.file_name().expect("a name").to_string_lossy().into_owned()).collect();
    assert_eq!(names, ["part-000003.pcapng", "part-000004.pcapng"]);
    for file in directory.files() {
        assert!(fs::metadata(&file).expect("it exists").len() <= 1 << 20);
        let rows = pcap::fields(&file, ["frame.interface_name"]);
        assert!(!rows.is_empty() && rows.iter().all(|[name]| name == "shop/web"), "{}", file.display());
    }
    let times: Vec<u32> = directory
        .files()
        .iter()
        .flat_map(|file| pcap::fields(file, ["frame.time_epoch"]))
        .map(|[time]| time.split('.').next().and_then(|seconds| seconds.parse().ok()).expect("a number"))
        .collect();
    assert!(times.windows(2).all(|pair| pair[1] - pair[0] == 1) && times.last() == Some(&2999), "none is missing");
    // By time: the frames are a second apart.
    let hours = Directory::new("hours");
    write(from.path(), &hours.0.join("hour.pcapng"), &["--write-every", "1000"]);
    let counts: Vec<usize> = hours.files().iter().map(|file| packets(file)).collect();
    assert_eq!(counts, [1000, 1000, 1000]);
}

#[test]
fn what_comes_by_an_interface_is_written_as_it_comes() {
    let path = network::Path::new();
    path.serve();
    let directory = Directory::new("live");
    let file = directory.0.join("live.pcapng");
    let names = directory.0.join("names.json");
    fs::write(&names, network::names(&network::servers()).to_string()).expect("it can be written");
    let [names, to] = [&names, &file].map(|path| path.to_str().expect("text"));
    let collector = Collector::start(path.client.path(), &["--interface", "eth0", "--names", names, "--write", to]);
    path.request((network::SERVICE, network::SERVICE_PORT), 100_000);
    // Readers need not wait for its end.
    until("the FIN is in the file", PATIENCE, || {
        let text = pcap::output(Command::new("tshark").arg("-r").arg(&file).args(["-Y", "tcp.flags.fin == 1"]));
        if String::from_utf8_lossy(&text).lines().count() >= 2 { Ok(()) } else { Err("no FIN") }
    });
    let (_, errors) = collector.end();
    let written: usize = errors
        .split(" frames written, 0 not written")
        .next()
        .and_then(|text| text.rsplit([' ', '\n']).next()?.parse().ok())
        .unwrap_or_else(|| panic!("{errors}"));
    assert_eq!(packets(&file), written);
    let rows = pcap::fields(&file, ["ip.src", "frame.interface_name", "frame.packet_flags_direction", "tcp.port"]);
    let of_tcp: Vec<_> = rows.iter().filter(|row| !row[3].is_empty()).collect();
    assert!(of_tcp.len() >= 10);
    for [source, interface, direction, _] in of_tcp {
        let outbound = *source == network::CLIENT.to_string();
        assert_eq!(
            (interface.as_str(), direction.as_str()),
            ("shop/client-1", if outbound { "0x00000002" } else { "0x00000001" })
        );
    }
    let all: u64 = statistics(&file)
        .iter()
        .map(|(received, dropped)| {
            assert_eq!(*dropped, 0);
            received
        })
        .sum();
    assert_eq!(all, written as u64);
}
