use std::os::fd::{AsRawFd as _, BorrowedFd};

use super::{
    error::NetlinkError,
    message::{Attributes, CREATE, EXCLUSIVE, Message, u32_at},
    qdisc::{TC_FIXED, TCA_KIND, TCA_OPTIONS, tc_fixed},
    socket::RouteSocket,
};

/// `RTM_NEWTFILTER` and its neighbours.
pub(super) const RTM_NEWTFILTER: u16 = 44;
pub(super) const RTM_DELTFILTER: u16 = 45;
const RTM_GETTFILTER: u16 = 46;
/// `ETH_P_ALL`.
const ETH_P_ALL: u16 = 0x0003;

// include/uapi/linux/rtnetlink.h and pkt_cls.h
const NLA_F_NESTED: u16 = 1 << 15;
const TCA_CHAIN: u16 = 11;
const TCA_BPF_ACT: u16 = 1;
const TCA_BPF_OPS_LEN: u16 = 4;
const TCA_BPF_OPS: u16 = 5;
const TCA_BPF_FD: u16 = 6;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_FLAGS: u16 = 8;
const TCA_BPF_ID: u16 = 11;
const TCA_BPF_FLAG_ACT_DIRECT: u32 = 1;
const TCA_ACT_KIND: u16 = 1;
const TCA_ACT_OPTIONS: u16 = 2;
const TCA_ACT_STATS: u16 = 4;
const TCA_ACT_COOKIE: u16 = 6;
const TCA_MIRRED_PARMS: u16 = 2;
const TCA_STATS_BASIC: u16 = 1;
const TCA_STATS_QUEUE: u16 = 3;
const TCA_STATS_PKT64: u16 = 8;
/// Copies a frame: `TC_ACT_UNSPEC`, which `tc` calls "continue", so that classification goes on with the next filter, and
/// `TCA_EGRESS_MIRROR` (`include/uapi/linux/tc_act/tc_mirred.h`).
const MIRROR: (u32, u32) = (u32::MAX, 2);
/// Moves a frame: `TC_ACT_STOLEN`, and `TCA_EGRESS_REDIR`.
const REDIRECT: (u32, u32) = (4, 1);

/// The classifier of all filters here. With a classic program it needs no right to load eBPF.
const KIND: &str = "bpf";

/// `BPF_RET | BPF_K`, as `struct sock_filter` with its result: all that the programs here do.
fn program(result: u32) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[..2].copy_from_slice(&6u16.to_ne_bytes());
    bytes[4..].copy_from_slice(&result.to_ne_bytes());
    bytes
}

/// A classifier's match on every frame (`cls_bpf_classify`, `net/sched/cls_bpf.c`: -1 is "the default class").
const MATCH_ALL: u32 = u32::MAX;
/// `TC_ACT_SHOT`, for a program whose result is the verdict.
const DROP: u32 = 2;
/// The priority of a filter that moves what a device receives to another one.
pub const REDIRECT_PRIORITY: u16 = 1;
/// The priority of the filter that drops what a device receives: behind that, and before all others.
pub const DROP_PRIORITY: u16 = 2;
/// The priority of the filter whose program makes copies fit the wire, at a sender device's egress.
pub const FIT_PRIORITY: u16 = 3;
/// What filters with programs of ours are called in what `tc` prints.
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
    /// `TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS)` or `..EGRESS`.
    fn parent(self) -> u32 {
        match self {
            Self::Ingress => 0xffff_fff2,
            Self::Egress => 0xffff_fff3,
        }
    }
}

/// What names a filter to the kernel.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FilterId {
    /// Number of the device.
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

/// A filter as it was observed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// Its name to the kernel.
    pub id: FilterId,
    /// Whether it is the one that drops every frame.
    pub drops_all: bool,
    /// Number of its eBPF program, if it has one.
    pub program: Option<u32>,
    /// Its first action, if that mirrors or redirects.
    pub mirror: Option<Mirror>,
}

/// Where a filter with a program is put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Number of the device.
    pub interface: u32,
    /// Where on it.
    pub hook: Hook,
    /// Priority, lower first.
    pub priority: u16,
    /// The `cls_bpf` filter of this priority whose place it takes, between two frames; 0 for a new one.
    pub handle: u32,
}

/// An action that copies or moves frames to a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    /// Number of the device; 0 when that has gone.
    pub to: u32,
    /// Whether it copies to the device's egress and goes on with the next filter.
    pub as_ours: bool,
    /// Whether it moves to the device's egress.
    pub redirects: bool,
    /// Its cookie, whose meaning only its owner knows.
    pub cookie: Vec<u8>,
    /// What it did so far.
    pub counters: Counters,
}

/// What an action did so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames that came to it, also those that failed; a superframe of the kernel counts as those it stands for.
    pub packets: u64,
    /// Bytes; of frames that enter, without the 14 of the Ethernet header.
    pub bytes: u64,
    /// Copies that could not be made, or that the device did not take; a superframe is one.
    pub failed: u32,
}

/// All classifiers and filters at one hook of a device, also those of other chains and kinds.
pub fn filters(socket: &mut RouteSocket, interface: u32, hook: Hook) -> Result<Vec<Filter>, NetlinkError> {
    let message = Message::new(RTM_GETTFILTER, 0, &tc_fixed(interface, 0, hook.parent(), 0));
    socket.dump(&message, &format!("list filters of device {interface}"), |payload| read(payload, interface, hook))
}

/// Copies every frame at a hook to the device `to`, and lets classification go on.
///
/// The cookie has at most 16 bytes (`TC_COOKIE_MAX_SIZE`). `ENOENT` if the kernel lacks the classifier or `mirred`.
pub fn add_mirror_filter(
    socket: &mut RouteSocket,
    (interface, hook): (u32, Hook),
    priority: u16,
    to: u32,
    cookie: &[u8],
) -> Result<(), NetlinkError> {
    let operation = format!("add a filter with mirred to device {interface}");
    socket.request(mirred_message((interface, hook), priority, (MIRROR, to), cookie), &operation)
}

/// Moves every frame that a device receives to the egress of the device `to`. Cookie and errors as for a mirror.
pub fn add_redirect_filter(
    socket: &mut RouteSocket,
    interface: u32,
    to: u32,
    cookie: &[u8],
) -> Result<(), NetlinkError> {
    let operation = format!("redirect what arrives on device {interface}");
    let at = (interface, Hook::Ingress);
    socket.request(mirred_message(at, REDIRECT_PRIORITY, (REDIRECT, to), cookie), &operation)
}

fn mirred_message((interface, hook): (u32, Hook), priority: u16, to: ((u32, u32), u32), cookie: &[u8]) -> Message {
    let fixed = tc_fixed(interface, 0, hook.parent(), info(priority, ETH_P_ALL));
    let message = Message::new(RTM_NEWTFILTER, CREATE | EXCLUSIVE, &fixed).put_string(TCA_KIND, KIND);
    message.nest(TCA_OPTIONS, |options| {
        options
            .nest(TCA_BPF_ACT, |actions| actions.nest(1, |action| mirred_action(action, to, cookie)))
            .put_u16(TCA_BPF_OPS_LEN, 1)
            .put(TCA_BPF_OPS, &program(MATCH_ALL))
    })
}

fn mirred_action(action: Message, ((control, way), to): ((u32, u32), u32), cookie: &[u8]) -> Message {
    // struct tc_mirred: index, capabilities, action, reference counts, then where and to whom.
    let words = [0, 0, control, 0, 0, way, to];
    let parameters: Vec<u8> = words.iter().flat_map(|word: &u32| word.to_ne_bytes()).collect();
    action
        .put_string(TCA_ACT_KIND, "mirred")
        .nest(TCA_ACT_OPTIONS | NLA_F_NESTED, |options| options.put(TCA_MIRRED_PARMS, &parameters))
        .put(TCA_ACT_COOKIE, cookie)
}

/// Copies the frames for which a program says -1 to the device `to`, and lets classification go on. Cookie as for a mirror.
pub fn put_mirror_program(
    socket: &mut RouteSocket,
    slot: Slot,
    program: BorrowedFd<'_>,
    to: u32,
    cookie: &[u8],
) -> Result<(), NetlinkError> {
    let operation = format!("put a program with mirred on device {}", slot.interface);
    let actions = |options: Message| {
        options.nest(TCA_BPF_ACT, |actions| actions.nest(1, |action| mirred_action(action, (MIRROR, to), cookie)))
    };
    socket.request(program_message(slot, program.as_raw_fd(), PROGRAM_NAME, actions, 0), &operation)
}

/// Lets a program change what passes, and say what becomes of it.
pub fn put_verdict_program(socket: &mut RouteSocket, slot: Slot, program: BorrowedFd<'_>) -> Result<(), NetlinkError> {
    let operation = format!("put a program on device {}", slot.interface);
    let message = program_message(slot, program.as_raw_fd(), PROGRAM_NAME, |options| options, TCA_BPF_FLAG_ACT_DIRECT);
    socket.request(message, &operation)
}

fn program_message(
    slot: Slot,
    program: i32,
    name: &str,
    actions: impl FnOnce(Message) -> Message,
    flags: u32,
) -> Message {
    let fixed = tc_fixed(slot.interface, slot.handle, slot.hook.parent(), info(slot.priority, ETH_P_ALL));
    let exclusive = if slot.handle == 0 { EXCLUSIVE } else { 0 };
    let message = Message::new(RTM_NEWTFILTER, CREATE | exclusive, &fixed);
    message.put_string(TCA_KIND, KIND).nest(TCA_OPTIONS, |options| {
        let options = actions(options).put(TCA_BPF_FD, &program.to_ne_bytes()).put_string(TCA_BPF_NAME, name);
        if flags == 0 { options } else { options.put_u32(TCA_BPF_FLAGS, flags) }
    })
}

/// Drops every frame that a device receives and that is not redirected, before any other filter and before the network stack.
pub fn add_drop_filter(socket: &mut RouteSocket, interface: u32) -> Result<(), NetlinkError> {
    socket.request(drop_message(interface), &format!("drop what arrives on device {interface}"))
}

fn drop_message(interface: u32) -> Message {
    let fixed = tc_fixed(interface, 0, Hook::Ingress.parent(), info(DROP_PRIORITY, ETH_P_ALL));
    Message::new(RTM_NEWTFILTER, CREATE | EXCLUSIVE, &fixed).put_string(TCA_KIND, KIND).nest(TCA_OPTIONS, |options| {
        options
            .put_u16(TCA_BPF_OPS_LEN, 1)
            .put(TCA_BPF_OPS, &program(DROP))
            .put_u32(TCA_BPF_FLAGS, TCA_BPF_FLAG_ACT_DIRECT)
    })
}

/// Removes one filter; others of the same priority stay.
pub fn remove_filter(socket: &mut RouteSocket, id: &FilterId) -> Result<(), NetlinkError> {
    let operation = format!("remove the filter of priority {} from device {}", id.priority, id.interface);
    socket.request(remove_message(id), &operation)
}

fn remove_message(id: &FilterId) -> Message {
    let fixed = tc_fixed(id.interface, id.handle, id.hook.parent(), info(id.priority, id.protocol));
    // Chain 0 is what no attribute means.
    let chain = |message: Message| if id.chain == 0 { message } else { message.put_u32(TCA_CHAIN, id.chain) };
    chain(Message::new(RTM_DELTFILTER, 0, &fixed)).put_string(TCA_KIND, &id.kind)
}

/// `tcm_info`: the priority, and the protocol in network byte order.
fn info(priority: u16, protocol: u16) -> u32 {
    u32::from(priority) << 16 | u32::from(protocol.to_be())
}

fn read(payload: &[u8], interface: u32, hook: Hook) -> Option<Filter> {
    let attributes = Attributes(payload.get(TC_FIXED..)?);
    let [priority, protocol] = {
        let info = u32_at(payload, 16);
        [(info >> 16) as u16, u16::from_be((info & 0xffff) as u16)]
    };
    let kind = attributes.string(TCA_KIND)?;
    let options = attributes.nested(TCA_OPTIONS).filter(|_| kind == KIND);
    let actions = options.and_then(|options| options.nested(TCA_BPF_ACT));
    Some(Filter {
        drops_all: options.is_some_and(drops_all),
        program: options.and_then(|options| options.u32(TCA_BPF_ID)),
        mirror: actions.and_then(|actions| actions.nested(1)).and_then(read_mirror),
        id: FilterId {
            interface,
            hook,
            chain: attributes.u32(TCA_CHAIN).unwrap_or_default(),
            priority,
            protocol,
            kind,
            handle: u32_at(payload, 8),
        },
    })
}

fn drops_all(options: Attributes<'_>) -> bool {
    options.get(TCA_BPF_OPS) == Some(&program(DROP))
        && options.u32(TCA_BPF_FLAGS).is_some_and(|flags| flags & TCA_BPF_FLAG_ACT_DIRECT != 0)
}

fn read_mirror(action: Attributes<'_>) -> Option<Mirror> {
    if action.string(TCA_ACT_KIND)? != "mirred" {
        return None;
    }
    let parameters = action.nested(TCA_ACT_OPTIONS)?.get(TCA_MIRRED_PARMS)?;
    let what = (u32_at(parameters, 8), u32_at(parameters, 20));
    Some(Mirror {
        to: u32_at(parameters, 24),
        as_ours: what == MIRROR,
        redirects: what == REDIRECT,
        cookie: action.get(TCA_ACT_COOKIE).unwrap_or_default().to_vec(),
        counters: action.nested(TCA_ACT_STATS).map(read_counters).unwrap_or_default(),
    })
}

fn read_counters(statistics: Attributes<'_>) -> Counters {
    // struct gnet_stats_basic: bytes (8), packets (4). The packets there wrap; PKT64 is there when they are more bits.
    let basic = statistics.get(TCA_STATS_BASIC).unwrap_or_default();
    let bytes = basic.get(..8).and_then(|value| value.try_into().ok()).map_or(0, u64::from_ne_bytes);
    Counters {
        packets: statistics.u64(TCA_STATS_PKT64).unwrap_or_else(|| u64::from(u32_at(basic, 8))),
        bytes,
        // struct gnet_stats_queue: qlen, backlog, drops, requeues, overlimits. mirred counts a failed copy as overlimit.
        failed: statistics.get(TCA_STATS_QUEUE).map_or(0, |queue| u32_at(queue, 16)),
    }
}

#[cfg(test)]
#[path = "filter_tests.rs"]
mod tests;
