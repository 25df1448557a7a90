//! A mirror like ksniff's: tcpdump in the pod's network namespace, its capture sent to another node over TCP.
//!
//! ksniff sends it through the container runtime, the kubelet and the API server. Here tcpdump writes directly to a TCP connection
//! between the nodes, the least possible cost.

use std::{
    io::{self, Read as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::{AsRawFd as _, OwnedFd},
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use podtap_tests::{namespace::within, wait::until};

use super::Receiver;
use crate::{
    counters::user_time,
    programs::{Background, command},
    stage::Stage,
};

const TIMEOUT: Duration = Duration::from_secs(5);

/// A running tcpdump and the reader of its capture. Killed when dropped.
pub struct Sniffer {
    tcpdump: Background,
    arrived: Arc<AtomicU64>,
    reader: Option<JoinHandle<()>>,
}

impl Sniffer {
    pub fn begin(stage: &Stage, receiver: Receiver) -> Result<Self, String> {
        let message = |error: io::Error| error.to_string();
        let address = SocketAddr::new(stage.n2_address.into(), 0);
        let listener = within(&stage.n2, move || TcpListener::bind(address)).map_err(message)?;
        let address = listener.local_addr().map_err(message)?;
        let near = within(&stage.n1, move || TcpStream::connect_timeout(&address, TIMEOUT)).map_err(message)?;
        let (far, _) = listener.accept().map_err(message)?;
        let arrived = Arc::new(AtomicU64::new(0));
        let reader = thread::spawn({
            let arrived = Arc::clone(&arrived);
            move || read(&far, receiver, &arrived)
        });
        let tcpdump = command(&stage.web, &["tcpdump", "-i", "eth0", "-n", "-U", "-w", "-"])
            .stdout(Stdio::from(OwnedFd::from(near)))
            .stderr(Stdio::piped())
            .spawn()
            .map_err(message)?;
        let sniffer = Self { tcpdump: Background(tcpdump), arrived, reader: Some(reader) };
        // tcpdump writes the header of the file once its socket is open.
        until("tcpdump captures", TIMEOUT, || if sniffer.arrived() > 0 { Ok(()) } else { Err("nothing") });
        Ok(sniffer)
    }

    pub fn arrived(&self) -> u64 {
        self.arrived.load(Ordering::Relaxed)
    }

    pub fn user_time(&self) -> f64 {
        user_time(self.tcpdump.0.id()).unwrap_or_default()
    }

    /// Interrupts it. Returns how many frames it lost, by its own account.
    pub fn end(&mut self) -> Result<u64, String> {
        let child = &mut self.tcpdump.0;
        let mut summary = child.stderr.take().ok_or("it has ended before")?;
        let pid = i32::try_from(child.id()).map_err(|e| e.to_string())?;
        kill(Pid::from_raw(pid), Signal::SIGINT).map_err(|e| e.to_string())?;
        let start = Instant::now();
        while child.try_wait().map_err(|e| e.to_string())?.is_none() {
            if start.elapsed() > TIMEOUT {
                return Err("tcpdump does not end".to_owned());
            }
            thread::sleep(Duration::from_millis(5));
        }
        let mut text = String::new();
        summary.read_to_string(&mut text).map_err(|e| e.to_string())?;
        dropped(&text).ok_or_else(|| format!("tcpdump did not print how many it dropped: {text}"))
    }
}

impl Drop for Sniffer {
    fn drop(&mut self) {
        let _ = self.tcpdump.0.kill();
        let _ = self.tcpdump.0.wait();
        // The last writer has ended, so that the reader ends, too.
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

/// Reads to the end: into memory or, if the receiver drops, so that the kernel discards the bytes itself.
fn read(stream: &TcpStream, receiver: Receiver, arrived: &AtomicU64) {
    let mut buffer = vec![0_u8; 1 << 18];
    let flags = if receiver == Receiver::Drops { libc::MSG_TRUNC } else { 0 };
    loop {
        #[expect(unsafe_code, reason = "std has no flags for recv")]
        // SAFETY: the buffer is live and has the given length; with MSG_TRUNC, tcp(7), nothing is written into it.
        let read = unsafe { libc::recv(stream.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), flags) };
        match u64::try_from(read) {
            Ok(0) => return,
            Ok(bytes) => {
                arrived.fetch_add(bytes, Ordering::Relaxed);
            }
            Err(_) if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

/// From the summary that tcpdump prints when it ends.
fn dropped(text: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.contains("dropped by kernel"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tcpdump_says_what_it_lost() {
        let text = "tcpdump: listening on eth0\n^C10 packets captured\n52 packets received by filter\n42 packets dropped by kernel\n";
        assert_eq!(dropped(text), Some(42));
        assert_eq!(dropped("tcpdump: no suitable device found"), None);
    }
}
