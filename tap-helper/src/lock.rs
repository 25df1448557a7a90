//! One helper per node at a time.

use std::{
    io,
    os::linux::net::SocketAddrExt,
    os::unix::net::{SocketAddr, UnixListener},
};

use crate::namespace::{Namespace, within};

/// Name in the abstract space of Unix sockets, which each network namespace has for itself, so that the node's is the
/// place where two helpers of one node meet, whatever files they share.
const NAME: &[u8] = b"podtap.dev/tap-helper";

/// The right to change this node. Ends with the process, however that ends.
#[derive(Debug)]
pub struct Lock {
    _socket: UnixListener,
}

impl Lock {
    /// Takes it, or says that another helper has it.
    pub fn take(node: &Namespace) -> io::Result<Option<Self>> {
        let bound = within(node, || UnixListener::bind_addr(&SocketAddr::from_abstract_name(NAME)?))?;
        match bound {
            Ok(socket) => Ok(Some(Self { _socket: socket })),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// What to tell when it is taken.
pub const TAKEN: &str = "another tap-helper works on this node: ask it through its socket, or stop it first";
