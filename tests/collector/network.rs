//! A client, a router that translates the address of a service, and servers behind it.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::PathBuf,
    process::{Command, Stdio},
    thread::{self, JoinHandle},
};

use nix::sys::signal::Signal;
use podtap_tests::{
    child::{Killed, signal},
    collector::pod,
    net::Network,
    wait::{PATIENCE, until},
};

pub const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 2);
/// The address of a service, which no device has.
pub const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 5);
pub const SERVICE_PORT: u16 = 80;
pub const SERVER_PORT: u16 = 8080;

/// The servers' addresses.
pub fn servers() -> [Ipv4Addr; 3] {
    [2, 3, 4].map(|last| Ipv4Addr::new(10, 2, 0, last))
}

/// The namespaces, connected by a router.
pub struct Path {
    pub client: Network,
    pub router: Network,
    pub server: Network,
}

impl Path {
    /// With a rule that chooses one of the servers for each connection to the service, as kube-proxy writes them.
    pub fn new() -> Self {
        let path = Self { client: Network::new(), router: Network::new(), server: Network::new() };
        for (network, port, address) in [(&path.client, "to-client", "10.1.0"), (&path.server, "to-server", "10.2.0")] {
            let other = network.path().display().to_string();
            path.router.run(&format!("ip link add {port} type veth peer name eth0 netns {other}"));
            path.router.run(&format!("ip addr add {address}.1/24 dev {port}"));
            path.router.run(&format!("ip link set {port} up"));
            network.ip(&format!(
                "addr add {address}.2/24 dev eth0\nlink set eth0 up\nroute add default via {address}.1\n"
            ));
        }
        for server in &servers()[1..] {
            path.server.ip(&format!("addr add {server}/24 dev eth0\n"));
        }
        path.router.set("ipv4/ip_forward", "1");
        let [a, b, c] = servers();
        let rules = format!(
            "table ip nat {{\n chain prerouting {{\n type nat hook prerouting priority dstnat\n \
             ip daddr {SERVICE} tcp dport {SERVICE_PORT} dnat to numgen random mod 3 map {{ 0 : {a} . {SERVER_PORT}, \
             1 : {b} . {SERVER_PORT}, 2 : {c} . {SERVER_PORT} }}\n }}\n}}\n"
        );
        path.router.try_run(&["nft", "-f", "-"], &rules).expect("the rules are valid");
        path
    }

    /// Starts servers that answer each request of so many bytes, four in network byte order, with their own address and as many bytes.
    /// They end with this process.
    pub fn serve(&self) {
        for address in servers() {
            self.serve_at(address);
        }
    }

    /// Starts one at this address of the servers' namespace.
    pub fn serve_at(&self, address: Ipv4Addr) {
        let listener = self.server.within(|| TcpListener::bind((address, SERVER_PORT))).expect("it can listen");
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                thread::spawn(move || answer(stream, address));
            }
        });
    }

    /// Asks a server for `length` bytes. Returns the client's port, and the address of the server that answered.
    pub fn request(&self, to: (Ipv4Addr, u16), length: u32) -> (u16, Ipv4Addr) {
        self.try_request(to, length).unwrap_or_else(|error| panic!("{to:?}: {error}"))
    }

    fn try_request(&self, to: (Ipv4Addr, u16), length: u32) -> io::Result<(u16, Ipv4Addr)> {
        let to = SocketAddr::new(to.0.into(), to.1);
        let mut stream = self.client.within(|| TcpStream::connect_timeout(&to, PATIENCE))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let port = stream.local_addr()?.port();
        stream.write_all(&length.to_be_bytes())?;
        stream.shutdown(Shutdown::Write)?;
        let mut response = Vec::new();
        stream.read_to_end(&mut response)?;
        assert_eq!(response.len(), 4 + length as usize);
        Ok((port, Ipv4Addr::from([response[0], response[1], response[2], response[3]])))
    }
}

fn answer(mut stream: TcpStream, address: Ipv4Addr) -> io::Result<()> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let response = vec![b'x'; u32::from_be_bytes(length) as usize];
    stream.write_all(&[&address.octets()[..], &response].concat())
}

/// tcpdump on an interface, into a file.
pub struct Recording {
    tcpdump: Killed,
    /// What it prints at its end.
    rest: JoinHandle<String>,
    file: PathBuf,
}

impl Recording {
    /// Starts it; `length` bytes of each frame, or all.
    pub fn start(network: &Network, name: &str, length: u32) -> Self {
        let directory = std::env::temp_dir().join(format!("podtap-collector-{}", std::process::id()));
        fs::create_dir_all(&directory).expect("it can be made");
        let file = directory.join(format!("{name}-{length}.pcap"));
        let net = format!("--net={}", network.path().display());
        let mut tcpdump = Command::new("nsenter")
            .arg(net)
            .args(["tcpdump", "-U", "-i", "eth0", "-Z", "root", "-s", &length.to_string(), "-B", "16384", "-w"])
            .arg(&file)
            .stderr(Stdio::piped())
            .spawn()
            .expect("tcpdump runs");
        let mut errors = tcpdump.stderr.take().expect("it is piped");
        let mut text = String::new();
        let mut byte = [0];
        while !text.contains("listening on") {
            assert_eq!(errors.read(&mut byte).expect("it can be read"), 1, "tcpdump ended: {text}");
            text.push(byte[0].into());
        }
        let rest = thread::spawn(move || io::read_to_string(errors).unwrap_or_default());
        Self { tcpdump: Killed(tcpdump), rest, file }
    }

    /// Ends it after all frames that were sent so far are in the file.
    pub fn end(mut self, path: &Path) -> PathBuf {
        // A datagram that comes after all others on each interface.
        let marker = b"the end";
        let socket = path.client.within(|| UdpSocket::bind((CLIENT, 0))).expect("a socket");
        until("the recording is complete", PATIENCE, || {
            socket.send_to(marker, (servers()[0], 9)).map_err(|error| error.to_string())?;
            // Its end, which tcpdump may be writing now.
            let file = fs::read(&self.file).unwrap_or_default();
            let end = &file[file.len().saturating_sub(4096)..];
            if end.windows(marker.len()).any(|bytes| bytes == marker) { Ok(()) } else { Err("no marker".to_owned()) }
        });
        signal(&self.tcpdump.0, Signal::SIGTERM);
        self.tcpdump.0.wait().expect("it ends");
        let rest = self.rest.join().expect("it ends");
        assert!(rest.contains("\n0 packets dropped by kernel"), "{rest}");
        self.file
    }
}

/// The names file of these namespaces: a client, and a server of one Deployment at each address of `servers`.
pub fn names(backends: &[Ipv4Addr]) -> serde_json::Value {
    let mut pods = vec![pod("client-1", "client", CLIENT)];
    pods.extend(backends.iter().map(|address| pod(&pod_of(*address), "web", *address)));
    let backends: Vec<_> = backends.iter().map(|address| serde_json::json!({"address": address})).collect();
    serde_json::json!({"pods": pods, "services": [{"namespace": "shop", "name": "web", "addresses": [SERVICE],
        "ports": [{"port": SERVICE_PORT, "targetPort": SERVER_PORT}], "backends": backends}]})
}

/// Name of the pod with an address.
pub fn pod_of(address: Ipv4Addr) -> String {
    format!("web-{}", address.octets()[3])
}

/// What clients saw: the server that answered, by the client's port.
pub type Truth = BTreeMap<u16, Ipv4Addr>;

/// An address of a flow.
pub fn address(text: &serde_json::Value) -> IpAddr {
    text.as_str().and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("{text} is no address"))
}

/// Waits until a program of a network has read all that came to its UDP port.
pub fn until_read(network: &Network, port: u16) {
    until("all datagrams are read", PATIENCE, || {
        // Its second column is what the receive queue has.
        let socket = network.run(&format!("ss -Hlun sport = :{port}"));
        if socket.split_whitespace().nth(1) == Some("0") { Ok(()) } else { Err(socket) }
    });
}
