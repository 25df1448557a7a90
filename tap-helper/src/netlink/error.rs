use std::{fmt, io};

use nix::errno::Errno;
use rtnetlink::packet_core::{
    DoneMessage, Emitable as _, ErrorMessage, NLM_F_ACK_TLVS, NLM_F_CAPPED, NetlinkHeader, parse_u32,
};

use super::nla::{ACK_TEXT, child, text};

/// A request that failed, with everything the kernel reported about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetlinkError {
    /// What was attempted, in words that follow "cannot".
    pub operation: String,
    /// The kernel's error number.
    pub errno: Errno,
    /// The text of the extended acknowledgement (`NLMSGERR_ATTR_MSG`), if there was one.
    pub text: Option<String>,
    /// Whether it is no error of the kernel, which has more to say than the helper is willing to read.
    pub too_much: bool,
}

/// Why a network namespace cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// It cannot be opened, entered or watched.
    #[error("cannot enter the network namespace: {0}")]
    Enter(#[from] io::Error),
    /// The kernel refused a request in it.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
}

impl NetlinkError {
    pub(super) fn new(operation: &str, errno: Errno) -> Self {
        Self { operation: operation.to_owned(), errno, text: None, too_much: false }
    }

    /// There are more objects than may be read.
    pub(super) fn too_much(operation: &str) -> Self {
        Self { too_much: true, ..Self::new(operation, Errno::E2BIG) }
    }

    /// An error of the socket itself.
    pub(super) fn socket(operation: &str, error: &io::Error) -> Self {
        Self::new(operation, error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
    }

    /// The error in an acknowledgement; none if it confirms the request.
    pub(super) fn of_ack(operation: &str, header: &NetlinkHeader, ack: &ErrorMessage) -> Option<Self> {
        Self::of(operation, header, ack.raw_code(), || {
            // `struct nlmsgerr` continues with the header of the request, and without the flag with all of the request.
            let request = NetlinkHeader::default().buffer_len();
            let length = ack.header.get(..4).and_then(|length| parse_u32(length).ok())?;
            let full = usize::try_from(length).ok()?.next_multiple_of(4);
            ack.header.get(if header.flags & NLM_F_CAPPED == 0 { full } else { request }..)
        })
    }

    /// The error that ended a dump; none if it is complete.
    pub(super) fn of_done(operation: &str, header: &NetlinkHeader, done: &DoneMessage) -> Option<Self> {
        Self::of(operation, header, done.code, || Some(&done.extended_ack))
    }

    fn of<'a>(
        operation: &str,
        header: &NetlinkHeader,
        code: i32,
        attributes: impl FnOnce() -> Option<&'a [u8]>,
    ) -> Option<Self> {
        let attributes = (header.flags & NLM_F_ACK_TLVS != 0).then(attributes).flatten().unwrap_or_default();
        let message = child(attributes, ACK_TEXT);
        let text = message.map(|message| text(message.value())).filter(|text| !text.is_empty());
        (code != 0).then(|| Self { text, ..Self::new(operation, Errno::from_raw(-code)) })
    }

    /// Whether the kernel lacks what the request is about.
    #[must_use]
    pub fn is_unsupported(&self) -> bool {
        matches!(self.errno, Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT | Errno::EPROTONOSUPPORT)
    }

    /// Whether the object to remove or to read does not exist: removal treats this as success.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        matches!(self.errno, Errno::ENODEV | Errno::ENOENT | Errno::ENXIO)
    }
}

impl std::error::Error for NetlinkError {}

impl fmt::Display for NetlinkError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.too_much {
            return write!(formatter, "cannot {}: there are too many objects", self.operation);
        }
        write!(formatter, "cannot {}: {} (errno {})", self.operation, self.errno.desc(), self.errno as i32)?;
        match &self.text {
            Some(text) => write!(formatter, ", the kernel says: {text}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_core::{NLMSG_ERROR, NetlinkMessage, NetlinkPayload};

    use super::*;
    use crate::netlink::decode::Message;

    /// An acknowledgement by its flags, and by what follows the error number.
    fn read(flags: u16, rest: &[u8]) -> Option<NetlinkError> {
        let text = [&11u16.to_ne_bytes()[..], &ACK_TEXT.to_ne_bytes(), b"no way\0\0"].concat();
        let error = (-(Errno::EBUSY as i32)).to_ne_bytes();
        let payload = [&error[..], rest, &text].concat();
        let length = u32::try_from(16 + payload.len()).expect("it is short").to_ne_bytes();
        let header = [&length[..], &NLMSG_ERROR.to_ne_bytes(), &flags.to_ne_bytes(), &[0; 8]].concat();
        let message = NetlinkMessage::<Message>::deserialize(&[header, payload].concat()).expect("it is a message");
        let NetlinkPayload::Error(ack) = &message.payload else { panic!("it is an error") };
        NetlinkError::of_ack("try", &message.header, ack)
    }

    #[test]
    fn the_text_of_the_kernel_is_kept() {
        let request = |length: u8| [&[length, 0, 0, 0][..], &[0; 12]].concat();
        let expected = "cannot try: Device or resource busy (errno 16)";
        let with_text = Some(format!("{expected}, the kernel says: no way"));
        let shown = |error: Option<NetlinkError>| error.map(|error| error.to_string());
        assert_eq!(shown(read(NLM_F_ACK_TLVS | NLM_F_CAPPED, &request(40))), with_text);
        assert_eq!(shown(read(NLM_F_ACK_TLVS, &[request(21), vec![0; 8]].concat())), with_text);
        assert_eq!(shown(read(NLM_F_CAPPED, &request(40))), Some(expected.to_owned()));
    }

    #[test]
    fn success_is_no_error() {
        let header = NetlinkHeader::default();
        assert_eq!(NetlinkError::of_ack("try", &header, &ErrorMessage::default()), None);
        assert_eq!(NetlinkError::of_done("try", &header, &DoneMessage::default()), None);
    }
}
