//! Socket filters: classic BPF programs (`Documentation/networking/filter.rst`), which no crate of this tree attaches.
#![expect(unsafe_code, reason = "system calls with pointers")]

use std::{io, os::fd::AsRawFd};

use nix::libc;

/// An instruction that jumps.
pub fn jump(code: u32, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter { code: u16::try_from(code).unwrap_or_default(), jt, jf, k }
}

/// An instruction that does not.
pub fn statement(code: u32, k: u32) -> libc::sock_filter {
    jump(code, k, 0, 0)
}

/// Filters what a socket receives.
pub fn attach(socket: &impl AsRawFd, filter: &[libc::sock_filter]) -> io::Result<()> {
    let program =
        libc::sock_fprog { len: u16::try_from(filter.len()).unwrap_or_default(), filter: filter.as_ptr().cast_mut() };
    set(socket, libc::SO_ATTACH_FILTER, &program)
}

/// Keeps the filter of a socket as it is, also if another program gets the socket (`SO_LOCK_FILTER`, socket(7)).
pub fn lock(socket: &impl AsRawFd) -> io::Result<()> {
    set(socket, libc::SO_LOCK_FILTER, &1_i32)
}

fn set<Value>(socket: &impl AsRawFd, option: libc::c_int, value: &Value) -> io::Result<()> {
    let size = libc::socklen_t::try_from(size_of::<Value>()).unwrap_or_default();
    // SAFETY: the value is live and has this size. The kernel copies it and the filter that it may point to, and changes neither.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, std::ptr::from_ref(value).cast(), size)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
