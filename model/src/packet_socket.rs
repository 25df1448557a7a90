//! How a packet socket comes to a program without capabilities: the tap-helper opens it in the network namespace of the program's pod,
//! and hands it over.
//!
//! The program listens on [`PACKET_SOCKET_ADDRESS`]. The tap-helper connects, for each receiver in the namespace, and sends one message
//! that has
//! - a [`PacketSocket`] as JSON, of at most [`MAX_PACKET_SOCKET_MESSAGE`] bytes, and
//! - one descriptor (`SCM_RIGHTS`, unix(7)): a socket of `socket(AF_PACKET, SOCK_RAW, 0)` (packet(7)) that is not bound and has no ring.
//!   A filter passes the frames of that interface alone, and is locked (`SO_LOCK_FILTER`, socket(7)): the program cannot capture from
//!   another one with this socket.
//!
//! The program then sets the version and the ring, asks for promiscuous mode, by which a receiver knows that it has a reader, and binds the
//! socket. It answers nothing. The connection stays open while both run: either side closes it when it stops, the program also to refuse
//! what it got and when the interface is gone, and the tap-helper then connects again. A socket of an interface that is captured from is
//! closed, and its connection takes the place of the earlier one: a restart of the tap-helper costs no frame.

use serde::{Deserialize, Serialize};

use crate::identity::InterfaceName;

/// Name of the Unix socket on which a program waits for packet sockets: abstract, in its network namespace, of type `SOCK_SEQPACKET`.
pub const PACKET_SOCKET_ADDRESS: &str = "podtap-packet-socket";
/// Longest message, in bytes.
pub const MAX_PACKET_SOCKET_MESSAGE: usize = 1024;

/// What a packet socket is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PacketSocket {
    /// The interface whose frames it gets.
    pub interface: InterfaceName,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_has_the_name_of_the_interface_and_nothing_else() {
        let message = r#"{"interface":"ptap4096"}"#;
        let socket: PacketSocket = serde_json::from_str(message).expect("it is valid");
        assert_eq!(&*socket.interface, "ptap4096");
        assert_eq!(serde_json::to_string(&socket).expect("it can be written"), message);
        for invalid in ["{}", r#"{"interface":"a b"}"#, r#"{"interface":"ptap1","path":"/"}"#] {
            assert!(serde_json::from_str::<PacketSocket>(invalid).is_err(), "{invalid}");
        }
        let longest = PacketSocket { interface: "\"".repeat(15).parse().expect("a name") };
        assert!(serde_json::to_vec(&longest).expect("it can be written").len() <= MAX_PACKET_SOCKET_MESSAGE);
    }
}
