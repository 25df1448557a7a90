//! Socket options that neither std nor nix has. With [`super::ring`], all `unsafe` code of this program.
#![expect(unsafe_code, reason = "system calls with pointers")]

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _},
    ptr,
};

use nix::libc;

/// Sets an option of a packet socket.
pub fn set<Value>(socket: &impl AsFd, option: libc::c_int, value: &Value) -> io::Result<()> {
    let (socket, length) = (socket.as_fd().as_raw_fd(), length_of(value));
    // SAFETY: the value is live and has this length.
    let result = unsafe { libc::setsockopt(socket, libc::SOL_PACKET, option, ptr::from_ref(value).cast(), length) };
    check(result).map(drop)
}

/// An option whose value is a struct of so many 32-bit numbers. Those that this kernel does not know are 0.
pub fn numbers<const COUNT: usize>(
    socket: &impl AsFd,
    level: libc::c_int,
    option: libc::c_int,
) -> io::Result<[u32; COUNT]> {
    let mut numbers = [0; COUNT];
    let mut length = length_of(&numbers);
    let socket = socket.as_fd().as_raw_fd();
    // SAFETY: both are live, and the length is that of the array.
    check(unsafe { libc::getsockopt(socket, level, option, numbers.as_mut_ptr().cast(), &raw mut length) })?;
    Ok(numbers)
}

/// The result of a system call, or its error.
pub fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

pub fn length_of<Value>(_: &Value) -> libc::socklen_t {
    libc::socklen_t::try_from(size_of::<Value>()).unwrap_or(libc::socklen_t::MAX)
}
