//! The few functions of libpcap that compile an expression, and the only unsafe code of the operator.
//!
//! libpcap is linked statically from the distribution's archive. Nothing is captured here, so that of its ways to capture those
//! which need further libraries are left out: see [`dbus_create`].
//!
//! # Assumptions
//! libpcap 1.8 or later: before, `pcap_compile` was not thread-safe. Debian has had it since 2017.

use std::{
    ffi::{CStr, CString, c_char, c_int, c_uint, c_void},
    ptr::{self, NonNull},
    slice,
};

use tap_wire::Instruction;

/// Ethernet, `DLT_EN10MB` of pcap/dlt.h.
const ETHERNET: c_int = 1;
/// More bytes than a frame can have. What it says is only the result of a program that matches.
const SNAPSHOT_LENGTH: c_int = 262_144;
/// `PCAP_NETMASK_UNKNOWN` of pcap/pcap.h: whether an address is a broadcast one cannot be asked.
const NETMASK_UNKNOWN: c_uint = 0xffff_ffff;

/// `pcap_t`, which only libpcap looks into.
#[repr(C)]
struct Handle {
    _private: [u8; 0],
}

/// `struct bpf_program` of pcap/bpf.h.
#[repr(C)]
struct Program {
    length: c_uint,
    instructions: *mut RawInstruction,
}

/// `struct bpf_insn` of pcap/bpf.h.
#[repr(C)]
#[derive(Clone, Copy)]
struct RawInstruction {
    code: u16,
    jt: u8,
    jf: u8,
    k: u32,
}

#[link(name = "pcap", kind = "static")]
unsafe extern "C" {
    fn pcap_open_dead(link_type: c_int, snapshot_length: c_int) -> *mut Handle;
    fn pcap_close(handle: *mut Handle);
    fn pcap_compile(
        handle: *mut Handle,
        program: *mut Program,
        expression: *const c_char,
        optimize: c_int,
        netmask: c_uint,
    ) -> c_int;
    fn pcap_geterr(handle: *mut Handle) -> *mut c_char;
    fn pcap_freecode(program: *mut Program);
}

/// A handle that stands for no capture, closed when it goes.
struct Dead(NonNull<Handle>);

impl Dead {
    fn open() -> Option<Self> {
        // SAFETY: takes two numbers, and returns a new handle, or null without memory.
        NonNull::new(unsafe { pcap_open_dead(ETHERNET, SNAPSHOT_LENGTH) }).map(Self)
    }

    fn error(&self) -> String {
        // SAFETY: the handle is open. What is returned is its own buffer, which ends with a zero, and which nobody changes
        // while this reads it: `&self` is not shared with other threads, since a raw pointer is not `Sync`.
        let text = unsafe { CStr::from_ptr(pcap_geterr(self.0.as_ptr())) };
        text.to_string_lossy().into_owned()
    }
}

impl Drop for Dead {
    fn drop(&mut self) {
        // SAFETY: the handle is open, and nobody has it any more.
        unsafe { pcap_close(self.0.as_ptr()) };
    }
}

/// Compiles an expression for Ethernet frames; libpcap's own words if it cannot.
///
/// Not to be called with a user's text in the controller: see [`super::process`].
pub fn compile(expression: &str) -> Result<Vec<Instruction>, String> {
    let text = CString::new(expression).map_err(|_| "there is a zero byte in it".to_owned())?;
    let handle = Dead::open().ok_or("there is not enough memory")?;
    let mut program = Program { length: 0, instructions: ptr::null_mut() };
    // SAFETY: handle, program and text are valid during the call; the text ends with a zero. libpcap keeps none of them.
    let result = unsafe { pcap_compile(handle.0.as_ptr(), &raw mut program, text.as_ptr(), 1, NETMASK_UNKNOWN) };
    if result != 0 {
        return Err(handle.error());
    }
    let length = usize::try_from(program.length).unwrap_or_default();
    let instructions = if program.instructions.is_null() || length == 0 {
        Vec::new()
    } else {
        // SAFETY: after success libpcap has put so many instructions there, of this layout, and nobody else knows them.
        let made = unsafe { slice::from_raw_parts(program.instructions, length) };
        made.iter().map(|&RawInstruction { code, jt, jf, k }| Instruction { code, jt, jf, k }).collect()
    };
    // SAFETY: the program is the one that was made above, and is not used after this.
    unsafe { pcap_freecode(&raw mut program) };
    Ok(instructions)
}

/// Stands in for libpcap's way to capture from D-Bus, which would want libdbus and libsystemd, of which there is no archive.
/// The table of ways to capture (`capture_source_types`, pcap.c) names it; the linker takes this one, and leaves the archive's
/// member with its wishes out. Never called: a handle without a capture is opened without the table.
#[unsafe(no_mangle)]
extern "C" fn dbus_create(_: *const c_char, _: *mut c_char, is_ours: *mut c_int) -> *mut c_void {
    if let Some(is_ours) = NonNull::new(is_ours) {
        // SAFETY: libpcap's convention (pcap-int.h): a valid place for an integer, 0 for "no device of mine".
        unsafe { is_ours.write(0) };
    }
    ptr::null_mut()
}

/// As [`dbus_create`]: there are no devices. Never called either.
#[unsafe(no_mangle)]
extern "C" fn dbus_findalldevs(_: *mut c_void, _: *mut c_char) -> c_int {
    0
}

/// Stands in for libc's, and knows no protocol by its name. Where libc's own cannot open its list, which is so in the process in
/// which this runs, it returns an error, and libpcap takes any error for protocol 0 (`pcap_nametoproto`, nametoaddr.c), and the filter would be another one
/// than was asked for. Nothing else in this program asks.
#[unsafe(no_mangle)]
extern "C" fn getprotobyname_r(
    _: *const c_char,
    _: *mut c_void,
    _: *mut c_char,
    _: usize,
    result: *mut *mut c_void,
) -> c_int {
    if let Some(result) = NonNull::new(result) {
        // SAFETY: the caller's place for a pointer, as getprotobyname_r(3) wants it; null and 0 for "not found".
        unsafe { result.write(ptr::null_mut()) };
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(expression: &str) -> Vec<(u16, u8, u8, u32)> {
        compile(expression).expect("an expression").into_iter().map(Into::into).collect()
    }

    #[test]
    fn what_tcpdump_would_make() {
        // tcpdump -dd arp
        assert_eq!(numbers("arp"), [(0x28, 0, 0, 12), (0x15, 0, 1, 0x806), (0x6, 0, 0, 262_144), (0x6, 0, 0, 0)]);
        assert_eq!(numbers("").len(), 1, "everything");
        assert!(numbers("tcp port 443 and not net 10.0.0.0/8").len() > 10);
    }

    #[test]
    fn its_own_words() {
        let error = |expression| compile(expression).expect_err("not an expression");
        assert!(error("tcp prot 443").contains("syntax error"), "{}", error("tcp prot 443"));
        assert!(error("port 70000").contains("70000"), "{}", error("port 70000"));
        assert!(error("ip proto egp").contains("egp"), "{}", error("ip proto egp"));
        assert!(error("arp and tcp port 5 and ip6 and ip").contains("reject"), "it can never match");
        assert!(error("a\0b").contains("zero byte"));
    }

    #[test]
    fn many_at_once() {
        std::thread::scope(|scope| {
            for port in 1..9 {
                scope.spawn(move || {
                    for _ in 0..50 {
                        assert_eq!(numbers(&format!("udp port {port}")).len(), 20);
                        assert!(compile("udp prot").is_err());
                    }
                });
            }
        });
    }
}
