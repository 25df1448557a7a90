//! Messages of generic netlink (include/uapi/linux/genetlink.h) and of netfilter (include/uapi/linux/netfilter/nfnetlink.h), which
//! have the same shape.

use rtnetlink::packet_core::{
    DecodeError, DefaultNla, Emitable as _, NetlinkDeserializable, NetlinkHeader, NetlinkSerializable,
};

/// A message of generic netlink or of netfilter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct GenericMessage {
    /// The type: of generic netlink the family, of netfilter the subsystem and command.
    pub(super) family: u16,
    /// `struct genlmsghdr`: command, version, reserved. Or `struct nfgenmsg`: address family, version, resource.
    header: [u8; 4],
    pub(super) attributes: Vec<u8>,
}

impl GenericMessage {
    pub(super) fn new(family: u16, command: u8, attributes: &[DefaultNla]) -> Self {
        Self::with_header(family, [command, 1, 0, 0], attributes)
    }

    pub(super) fn with_header(family: u16, header: [u8; 4], attributes: &[DefaultNla]) -> Self {
        let mut bytes = vec![0; attributes.buffer_len()];
        attributes.emit(&mut bytes);
        Self { family, header, attributes: bytes }
    }
}

impl NetlinkSerializable for GenericMessage {
    fn message_type(&self) -> u16 {
        self.family
    }

    fn buffer_len(&self) -> usize {
        self.header.len() + self.attributes.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        let (header, attributes) = buffer.split_at_mut(self.header.len());
        header.copy_from_slice(&self.header);
        attributes.copy_from_slice(&self.attributes);
    }
}

impl NetlinkDeserializable for GenericMessage {
    type Error = DecodeError;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        let (generic, attributes) =
            payload.split_first_chunk().ok_or_else(|| DecodeError::from("no header of generic netlink"))?;
        Ok(Self { family: header.message_type, header: *generic, attributes: attributes.to_vec() })
    }
}
