//! Small frames as fast as one core can make them, or at a rate: the kernel passes a frame to an XDP program again and again
//! (`BPF_F_TEST_XDP_LIVE_FRAMES`, `Documentation/bpf/bpf_prog_run.rst`), which gives each another source address and lets the loopback
//! device receive it. No program in user space sends frames from one core as fast.
#![expect(unsafe_code, reason = "std has no bpf(2)")]

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    time::{Duration, Instant},
};

use nix::time::{ClockId, clock_gettime};

/// Without the checksum, which counts on the wire: 64 bytes with it.
const LENGTH: usize = 60;
/// Frames that the program sees in one system call, whether it lets them pass or not: for a fraction of a second.
const REPEAT: u32 = 400_000;

/// Offset of the source address in the frame.
const SOURCE: i16 = 26;
/// First byte of all source addresses.
const NETWORK: i32 = 10;

/// Commands, types and flags of `include/uapi/linux/bpf.h`.
const MAP_CREATE: libc::c_int = 0;
const MAP_LOOKUP: libc::c_int = 1;
const MAP_UPDATE: libc::c_int = 2;
const PROG_LOAD: libc::c_int = 5;
const TEST_RUN: libc::c_int = 10;
const MAP_TYPE_ARRAY: u32 = 2;
const PROG_TYPE_XDP: u32 = 6;
const TEST_XDP_LIVE_FRAMES: u32 = 2;
const XDP_DROP: i32 = 1;
const XDP_PASS: i32 = 2;
const KTIME_GET_NS: i32 = 5;
const GET_PRANDOM_U32: i32 = 7;
const PSEUDO_MAP_VALUE: u8 = 2;

/// When the next frame is due and how long after it the one that follows, in nanoseconds; and how many passed.
type Schedule = [u64; 3];

/// The program, and its map.
pub struct Generator {
    program: OwnedFd,
    map: OwnedFd,
}

/// What was sent.
#[derive(Clone, Copy, Debug)]
pub struct Sent {
    pub frames: u64,
    pub elapsed: Duration,
}

impl Sent {
    /// Frames per second.
    #[expect(clippy::cast_precision_loss, reason = "a count of a few seconds")]
    pub fn rate(self) -> f64 {
        self.frames as f64 / self.elapsed.as_secs_f64()
    }
}

impl Generator {
    /// `flows`: how many source addresses the frames have.
    pub fn new(flows: i32) -> io::Result<Self> {
        let size = u32::try_from(size_of::<Schedule>()).unwrap_or(u32::MAX);
        let map = descriptor(MAP_CREATE, &mut [MAP_TYPE_ARRAY, 4, size, 1])?;
        let instructions = program(map.as_raw_fd(), flows);
        let count = u32::try_from(instructions.len()).unwrap_or(u32::MAX);
        let program = descriptor(
            PROG_LOAD,
            &mut Load {
                kind: PROG_TYPE_XDP,
                count,
                instructions: instructions.as_ptr() as u64,
                license: c"GPL".as_ptr() as u64,
            },
        )?;
        Ok(Self { program, map })
    }

    /// Sends to the loopback device of the calling thread's network namespace: at a rate, in frames per second, or as fast as possible.
    pub fn run(&self, rate: Option<f64>, length: Duration) -> io::Result<Sent> {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "nanoseconds")]
        let interval = rate.map_or(0, |rate| (1e9 / rate) as u64);
        let now = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?);
        let first = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        let mut schedule: Schedule = [first, interval, 0];
        self.access(MAP_UPDATE, &mut schedule)?;
        let start = Instant::now();
        while start.elapsed() < length {
            self.repeat()?;
        }
        let elapsed = start.elapsed();
        self.access(MAP_LOOKUP, &mut schedule)?;
        Ok(Sent { frames: schedule[2], elapsed })
    }

    fn repeat(&self) -> io::Result<()> {
        let frame = frame();
        let mut run = TestRun {
            program: self.program.as_raw_fd(),
            length: u32::try_from(frame.len()).unwrap_or(u32::MAX),
            frame: frame.as_ptr() as u64,
            repeat: REPEAT,
            flags: TEST_XDP_LIVE_FRAMES,
            ..TestRun::default()
        };
        bpf(TEST_RUN, &mut run).map(drop)
    }

    fn access(&self, command: libc::c_int, schedule: &mut Schedule) -> io::Result<()> {
        let key = 0_u32;
        let (key, value) = ((&raw const key) as u64, schedule.as_mut_ptr() as u64);
        bpf(command, &mut Access { map: self.map.as_raw_fd(), key, value, flags: 0 }).map(drop)
    }
}

/// For `BPF_MAP_LOOKUP_ELEM` and `BPF_MAP_UPDATE_ELEM`.
#[repr(C, align(8))]
struct Access {
    map: libc::c_int,
    key: u64,
    value: u64,
    flags: u64,
}

/// For `BPF_PROG_LOAD`.
#[repr(C)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
}

/// For `BPF_PROG_TEST_RUN`.
#[repr(C)]
#[derive(Default)]
struct TestRun {
    program: libc::c_int,
    result: u32,
    length: u32,
    length_out: u32,
    frame: u64,
    frame_out: u64,
    repeat: u32,
    duration: u32,
    context_length: u32,
    context_length_out: u32,
    context: u64,
    context_out: u64,
    flags: u32,
    core: u32,
    batch: u32,
}

fn descriptor<Attribute>(command: libc::c_int, attribute: &mut Attribute) -> io::Result<OwnedFd> {
    let descriptor = bpf(command, attribute)?;
    // SAFETY: the kernel just returned this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

fn bpf<Attribute>(command: libc::c_int, attribute: &mut Attribute) -> io::Result<libc::c_int> {
    // SAFETY: the attribute is the start of a bpf_attr of this size; what it points to is live.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attribute), size_of::<Attribute>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(libc::c_int::try_from(result).unwrap_or_default()) }
}

/// A UDP datagram. The checksum of its IP header is not computed: it is for another host, so the kernel drops it after the taps.
fn frame() -> [u8; LENGTH] {
    let mut frame = [0; LENGTH];
    let headers = [
        &[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0][..],
        &[0x45, 0, 0, 46, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 255, 0, 1],
        &[0x13, 0x88, 0x17, 0x70, 0, 26, 0, 0],
    ]
    .concat();
    frame[..headers.len()].copy_from_slice(&headers);
    frame
}

/// An instruction (RFC 9669, 3): operation, destination and source register, offset, and immediate value.
const fn instruction(code: u8, to: u8, from: u8, offset: i16, value: i32) -> u64 {
    let (offset, value) = (offset.cast_unsigned() as u64, value.cast_unsigned() as u64);
    code as u64 | (to as u64) << 8 | (from as u64) << 12 | offset << 16 | value << 32
}

/// Drops the frame if it is not due, and else gives it another source address.
fn program(map: libc::c_int, flows: i32) -> Vec<u64> {
    const LOAD_WORD: u8 = 0x61;
    const LOAD: u8 = 0x79;
    const STORE_WORD: u8 = 0x63;
    const STORE: u8 = 0x7b;
    const MOVE: u8 = 0xbf;
    const SET: u8 = 0xb7;
    const ADD: u8 = 0x07;
    const ADD_REGISTER: u8 = 0x0f;
    const MODULO: u8 = 0x97;
    const SHIFT_LEFT: u8 = 0x67;
    const OR: u8 = 0x47;
    const IF_LESS: u8 = 0xad;
    const IF_GREATER: u8 = 0x2d;
    const CALL: u8 = 0x85;
    const EXIT: u8 = 0x95;
    vec![
        instruction(MOVE, 9, 1, 0, 0),
        // The address of the schedule, in two instructions.
        instruction(0x18, 6, PSEUDO_MAP_VALUE, 0, map),
        0,
        instruction(CALL, 0, 0, 0, KTIME_GET_NS),
        instruction(LOAD, 1, 6, 0, 0),
        instruction(IF_LESS, 0, 1, 18, 0),
        instruction(LOAD, 2, 6, 8, 0),
        instruction(ADD_REGISTER, 1, 2, 0, 0),
        instruction(STORE, 6, 1, 0, 0),
        instruction(LOAD, 1, 6, 16, 0),
        instruction(ADD, 1, 0, 0, 1),
        instruction(STORE, 6, 1, 16, 0),
        // From its first byte to behind its last one.
        instruction(LOAD_WORD, 7, 9, 0, 0),
        instruction(LOAD_WORD, 8, 9, 4, 0),
        instruction(MOVE, 1, 7, 0, 0),
        instruction(ADD, 1, 0, 0, i32::try_from(LENGTH).unwrap_or(i32::MAX)),
        instruction(IF_GREATER, 1, 8, 7, 0),
        instruction(CALL, 0, 0, 0, GET_PRANDOM_U32),
        instruction(MODULO, 0, 0, 0, flows),
        // In network byte order, on a machine with the other one.
        instruction(SHIFT_LEFT, 0, 0, 0, 8),
        instruction(OR, 0, 0, 0, NETWORK),
        instruction(STORE_WORD, 7, 0, SOURCE, 0),
        instruction(SET, 0, 0, 0, XDP_PASS),
        instruction(EXIT, 0, 0, 0, 0),
        // Where both jumps lead.
        instruction(SET, 0, 0, 0, XDP_DROP),
        instruction(EXIT, 0, 0, 0, 0),
    ]
}
