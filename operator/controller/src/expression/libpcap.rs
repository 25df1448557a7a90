//! The few functions of libpcap that compile an expression. With [`position`], the only unsafe code of the controller.
//!
//! libpcap is linked statically from the distribution's archive. Nothing is captured here, so its capture back ends that need further
//! libraries are left out: see [`dbus_create`].
//!
//! # Assumptions
//! libpcap 1.8 or later: before, `pcap_compile` was not thread-safe. Debian has had it since 2017.

use std::{
    ffi::{CStr, CString, c_char, c_int, c_uint, c_void},
    ptr::{self, NonNull},
    slice,
};

use podtap_model::Instruction;

use super::position;

/// Ethernet, `DLT_EN10MB` of pcap/dlt.h.
const ETHERNET: c_int = 1;
/// More bytes than a frame can have. A program that matches returns this number.
const SNAPSHOT_LENGTH: c_int = 262_144;
/// `PCAP_NETMASK_UNKNOWN` of pcap/pcap.h: expressions cannot test for IPv4 broadcast addresses.
const NETMASK_UNKNOWN: c_uint = 0xffff_ffff;

/// `pcap_t`, opaque outside libpcap.
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

/// A handle without a capture, closed on drop.
struct Dead(NonNull<Handle>);

impl Dead {
    fn open() -> Option<Self> {
        // SAFETY: takes two numbers, and returns a new handle, or null if memory is exhausted.
        NonNull::new(unsafe { pcap_open_dead(ETHERNET, SNAPSHOT_LENGTH) }).map(Self)
    }

    fn error(&self) -> String {
        // SAFETY: the handle is open. The result is its own buffer, which ends with a zero byte, and which nobody changes while this
        // reads it: `&self` is not shared with other threads, since a raw pointer is not `Sync`.
        let text = unsafe { CStr::from_ptr(pcap_geterr(self.0.as_ptr())) };
        text.to_string_lossy().into_owned()
    }
}

impl Drop for Dead {
    fn drop(&mut self) {
        // SAFETY: the handle is open, and nobody uses it after this.
        unsafe { pcap_close(self.0.as_ptr()) };
    }
}

/// libpcap's error message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct CompileError(pub String);

/// Compiles an expression for Ethernet frames.
///
/// The controller must not call this with user text in its own process: see [`super::process`].
pub fn compile(expression: &str) -> Result<Vec<Instruction>, CompileError> {
    let text = CString::new(expression).map_err(|_| CompileError("it contains a zero byte".to_owned()))?;
    let handle = Dead::open().ok_or_else(|| CompileError("out of memory".to_owned()))?;
    let mut program = Program { length: 0, instructions: ptr::null_mut() };
    position::take();
    // SAFETY: handle, program and text are valid during the call; the text ends with a zero byte. libpcap keeps none of them.
    let result = unsafe { pcap_compile(handle.0.as_ptr(), &raw mut program, text.as_ptr(), 1, NETMASK_UNKNOWN) };
    let last_token = position::take();
    if result != 0 {
        let message = handle.error();
        let place = last_token.filter(|_| message.ends_with("syntax error"));
        let place = place.and_then(|token| position::describe(expression, &token));
        return Err(CompileError(message + &place.unwrap_or_default()));
    }
    let length = usize::try_from(program.length).unwrap_or_default();
    let instructions = if program.instructions.is_null() || length == 0 {
        Vec::new()
    } else {
        // SAFETY: on success libpcap has allocated that many instructions of this layout, and nobody else refers to them.
        let compiled = unsafe { slice::from_raw_parts(program.instructions, length) };
        compiled.iter().map(|&RawInstruction { code, jt, jf, k }| Instruction { code, jt, jf, k }).collect()
    };
    // SAFETY: `pcap_compile` has allocated the program, and it is not used after this.
    unsafe { pcap_freecode(&raw mut program) };
    Ok(instructions)
}

/// Replaces libpcap's D-Bus capture back end, which needs libdbus and libsystemd; Debian has no static archives of those. The table
/// of back ends (`capture_source_types`, pcap.c) refers to this symbol; the linker takes this definition and leaves the archive's
/// member out. Never called: opening a handle without a capture does not use the table.
#[unsafe(no_mangle)]
extern "C" fn dbus_create(_: *const c_char, _: *mut c_char, is_ours: *mut c_int) -> *mut c_void {
    if let Some(is_ours) = NonNull::new(is_ours) {
        // SAFETY: libpcap passes a valid pointer to an integer (pcap-int.h); 0 means "not a device of mine".
        unsafe { is_ours.write(0) };
    }
    ptr::null_mut()
}

/// Like [`dbus_create`]: finds no devices, and is never called.
#[unsafe(no_mangle)]
extern "C" fn dbus_findalldevs(_: *mut c_void, _: *mut c_char) -> c_int {
    0
}

/// Replaces libc's function, and finds no protocol. The compiler process cannot open /etc/protocols; libc's function would return an
/// error, which libpcap takes for protocol 0 (`pcap_nametoproto`, nametoaddr.c), and the filter would be a different one than was
/// requested. Nothing else in this program calls it.
#[unsafe(no_mangle)]
extern "C" fn getprotobyname_r(
    _: *const c_char,
    _: *mut c_void,
    _: *mut c_char,
    _: usize,
    result: *mut *mut c_void,
) -> c_int {
    if let Some(result) = NonNull::new(result) {
        // SAFETY: the caller passes a valid pointer to a pointer (getprotobyname_r(3)); null and 0 mean "not found".
        unsafe { result.write(ptr::null_mut()) };
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(expression: &str) -> Vec<(u16, u8, u8, u32)> {
        let program = compile(expression).expect("an expression");
        program.into_iter().map(|Instruction { code, jt, jf, k }| (code, jt, jf, k)).collect()
    }

    #[test]
    fn the_same_program_as_tcpdump() {
        // tcpdump -dd arp
        assert_eq!(numbers("arp"), [(0x28, 0, 0, 12), (0x15, 0, 1, 0x806), (0x6, 0, 0, 262_144), (0x6, 0, 0, 0)]);
        assert_eq!(numbers("").len(), 1, "everything");
        assert!(numbers("tcp port 443 and not net 10.0.0.0/8").len() > 10);
    }

    #[test]
    fn its_own_words() {
        let error = |expression| compile(expression).expect_err("not an expression").to_string();
        assert!(error("tcp prot 443").ends_with(r#"syntax error at "prot", after "tcp""#), "{}", error("tcp prot 443"));
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
