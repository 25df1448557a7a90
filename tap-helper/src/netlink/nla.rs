//! What `netlink-packet-route` lacks, as attributes (NLAs) for its message types: the parts of `cls_bpf` that it does not
//! name, nesting, and the numbers of extended acknowledgements.

use rtnetlink::{
    packet_core::{DefaultNla, Emitable, NLA_F_NESTED, NlaBuffer, NlasIterator, Parseable, ParseableParametrized as _},
    packet_route::tc::{TcAction, TcActionAttribute, TcFilterBpfOption, TcOption},
};

/// `NLMSGERR_ATTR_MSG` (include/uapi/linux/netlink.h).
pub(super) const ACK_TEXT: u16 = 1;

// include/uapi/linux/pkt_cls.h
pub(super) const TCA_BPF_ACT: u16 = 1;
const TCA_BPF_OPS_LEN: u16 = 4;
pub(super) const TCA_BPF_OPS: u16 = 5;

/// The attributes in a message or in another attribute, up to the first malformed one.
pub(super) fn children(bytes: &[u8]) -> impl Iterator<Item = NlaBuffer<&[u8]>> {
    NlasIterator::new(bytes).map_while(Result::ok)
}

/// The first attribute of a kind.
pub(super) fn child(bytes: &[u8], kind: u16) -> Option<NlaBuffer<&[u8]>> {
    children(bytes).find(|attribute| attribute.kind() == kind)
}

/// A string without its terminating zero, whatever its bytes: names and aliases need not be UTF-8.
pub(super) fn text(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

/// The bytes of an attribute that was not recognised.
pub(super) fn value(attribute: &DefaultNla) -> Vec<u8> {
    let bytes = emitted(attribute);
    NlaBuffer::new_checked(bytes.as_slice()).map(|attribute| attribute.value().to_vec()).unwrap_or_default()
}

/// An attribute with a string and its terminating zero.
pub(super) fn string(kind: u16, value: &str) -> DefaultNla {
    DefaultNla::new(kind, [value.as_bytes(), &[0]].concat())
}

/// An attribute with a number.
pub(super) fn number(kind: u16, value: u32) -> DefaultNla {
    DefaultNla::new(kind, value.to_ne_bytes().to_vec())
}

/// An attribute that contains others, flagged as such: generic netlink insists on the flag.
pub(super) fn nested(kind: u16, attributes: &[DefaultNla]) -> DefaultNla {
    DefaultNla::new(kind | NLA_F_NESTED, emitted(&attributes))
}

/// The actions of a `cls_bpf` filter.
pub(super) fn actions(actions: &[TcAction]) -> TcOption {
    classifier(TCA_BPF_ACT, emitted(&actions))
}

/// A classic program as the classifier of a `cls_bpf` filter: instructions of `struct sock_filter`, 8 bytes each.
pub(super) fn classic_program<const N: usize>(instructions: [[u8; 8]; N]) -> [TcOption; 2] {
    let count = u16::try_from(N).unwrap_or(u16::MAX).to_ne_bytes().to_vec();
    [classifier(TCA_BPF_OPS_LEN, count), classifier(TCA_BPF_OPS, instructions.concat())]
}

fn classifier(kind: u16, value: Vec<u8>) -> TcOption {
    TcOption::Bpf(TcFilterBpfOption::Other(DefaultNla::new(kind, value)))
}

/// The attributes of the first action of a list, as far as they can be read.
pub(super) fn first_action(list: &[u8]) -> Vec<TcActionAttribute> {
    let Some(action) = child(list, TcAction::default().tab) else { return Vec::new() };
    let mut kind = String::new();
    let mut found = Vec::new();
    for attribute in children(action.value()) {
        let Ok(attribute) = TcActionAttribute::parse_with_param(&attribute, kind.as_str()) else { continue };
        if let TcActionAttribute::Kind(name) = &attribute {
            kind.clone_from(name);
        }
        found.push(attribute);
    }
    found
}

fn emitted(attributes: &impl Emitable) -> Vec<u8> {
    let mut bytes = vec![0; attributes.buffer_len()];
    attributes.emit(&mut bytes);
    bytes
}

/// Reads every attribute that can be read.
pub(super) fn readable<'a, T: Parseable<NlaBuffer<&'a [u8]>>>(bytes: &'a [u8]) -> Vec<T> {
    children(bytes).filter_map(|attribute| T::parse(&attribute).ok()).collect()
}
