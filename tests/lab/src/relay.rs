//! The path from an ordinary shell to the API server: a port on the machine's loopback device.
//!
//! A socket stays in the network namespace that it was opened in, so that one process can listen in the machine's and connect in the
//! control plane's.

use std::fs::{self, File};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;
use std::{io, thread};

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, setns};

use crate::addresses::{API_PORT, CONTROL_PLANE, FABRIC};
use crate::{digest, member, pki, process::Process, progress, state::Lab, state::write_whole};

/// The relay's own record.
pub const NAME: &str = "relay";

/// Ports to choose from, below the kernel's range for clients.
const FIRST_PORT: u16 = 20_000;
const PORTS: u16 = 10_000;

/// Starts the relay.
pub fn start(lab: &Lab) -> Result<()> {
    member::kill(lab, NAME)?;
    let path = lab.log(CONTROL_PLANE, NAME);
    fs::create_dir_all(path.parent().context("a log without a directory")?)?;
    let log = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    let mut relay = Command::new(lab.bin("lab"));
    relay.arg("relay").env("LAB_DIR", &lab.root).current_dir("/");
    relay.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    relay.spawn().context("cannot start the relay")?;
    let began = progress::wait_until(Duration::from_secs(10), || member::running(lab, NAME).is_some());
    ensure!(began, "the relay to the API server does not start; see {}", path.display());
    Ok(())
}

/// Writes the kubeconfig for the running relay.
pub fn publish(lab: &Lab) -> Result<()> {
    let port = fs::read_to_string(port_file(lab)).context("the relay has not recorded its port")?;
    let config = pki::kubeconfig(lab, "admin", &format!("https://127.0.0.1:{port}"));
    write_whole(&lab.path("kubeconfig"), serde_json::to_vec_pretty(&config)?)
}

/// The relay's process; never returns.
pub fn run(lab: &Lab) -> Result<()> {
    // It must survive the shell that started it.
    nix::unistd::setsid()?;
    let control_plane = member::expect(lab, CONTROL_PLANE)?;
    let listener = listen(lab)?;
    write_whole(&port_file(lab), listener.local_addr()?.port().to_string())?;
    Process::record_own(&member::record(lab, NAME))?;
    let network = File::open(control_plane.namespace("net")).context("the control plane has no network")?;
    setns(network.as_fd(), CloneFlags::CLONE_NEWNET).context("cannot join the control plane's network")?;
    for client in listener.incoming() {
        let Ok(client) = client else { continue };
        thread::spawn(move || match TcpStream::connect((FABRIC, API_PORT)) {
            Ok(server) => relay(&client, &server),
            Err(error) => eprintln!("the API server cannot be reached: {error}"),
        });
    }
    Ok(())
}

/// The same port each time if it is free, so that copies of the kubeconfig stay valid.
fn listen(lab: &Lab) -> Result<TcpListener> {
    let wished = (0..20).map(|attempt| port(&lab.id, attempt));
    let mut ports = wished.chain(std::iter::once(0));
    ports.find_map(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok()).context("no port on 127.0.0.1 is free")
}

fn port(lab: &str, attempt: u16) -> u16 {
    let digits = &digest::hex(lab.as_bytes())[..4];
    let start = u16::from_str_radix(digits, 16).unwrap_or_default();
    FIRST_PORT + (start % PORTS + attempt) % PORTS
}

fn port_file(lab: &Lab) -> PathBuf {
    lab.path("run/relay.port")
}

fn relay(client: &TcpStream, server: &TcpStream) {
    thread::scope(|scope| {
        scope.spawn(|| copy(client, server));
        copy(server, client);
    });
}

/// Forwards the end of one direction; the other may continue.
fn copy(mut from: &TcpStream, mut to: &TcpStream) {
    // Either side may close the connection at any time; that is no error.
    let _ = io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
    let _ = from.shutdown(Shutdown::Read);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn ports_stay_within_their_range_and_differ_by_attempt() {
        for attempt in 0..20 {
            assert!((FIRST_PORT..FIRST_PORT + PORTS).contains(&port("podtap-123456", attempt)));
        }
        assert_ne!(port("podtap-123456", 0), port("podtap-123456", 1));
    }

    #[test]
    fn what_goes_in_comes_out_on_both_sides() {
        let pair = || {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listen");
            let near = TcpStream::connect(listener.local_addr().expect("address")).expect("connect");
            (near, listener.accept().expect("accept").0)
        };
        let ((mut client, inner), (outer, mut server)) = (pair(), pair());
        let relaying = thread::spawn(move || relay(&inner, &outer));
        client.write_all(b"question").expect("write");
        client.shutdown(Shutdown::Write).expect("shutdown");
        let mut text = String::new();
        server.read_to_string(&mut text).expect("read");
        server.write_all(b"answer").expect("write");
        drop(server);
        let mut back = String::new();
        client.read_to_string(&mut back).expect("read");
        assert_eq!((text.as_str(), back.as_str()), ("question", "answer"));
        relaying.join().expect("the relay ends when both have");
    }
}
