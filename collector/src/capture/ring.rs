//! A ring of frames that the kernel shares with this process (`TPACKET_V3`, `Documentation/networking/packet_mmap.rst`).
//!
//! The kernel fills blocks of a mapped buffer, and passes each on when it is full, or after [`RETIRE_AFTER_MS`].
#![expect(unsafe_code, reason = "neither std nor nix has packet sockets with a ring")]

use std::{
    io, mem,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    ptr::{self, NonNull},
    slice,
    sync::atomic::{AtomicU32, Ordering},
};

use nix::libc;
use podtap_flow::{AHEAD, Timestamp};

use super::options;

const BLOCK_SIZE: usize = 1 << 20;
/// Blocks of a ring.
pub const BLOCKS: usize = 16;
const RING_SIZE: usize = BLOCK_SIZE * BLOCKS;
/// A block that is not full is passed on after this time.
const RETIRE_AFTER_MS: u32 = 60;
/// Of a `tpacket3_hdr` with the address that follows it: frames have different lengths, but the kernel asks for one that fits a block.
const FRAME_SIZE: u32 = 2048;
/// Of a frame's address in its header: `TPACKET_ALIGN(sizeof(struct tpacket3_hdr))`.
const ADDRESS: usize = size_of::<libc::tpacket3_hdr>().next_multiple_of(libc::TPACKET_ALIGNMENT);

/// Bytes of the MAC addresses, and of a VLAN tag behind them.
const MAC_ADDRESSES: usize = 12;
const TAG: usize = 4;

/// `include/uapi/linux/if_packet.h`: bytes of room before each frame.
const PACKET_RESERVE: libc::c_int = 12;
/// `include/uapi/linux/if_packet.h`; since Linux 4.20.
const PACKET_IGNORE_OUTGOING: libc::c_int = 23;

/// A packet socket on one interface or on all, with its ring.
#[derive(Debug)]
pub struct Ring {
    socket: OwnedFd,
    /// `RING_SIZE` bytes, mapped until this value is dropped.
    blocks: NonNull<u8>,
    /// The block that the kernel passes on next.
    next: usize,
}

// SAFETY: the mapping belongs to this value alone, and is not bound to a thread.
unsafe impl Send for Ring {}

/// A frame that was captured.
#[derive(Clone, Copy, Debug)]
pub struct CapturedFrame<'a> {
    /// When it was captured.
    pub at: Timestamp,
    /// Bytes on the wire.
    pub length: u32,
    pub bytes: &'a [u8],
    /// Index of the interface.
    pub interface: u32,
    /// Whether frames found no room before it: the kernel says so until [`Ring::dropped`] is asked for.
    pub follows_drops: bool,
}

impl Ring {
    /// Captures the frames of an interface of this network namespace. Needs the capability `NET_RAW`.
    pub fn open(interface: &str) -> io::Result<Self> {
        Self::of(packet_socket()?, interface)
    }

    /// Captures the frames of an interface of the socket's network namespace, which is this one, in promiscuous mode: a receiver of PodTap
    /// knows by it that it has a reader, and shows frames as on the wire. The socket is one of [`packet_socket`]. No capability is needed.
    pub fn of(socket: OwnedFd, interface: &str) -> io::Result<Self> {
        let index = nix::net::if_::if_nametoindex(interface)?;
        let index = i32::try_from(index).map_err(io::Error::other)?;
        let ring = Self::unbound(socket)?;
        ring.bind(index)?;
        let membership = libc::packet_mreq {
            mr_ifindex: index,
            mr_type: short(libc::PACKET_MR_PROMISC),
            mr_alen: 0,
            mr_address: [0; 8],
        };
        options::set(&ring.socket, libc::PACKET_ADD_MEMBERSHIP, &membership)?;
        Ok(ring)
    }

    /// Captures the frames of all interfaces of this network namespace, also of those that are created later.
    pub fn open_all() -> io::Result<Self> {
        let ring = Self::unbound(packet_socket()?)?;
        // A receiver's frames come out of the other end of its veth pair: each would be captured twice.
        options::set(&ring.socket, PACKET_IGNORE_OUTGOING, &1_i32)?;
        ring.bind(0)?;
        Ok(ring)
    }

    fn unbound(socket: OwnedFd) -> io::Result<Self> {
        options::set(&socket, libc::PACKET_VERSION, &(libc::tpacket_versions::TPACKET_V3 as libc::c_int))?;
        options::set(&socket, PACKET_RESERVE, &number(TAG))?;
        let ring = libc::tpacket_req3 {
            tp_block_size: number(BLOCK_SIZE),
            tp_block_nr: number(BLOCKS),
            tp_frame_size: FRAME_SIZE,
            tp_frame_nr: number(RING_SIZE) / FRAME_SIZE,
            tp_retire_blk_tov: RETIRE_AFTER_MS,
            tp_sizeof_priv: 0,
            tp_feature_req_word: 0,
        };
        options::set(&socket, libc::PACKET_RX_RING, &ring)?;
        // SAFETY: a new mapping, of the length of the ring.
        let blocks = unsafe {
            libc::mmap(
                ptr::null_mut(),
                RING_SIZE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                socket.as_raw_fd(),
                0,
            )
        };
        if blocks == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let blocks = NonNull::new(blocks.cast()).ok_or_else(|| io::Error::other("mapped at address 0"))?;
        Ok(Self { socket, blocks, next: 0 })
    }

    fn bind(&self, index: i32) -> io::Result<()> {
        // SAFETY: a struct of integers.
        let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
        address.sll_family = short(libc::AF_PACKET);
        address.sll_protocol = short(libc::ETH_P_ALL).to_be();
        address.sll_ifindex = index;
        let length = options::length_of(&address);
        // SAFETY: the address is live and has this length.
        options::check(unsafe { libc::bind(self.socket.as_raw_fd(), (&raw const address).cast(), length) }).map(drop)
    }

    /// Passes on the frames of one block, if the kernel has passed on one, [`AHEAD`] at once. Returns whether it had.
    pub fn read(&mut self, mut take: impl FnMut(&[CapturedFrame<'_>])) -> bool {
        // SAFETY: `next` is below BLOCKS, so the block is in the mapping; blocks are aligned to pages.
        let block = unsafe { self.blocks.add(self.next * BLOCK_SIZE) };
        let status = self.status(self.next).load(Ordering::Acquire);
        if status & libc::TP_STATUS_USER == 0 {
            return false;
        }
        // SAFETY: the kernel has initialized the header, and does not write to the block until its status says so.
        let header = unsafe { block.cast::<libc::tpacket_block_desc>().as_ref().hdr.bh1 };
        let mut at = header.offset_to_first_pkt as usize;
        let mut frames = Vec::with_capacity(AHEAD);
        for _ in 0..header.num_pkts {
            if at + ADDRESS + size_of::<libc::sockaddr_ll>() > BLOCK_SIZE {
                break;
            }
            // SAFETY: the header is within the block, where the kernel has initialized it; it need not be aligned.
            let packet = unsafe { block.add(at).cast::<libc::tpacket3_hdr>().read_unaligned() };
            // SAFETY: likewise.
            let address = unsafe { block.add(at + ADDRESS).cast::<libc::sockaddr_ll>().read_unaligned() };
            let (mut start, mut length) = (at + usize::from(packet.tp_mac), packet.tp_snaplen as usize);
            if start + length > BLOCK_SIZE {
                break;
            }
            let tag = tag_of(&packet).filter(|_| length >= MAC_ADDRESSES && usize::from(packet.tp_mac) >= TAG);
            if let Some(tag) = tag {
                start -= TAG;
                length += TAG;
                // SAFETY: the bytes are within the block, which belongs to this program until it is given back, and nothing refers to them.
                unsafe {
                    let frame = block.add(start).as_ptr();
                    ptr::copy(frame.add(TAG), frame, MAC_ADDRESSES);
                    frame.add(MAC_ADDRESSES).cast::<[u8; TAG]>().write_unaligned(tag);
                }
            }
            // SAFETY: the bytes are within the block, and stay as they are until the block is given back, after the last use of the slice.
            let bytes = unsafe { slice::from_raw_parts(block.add(start).as_ptr(), length) };
            frames.push(CapturedFrame {
                at: Timestamp(Timestamp::from_seconds(packet.tp_sec.into()).0 + u64::from(packet.tp_nsec)),
                length: packet.tp_len + if tag.is_some() { number(TAG) } else { 0 },
                bytes,
                interface: address.sll_ifindex.cast_unsigned(),
                follows_drops: status & libc::TP_STATUS_LOSING != 0,
            });
            at += packet.tp_next_offset as usize;
            if frames.len() == AHEAD {
                take(&frames);
                frames.clear();
            }
        }
        take(&frames);
        self.status(self.next).store(libc::TP_STATUS_KERNEL, Ordering::Release);
        self.next = (self.next + 1) % BLOCKS;
        true
    }

    /// Blocks that wait to be read.
    pub fn waiting(&self) -> usize {
        let waits = |number: &usize| self.status(number % BLOCKS).load(Ordering::Relaxed) & libc::TP_STATUS_USER != 0;
        (self.next..self.next + BLOCKS).take_while(waits).count()
    }

    /// The status of a block, which the kernel writes, too.
    fn status(&self, block: usize) -> &AtomicU32 {
        // SAFETY: as in `read`. The field is aligned, and only accessed as an atomic.
        unsafe {
            let block = self.blocks.add(block * BLOCK_SIZE).cast::<libc::tpacket_block_desc>().as_ptr();
            AtomicU32::from_ptr(&raw mut (*block).hdr.bh1.block_status)
        }
    }

    /// The error that waits at the socket, if one does.
    pub fn check(&self) -> io::Result<()> {
        let error = nix::sys::socket::getsockopt(&self.socket, nix::sys::socket::sockopt::SocketError)?;
        if error == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(error)) }
    }

    /// Frames that found no room since the last call.
    pub fn dropped(&self) -> io::Result<u64> {
        // A tpacket_stats_v3: frames, those of them that were dropped, and how often the ring was full.
        let [_, dropped, _] = options::numbers(&self.socket, libc::SOL_PACKET, libc::PACKET_STATISTICS)?;
        Ok(dropped.into())
    }
}

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the mapping of `open`, to which no reference is left.
        unsafe { libc::munmap(self.blocks.as_ptr().cast(), RING_SIZE) };
    }
}

/// The outermost VLAN tag of a frame, which the kernel has taken out of it.
fn tag_of(packet: &libc::tpacket3_hdr) -> Option<[u8; TAG]> {
    let has = |flag: u32| packet.tp_status & flag != 0;
    let ether_type =
        if has(libc::TP_STATUS_VLAN_TPID_VALID) { packet.hv1.tp_vlan_tpid } else { short(libc::ETH_P_8021Q) };
    let tag = u32::from(ether_type) << 16 | packet.hv1.tp_vlan_tci & 0xffff;
    has(libc::TP_STATUS_VLAN_VALID).then(|| tag.to_be_bytes())
}

/// A packet socket that is not bound. With protocol 0, it gets no frames until then: else it would get those of all interfaces for a moment.
fn packet_socket() -> io::Result<OwnedFd> {
    // SAFETY: a system call without pointers.
    let socket = options::check(unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: the kernel just returned this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(socket) })
}

fn short(constant: libc::c_int) -> u16 {
    u16::try_from(constant).unwrap_or_default()
}

fn number(size: usize) -> u32 {
    u32::try_from(size).unwrap_or(u32::MAX)
}
