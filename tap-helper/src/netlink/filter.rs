use std::os::fd::{AsRawFd as _, BorrowedFd};

use rtnetlink::{
    packet_core::{NLM_F_CREATE, NLM_F_EXCL},
    packet_route::{
        RouteNetlinkMessage,
        tc::{
            TcAction, TcActionAttribute, TcActionMirror, TcActionMirrorOption, TcActionOption, TcActionType,
            TcAttribute, TcBpfFlags, TcFilterBpf, TcFilterBpfOption, TcHandle, TcMessage, TcMirror, TcMirrorActionType,
            TcOption, TcStats2,
        },
    },
};

use super::{
    connection::Connection,
    error::NetlinkError,
    nla::{TCA_BPF_ACT, TCA_BPF_OPS, actions, classic_program, first_action, value},
    qdisc::{kind, tc_message},
};

/// `ETH_P_ALL`.
const ETH_P_ALL: u16 = 0x0003;
/// `TCA_STATS_PKT64` (include/uapi/linux/gen_stats.h).
const TCA_STATS_PKT64: u16 = 8;

/// Mirrors a frame. `TC_ACT_UNSPEC`, which `tc` calls "continue": classification goes on with the next filter.
const MIRROR: (TcActionType, TcMirrorActionType) = (TcActionType::Unspec, TcMirrorActionType::EgressMirror);
/// Redirects a frame.
const REDIRECT: (TcActionType, TcMirrorActionType) = (TcActionType::Stolen, TcMirrorActionType::EgressRedir);

/// `BPF_RET | BPF_K`, as `struct sock_filter` with its result: the only instruction of the classic programs here.
fn result(result: u32) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[..2].copy_from_slice(&6u16.to_ne_bytes());
    bytes[4..].copy_from_slice(&result.to_ne_bytes());
    bytes
}

/// A classifier's match on every frame (`cls_bpf_classify`, `net/sched/cls_bpf.c`: -1 is "the default class").
const MATCH_ALL: u32 = u32::MAX;
/// `TC_ACT_SHOT`, for a program whose result is the verdict.
const DROP: u32 = 2;
/// The priority of a filter that redirects what a device receives to another one.
pub const REDIRECT_PRIORITY: u16 = 1;
/// The priority of the filter that drops what a device receives: behind the redirect, before all others.
pub const DROP_PRIORITY: u16 = 2;
/// The priority of the filter at a sender device's egress whose program clamps mirrored frames to the MTU.
pub const FIT_PRIORITY: u16 = 3;
/// The name that `tc` prints for filters with programs of ours.
const PROGRAM_NAME: &str = "podtap";

/// Where on a device frames are classified.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hook {
    /// Frames that the device received: those that enter the pod.
    Ingress,
    /// Frames that the device is about to send: those that leave the pod.
    Egress,
}

impl Hook {
    fn parent(self) -> TcHandle {
        let minor = match self {
            Self::Ingress => TcHandle::MIN_INGRESS,
            Self::Egress => TcHandle::MIN_EGRESS,
        };
        TcHandle { minor, ..TcHandle::CLSACT }
    }
}

/// What identifies a filter to the kernel.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FilterId {
    /// The device's ifindex.
    pub interface: u32,
    /// Where on it.
    pub hook: Hook,
    /// Chain; ours are all in chain 0.
    pub chain: u32,
    /// Priority, lower first.
    pub priority: u16,
    /// `ETH_P_` number, in the machine's byte order.
    pub protocol: u16,
    /// Kind of the classifier.
    pub kind: String,
    /// The classifier's own number; 0 for the classifier itself, which may hold no filter at all.
    pub handle: u32,
}

/// A filter as observed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// Its identity.
    pub id: FilterId,
    /// Whether it is the one that drops every frame.
    pub drops_all: bool,
    /// ID of its eBPF program, if it has one.
    pub program: Option<u32>,
    /// Its first action, if that mirrors or redirects.
    pub mirror: Option<Mirror>,
}

/// Where a filter with a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FilterTarget {
    /// The device's ifindex.
    pub interface: u32,
    /// Where on it.
    pub hook: Hook,
    /// Priority, lower first.
    pub priority: u16,
    /// The `cls_bpf` filter of this priority that it replaces, between two frames; 0 for a new one.
    pub handle: u32,
}

/// An action that mirrors or redirects frames to a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    /// The device's ifindex; 0 when the device was deleted.
    pub to: u32,
    /// Whether it mirrors to the device's egress and continues with the next filter.
    pub as_ours: bool,
    /// Whether it redirects to the device's egress.
    pub redirects: bool,
    /// Its cookie, whose meaning only its owner knows.
    pub cookie: Vec<u8>,
    /// What it counted so far.
    pub counters: Counters,
}

/// What an action counted so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames that reached it, including those that failed; a GSO packet counts as its segments.
    pub packets: u64,
    /// Bytes; of frames that enter, without the 14 of the Ethernet header.
    pub bytes: u64,
    /// Frames that could not be mirrored, or that the device did not take; a GSO packet counts once.
    pub failed: u32,
}

/// All classifiers and filters at one hook of a device, including those of other chains and kinds.
pub async fn filters(netlink: &Connection, interface: u32, hook: Hook) -> Result<Vec<Filter>, NetlinkError> {
    let query = RouteNetlinkMessage::GetTrafficFilter(tc_message(interface, hook.parent()));
    let read = |message| match message {
        RouteNetlinkMessage::NewTrafficFilter(message) => read(&message, interface, hook),
        _ => None,
    };
    netlink.dump(query, &format!("list filters of device {interface}"), read).await
}

/// Mirrors every frame at a hook to the device `to`, and lets classification continue.
///
/// The cookie has at most 16 bytes (`TC_COOKIE_MAX_SIZE`). `ENOENT` if the kernel lacks the classifier or `mirred`.
pub async fn add_mirror_filter(
    netlink: &Connection,
    (interface, hook): (u32, Hook),
    priority: u16,
    to: u32,
    cookie: &[u8],
) -> Result<(), NetlinkError> {
    let operation = format!("add a filter with mirred to device {interface}");
    let target = FilterTarget { interface, hook, priority, handle: 0 };
    add(netlink, target, mirred_message(target, MIRROR, to, cookie), &operation).await
}

/// Redirects every frame that a device receives to the egress of the device `to`. Cookie and errors as for a mirror.
pub async fn add_redirect_filter(
    netlink: &Connection,
    interface: u32,
    to: u32,
    cookie: &[u8],
) -> Result<(), NetlinkError> {
    let operation = format!("redirect what arrives on device {interface}");
    let target = FilterTarget { interface, hook: Hook::Ingress, priority: REDIRECT_PRIORITY, handle: 0 };
    add(netlink, target, mirred_message(target, REDIRECT, to, cookie), &operation).await
}

/// Mirrors the frames for which a program returns -1 to the device `to`, and lets classification continue. Cookie as for a mirror.
pub async fn attach_mirror_program(
    netlink: &Connection,
    target: FilterTarget,
    program: BorrowedFd<'_>,
    to: u32,
    cookie: &[u8],
) -> Result<(), NetlinkError> {
    let operation = format!("attach a program with mirred to device {}", target.interface);
    let action = Some(actions(&[mirred(MIRROR, to, cookie)]));
    let message = program_message(target, program.as_raw_fd(), PROGRAM_NAME, action, None);
    add(netlink, target, message, &operation).await
}

/// Lets a program change the frames that pass, and decide on them.
pub async fn attach_verdict_program(
    netlink: &Connection,
    target: FilterTarget,
    program: BorrowedFd<'_>,
) -> Result<(), NetlinkError> {
    let operation = format!("attach a program to device {}", target.interface);
    let direct = Some(TcBpfFlags::DirectAction);
    let message = program_message(target, program.as_raw_fd(), PROGRAM_NAME, None, direct);
    add(netlink, target, message, &operation).await
}

/// Drops every frame that a device receives and that is not redirected, before any other filter and before the network stack.
pub async fn add_drop_filter(netlink: &Connection, interface: u32) -> Result<(), NetlinkError> {
    let target = FilterTarget { interface, hook: Hook::Ingress, priority: DROP_PRIORITY, handle: 0 };
    add(netlink, target, drop_message(target), &format!("drop what arrives on device {interface}")).await
}

/// Creates a filter, or replaces the one with the target's handle.
async fn add(
    netlink: &Connection,
    target: FilterTarget,
    message: TcMessage,
    operation: &str,
) -> Result<(), NetlinkError> {
    let exclusive = if target.handle == 0 { NLM_F_EXCL } else { 0 };
    netlink.execute(RouteNetlinkMessage::NewTrafficFilter(message), NLM_F_CREATE | exclusive, operation).await
}

/// Removes one filter; others of the same priority stay.
pub async fn remove_filter(netlink: &Connection, id: &FilterId) -> Result<(), NetlinkError> {
    let operation = format!("remove the filter of priority {} from device {}", id.priority, id.interface);
    netlink.execute(RouteNetlinkMessage::DelTrafficFilter(remove_message(id)), 0, &operation).await
}

fn mirred_message(target: FilterTarget, how: (TcActionType, TcMirrorActionType), to: u32, cookie: &[u8]) -> TcMessage {
    let [length, program] = classic_program([result(MATCH_ALL)]);
    bpf_message(target, vec![actions(&[mirred(how, to, cookie)]), length, program])
}

fn drop_message(target: FilterTarget) -> TcMessage {
    let [length, program] = classic_program([result(DROP)]);
    let direct = TcOption::Bpf(TcFilterBpfOption::Flags(TcBpfFlags::DirectAction));
    bpf_message(target, vec![length, program, direct])
}

fn program_message(
    target: FilterTarget,
    program: i32,
    name: &str,
    actions: Option<TcOption>,
    flags: Option<TcBpfFlags>,
) -> TcMessage {
    let program = [TcFilterBpfOption::ProgFd(program.cast_unsigned()), TcFilterBpfOption::ProgName(name.to_owned())];
    let program = program.into_iter().chain(flags.map(TcFilterBpfOption::Flags)).map(TcOption::Bpf);
    bpf_message(target, actions.into_iter().chain(program).collect())
}

/// A filter of `cls_bpf`, which with a classic program needs no right to load eBPF.
fn bpf_message(target: FilterTarget, options: Vec<TcOption>) -> TcMessage {
    let mut message = tc_message(target.interface, target.hook.parent());
    message.header.handle = target.handle.into();
    message.header.info = info(target.priority, ETH_P_ALL);
    message.attributes = vec![TcAttribute::Kind(TcFilterBpf::KIND.to_owned()), TcAttribute::Options(options)];
    message
}

fn mirred((control, how): (TcActionType, TcMirrorActionType), to: u32, cookie: &[u8]) -> TcAction {
    let mut parameters = TcMirror::default();
    parameters.generic.action = control;
    (parameters.eaction, parameters.ifindex) = (how, to);
    let mut action = TcAction::default();
    action.attributes = vec![
        TcActionAttribute::Kind(TcActionMirror::KIND.to_owned()),
        TcActionAttribute::Options(vec![TcActionOption::Mirror(TcActionMirrorOption::Parms(parameters))]),
        TcActionAttribute::Cookie(cookie.to_vec()),
    ];
    action
}

fn remove_message(id: &FilterId) -> TcMessage {
    let mut message = tc_message(id.interface, id.hook.parent());
    message.header.handle = id.handle.into();
    message.header.info = info(id.priority, id.protocol);
    // Chain 0 is what no attribute means.
    let chain = (id.chain != 0).then_some(TcAttribute::Chain(id.chain));
    message.attributes = chain.into_iter().chain([TcAttribute::Kind(id.kind.clone())]).collect();
    message
}

/// `tcm_info`: the priority, and the protocol in network byte order.
fn info(priority: u16, protocol: u16) -> u32 {
    u32::from(priority) << 16 | u32::from(protocol.to_be())
}

fn read(message: &TcMessage, interface: u32, hook: Hook) -> Option<Filter> {
    let info = message.header.info;
    let kind = kind(message)?.to_owned();
    let (mut chain, mut options) = (0, [].as_slice());
    for attribute in &message.attributes {
        match attribute {
            TcAttribute::Chain(number) => chain = *number,
            TcAttribute::Options(found) => options = found,
            _ => {}
        }
    }
    let (mut program, mut mirror, mut drops, mut direct) = (None, None, false, false);
    for option in options {
        match option {
            TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => program = Some(*id),
            TcOption::Bpf(TcFilterBpfOption::Flags(flags)) => direct = flags.contains(TcBpfFlags::DirectAction),
            TcOption::Bpf(TcFilterBpfOption::Other(other)) => match rtnetlink::packet_core::Nla::kind(other) {
                TCA_BPF_ACT => mirror = read_mirror(first_action(&value(other))),
                TCA_BPF_OPS => drops = value(other) == result(DROP),
                _ => {}
            },
            _ => {}
        }
    }
    Some(Filter {
        drops_all: drops && direct,
        program,
        mirror,
        id: FilterId {
            interface,
            hook,
            chain,
            priority: (info >> 16) as u16,
            protocol: u16::from_be((info & 0xffff) as u16),
            kind,
            handle: message.header.handle.into(),
        },
    })
}

fn read_mirror(action: Vec<TcActionAttribute>) -> Option<Mirror> {
    let (mut parameters, mut cookie, mut counters) = (None, Vec::new(), Counters::default());
    for attribute in action {
        match attribute {
            TcActionAttribute::Options(options) => {
                parameters = options.into_iter().find_map(|option| match option {
                    TcActionOption::Mirror(TcActionMirrorOption::Parms(parameters)) => Some(parameters),
                    _ => None,
                });
            }
            TcActionAttribute::Cookie(bytes) => cookie = bytes,
            TcActionAttribute::Stats(statistics) => counters = read_counters(&statistics),
            _ => {}
        }
    }
    let parameters = parameters?;
    let how = (parameters.generic.action, parameters.eaction);
    Some(Mirror { to: parameters.ifindex, as_ours: how == MIRROR, redirects: how == REDIRECT, cookie, counters })
}

fn read_counters(statistics: &[TcStats2]) -> Counters {
    let mut counters = Counters::default();
    let mut packets = None;
    for part in statistics {
        match part {
            TcStats2::Basic(basic) => (counters.bytes, counters.packets) = (basic.bytes, basic.packets.into()),
            // mirred counts a failed mirror as overlimit.
            TcStats2::Queue(queue) => counters.failed = queue.overlimits,
            // The 32 bits above wrap; the kernel adds this when there are more.
            TcStats2::Other(other) if rtnetlink::packet_core::Nla::kind(other) == TCA_STATS_PKT64 => {
                packets = value(other).try_into().ok().map(u64::from_ne_bytes);
            }
            _ => {}
        }
    }
    counters.packets = packets.unwrap_or(counters.packets);
    counters
}

#[cfg(test)]
mod tests;
