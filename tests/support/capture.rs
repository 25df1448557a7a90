//! Frames as an `AF_PACKET` socket receives them (packet(7)), compared as multisets.
//!
//! A capture is independent of the product: it runs in the test's process, in the namespace of the interface, and fails the test when
//! its own socket drops a frame.

use std::{
    collections::BTreeMap,
    fs::File,
    io, mem,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Instant,
};

use crate::namespace::within;

/// Large enough for the frames that arrive while the reading thread waits for a core.
const RECEIVE_BUFFER: libc::c_int = 256 << 20;

/// The direction of a captured frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FrameDirection {
    /// Sent by the namespace of the interface.
    Out,
    /// Received by it.
    In,
}

/// A captured frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Its direction.
    pub direction: FrameDirection,
    /// The frame from the destination MAC address on, as the kernel has it.
    pub bytes: Vec<u8>,
    /// When the reading thread received it.
    pub at: Instant,
}

impl Frame {
    /// Whether it is one that the kernel's IPv6 sends by itself at any time: a multicast listener report (RFC 3810, after a hop-by-hop
    /// header) or a router solicitation (RFC 4861).
    #[must_use]
    pub fn is_announcement(&self) -> bool {
        let frame = &self.bytes;
        frame.len() > 62
            && frame[12..14] == [0x86, 0xdd]
            && (frame[20] == 0 && frame[54] == 58 && frame[62] == 143 || frame[20] == 58 && frame[54] == 133)
    }
}

/// A running capture of one interface: all frames, or the state that [`fold`](Capture::fold) computes from them.
pub struct Capture<T = Vec<Frame>> {
    state: Arc<Mutex<T>>,
    stop: Arc<AtomicBool>,
    reader: Option<JoinHandle<io::Result<u32>>>,
    name: String,
}

impl Capture {
    /// Starts to capture, in promiscuous mode as libpcap does. Every frame after it returns is captured.
    ///
    /// # Panics
    /// When the namespace or the interface does not exist.
    #[must_use]
    #[track_caller]
    pub fn start(namespace: &Path, interface: &str) -> Self {
        Self::try_start(namespace, interface)
            .unwrap_or_else(|e| panic!("capture of {interface} in {}: {e}", namespace.display()))
    }

    /// Like [`start`](Self::start), for an interface that may not exist yet.
    pub fn try_start(namespace: &Path, interface: &str) -> io::Result<Self> {
        Self::fold(namespace, interface, Vec::new(), push)
    }

    /// Like [`start`](Self::start), without promiscuous mode: the kernel reports nothing of it.
    ///
    /// # Panics
    /// When the namespace or the interface does not exist.
    #[must_use]
    #[track_caller]
    pub fn not_promiscuous(namespace: &Path, interface: &str) -> Self {
        Self::open(namespace, interface, false, Vec::new(), push)
            .unwrap_or_else(|e| panic!("capture of {interface} in {}: {e}", namespace.display()))
    }

    /// The frames captured so far, oldest first.
    #[must_use]
    pub fn so_far(&self) -> Vec<Frame> {
        self.look(Vec::clone)
    }

    /// The number of frames captured so far that match.
    #[must_use]
    pub fn count(&self, matches: impl Fn(&Frame) -> bool) -> usize {
        self.look(|frames| frames.iter().filter(|frame| matches(frame)).count())
    }
}

impl<T: Default + Send + 'static> Capture<T> {
    /// Starts to capture without keeping the frames: `take` updates the state with each.
    ///
    /// # Errors
    /// When the namespace or the interface does not exist.
    pub fn fold(
        namespace: &Path,
        interface: &str,
        initial: T,
        take: impl Fn(&mut T, FrameDirection, &[u8]) + Send + 'static,
    ) -> io::Result<Self> {
        Self::open(namespace, interface, true, initial, take)
    }

    fn open(
        namespace: &Path,
        interface: &str,
        promiscuous: bool,
        initial: T,
        take: impl Fn(&mut T, FrameDirection, &[u8]) + Send + 'static,
    ) -> io::Result<Self> {
        let name = interface.to_owned();
        let socket = within(namespace, move || open(&name, promiscuous))?;

        let state = Arc::new(Mutex::new(initial));
        let stop = Arc::new(AtomicBool::new(false));
        let reader = thread::spawn({
            let (state, stop) = (Arc::clone(&state), Arc::clone(&stop));
            move || {
                read(&socket, &stop, |direction, bytes| {
                    take(&mut state.lock().expect("no thread panics while it holds the lock"), direction, bytes);
                })
            }
        });
        Ok(Self { state, stop, reader: Some(reader), name: interface.to_owned() })
    }

    /// Reads the current state.
    ///
    /// # Panics
    /// When `take` has panicked.
    pub fn look<R>(&self, at: impl FnOnce(&T) -> R) -> R {
        at(&self.state.lock().expect("taking a frame does not panic"))
    }

    /// Ends the capture.
    ///
    /// # Panics
    /// When the capture itself dropped frames, which would invalidate the test.
    #[must_use]
    pub fn stop(mut self) -> T {
        self.stop.store(true, Ordering::Relaxed);
        let lost = self.reader.take().expect("a capture is stopped once").join().expect("the reader does not panic");
        match lost {
            Ok(0) => {}
            Ok(lost) => panic!("the test's own capture of {} dropped {lost} frames", self.name),
            Err(e) => panic!("capture of {}: {e}", self.name),
        }
        mem::take(&mut *self.state.lock().expect("the reader does not panic"))
    }
}

impl<T> Drop for Capture<T> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn push(frames: &mut Vec<Frame>, direction: FrameDirection, bytes: &[u8]) {
    frames.push(Frame { direction, bytes: bytes.to_vec(), at: Instant::now() });
}

/// A file that sends frames through an interface. Each write is one frame after a `struct virtio_net_hdr`, which may request offloads
/// (`PACKET_VNET_HDR` in packet(7)).
///
/// # Panics
/// When the interface does not exist.
#[must_use]
#[track_caller]
pub fn injector(network: &crate::net::Network, interface: &str) -> File {
    const PACKET_VNET_HDR: libc::c_int = 15;
    let socket = network.within(|| open(interface, false)).unwrap_or_else(|error| panic!("{interface}: {error}"));
    set(&socket, libc::SOL_PACKET, PACKET_VNET_HDR, &1).expect("the option can be set");
    File::from(socket)
}

/// A packet socket that is not bound, with a locked filter that passes the frames of an interface alone, as the tap-helper hands it over.
///
/// # Panics
/// When the interface does not exist.
#[must_use]
#[track_caller]
pub fn locked(network: &crate::net::Network, interface: &str) -> OwnedFd {
    // The operations of `include/uapi/linux/bpf_common.h` are a few bits in 32.
    let operation = |bits: u32| u16::try_from(bits).expect("an operation has 16 bits");
    let instruction = |code, jt, jf, k| libc::sock_filter { code: operation(code), jt, jf, k };
    let ancillary = (libc::SKF_AD_OFF + libc::SKF_AD_IFINDEX).cast_unsigned();
    network
        .within(|| {
            let index = nix::net::if_::if_nametoindex(interface)?;
            let mut program = [
                instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, ancillary),
                instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, index),
                instruction(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
                instruction(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
            ];
            let filter = libc::sock_fprog { len: 4, filter: program.as_mut_ptr() };
            let socket = unbound()?;
            set(&socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &filter)?;
            set(&socket, libc::SOL_SOCKET, libc::SO_LOCK_FILTER, &1)?;
            io::Result::Ok(socket)
        })
        .unwrap_or_else(|error| panic!("{interface}: {error}"))
}

/// With protocol 0, it captures nothing until it is bound.
#[expect(unsafe_code, reason = "std has no packet sockets")]
fn unbound() -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    let socket = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(socket) })
}

#[expect(unsafe_code, reason = "std has no packet sockets")]
fn open(interface: &str, promiscuous: bool) -> io::Result<OwnedFd> {
    let index = nix::net::if_::if_nametoindex(interface)?;
    let protocol = u16::try_from(libc::ETH_P_ALL).expect("a protocol has 16 bits").to_be();
    let socket = unbound()?;
    set(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &RECEIVE_BUFFER)?;
    let timeout = libc::timeval { tv_sec: 0, tv_usec: 20_000 };
    set(&socket, libc::SOL_SOCKET, libc::SO_RCVTIMEO, &timeout)?;
    let index = i32::try_from(index).expect("an index is positive");
    if promiscuous {
        let kind = u16::try_from(libc::PACKET_MR_PROMISC).expect("a kind has 16 bits");
        let membership = libc::packet_mreq { mr_ifindex: index, mr_type: kind, mr_alen: 0, mr_address: [0; 8] };
        set(&socket, libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, &membership)?;
    }
    // SAFETY: all-zero is a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = u16::try_from(libc::AF_PACKET).expect("a family has 16 bits");
    address.sll_protocol = protocol;
    address.sll_ifindex = index;
    let length = u32::try_from(mem::size_of_val(&address)).expect("an address is small");
    // SAFETY: the pointer and the length are those of a live sockaddr_ll.
    if unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(socket)
}

#[expect(unsafe_code, reason = "std has no setsockopt")]
fn set<T>(socket: &OwnedFd, level: libc::c_int, option: libc::c_int, value: &T) -> io::Result<()> {
    let length = u32::try_from(mem::size_of::<T>()).expect("an option is small");
    // SAFETY: the pointer and the length are those of a live value.
    let done = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const *value).cast(), length) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Reads until `stop` is set and no frame is left. Returns the number of frames that the socket dropped.
#[expect(unsafe_code, reason = "std has no recvfrom for packet sockets")]
fn read(socket: &OwnedFd, stop: &AtomicBool, mut take: impl FnMut(FrameDirection, &[u8])) -> io::Result<u32> {
    let mut buffer = vec![0_u8; 1 << 17];
    loop {
        // SAFETY: all-zero is a valid sockaddr_ll.
        let mut from: libc::sockaddr_ll = unsafe { mem::zeroed() };
        let mut length = u32::try_from(mem::size_of_val(&from)).expect("an address is small");
        // SAFETY: buffer and address are live and have the given lengths.
        let read = unsafe {
            libc::recvfrom(
                socket.as_raw_fd(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                0,
                (&raw mut from).cast(),
                &raw mut length,
            )
        };
        if let Ok(size) = usize::try_from(read) {
            let direction =
                if from.sll_pkttype == libc::PACKET_OUTGOING { FrameDirection::Out } else { FrameDirection::In };
            take(direction, &buffer[..size]);
            continue;
        }
        let error = io::Error::last_os_error();
        match error.kind() {
            io::ErrorKind::WouldBlock if stop.load(Ordering::Relaxed) => return dropped(socket),
            // NetworkDown: the device is down or was deleted. When it comes up again, the socket receives again (`packet_notifier`,
            // net/packet/af_packet.c).
            io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted | io::ErrorKind::NetworkDown => {}
            _ => return Err(error),
        }
    }
}

#[expect(unsafe_code, reason = "std has no getsockopt")]
fn dropped(socket: &OwnedFd) -> io::Result<u32> {
    let mut statistics = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
    let mut length = u32::try_from(mem::size_of_val(&statistics)).expect("statistics are small");
    // SAFETY: the pointer and the length are those of a live tpacket_stats.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            (&raw mut statistics).cast(),
            &raw mut length,
        )
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(statistics.tp_drops) }
}

/// The difference between two multisets of frames.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Frames that are missing in the second multiset, each with how often.
    pub lost: BTreeMap<Vec<u8>, usize>,
    /// Additional frames in the second multiset, foreign or duplicate, each with how often.
    pub extra: BTreeMap<Vec<u8>, usize>,
}

impl Difference {
    /// Compares the frames of both sides, regardless of order and direction.
    pub fn between<'a>(
        sent: impl IntoIterator<Item = &'a Frame>,
        received: impl IntoIterator<Item = &'a Frame>,
    ) -> Self {
        let mut balance: BTreeMap<&[u8], isize> = BTreeMap::new();
        for frame in sent {
            *balance.entry(&frame.bytes).or_default() += 1;
        }
        for frame in received {
            *balance.entry(&frame.bytes).or_default() -= 1;
        }
        let mut difference = Self::default();
        for (bytes, count) in balance {
            let side = if count > 0 { &mut difference.lost } else { &mut difference.extra };
            if count != 0 {
                side.insert(bytes.to_vec(), count.unsigned_abs());
            }
        }
        difference
    }

    /// Whether both sides are equal.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.lost.is_empty() && self.extra.is_empty()
    }
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (name, side) in [("lost", &self.lost), ("duplicate or foreign", &self.extra)] {
            writeln!(f, "{}: {}", name, side.values().sum::<usize>())?;
            for (bytes, count) in side.iter().take(5) {
                writeln!(f, "  {count} x {} bytes: {}", bytes.len(), hex(&bytes[..bytes.len().min(64)]))?;
            }
        }
        Ok(())
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(bytes: &[u8]) -> Frame {
        Frame { direction: FrameDirection::In, bytes: bytes.to_vec(), at: Instant::now() }
    }

    #[test]
    fn a_duplicate_frame_is_a_difference() {
        let (a, b) = (frame(b"a"), frame(b"b"));
        assert!(Difference::between([&a, &b], [&b, &a]).is_none());
        let difference = Difference::between([&a, &b], [&a, &a]);
        assert_eq!(difference.lost, BTreeMap::from([(b"b".to_vec(), 1)]));
        assert_eq!(difference.extra, BTreeMap::from([(b"a".to_vec(), 1)]));
    }
}
