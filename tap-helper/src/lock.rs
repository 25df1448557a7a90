//! Allows one helper per node at a time.

use std::{
    io,
    os::linux::net::SocketAddrExt,
    os::unix::net::{SocketAddr, UnixListener},
};

use crate::namespace::{Namespace, within};

/// Name in the abstract space of Unix sockets. Each network namespace has its own, so two helpers of one node meet in the node's,
/// whatever files they share.
const NAME: &[u8] = b"podtap.dev/tap-helper";

/// The right to change this node. Ends with the process, however that ends.
#[derive(Debug)]
pub struct Lock {
    _socket: UnixListener,
}

impl Lock {
    /// Takes the lock; none if another helper holds it.
    pub fn take(node: &Namespace) -> io::Result<Option<Self>> {
        let bound = within(node, || UnixListener::bind_addr(&SocketAddr::from_abstract_name(NAME)?))?;
        match bound {
            Ok(socket) => Ok(Some(Self { _socket: socket })),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => Ok(None),
            Err(error) => Err(error),
        }
    }
}
