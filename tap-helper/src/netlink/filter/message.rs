use rtnetlink::{
    packet_core::Nla as _,
    packet_route::tc::{
        TcAction, TcActionAttribute, TcActionMirror, TcActionMirrorOption, TcActionOption, TcActionType, TcAttribute,
        TcBpfFlags, TcFilterBpf, TcFilterBpfOption, TcHandle, TcMessage, TcMirror, TcMirrorActionType, TcOption,
        TcStats2,
    },
};

use super::{Counters, Filter, FilterId, FilterTarget, Hook, Mirror};
use crate::netlink::{
    nla::{TCA_BPF_ACT, TCA_BPF_OPS, actions, classic_program, first_action, value},
    qdisc::{kind, tc_message},
};

/// `ETH_P_ALL`.
pub(super) const ETH_P_ALL: u16 = 0x0003;
/// `TCA_STATS_PKT64` (`include/uapi/linux/gen_stats.h`).
const TCA_STATS_PKT64: u16 = 8;

/// Mirrors a frame. `TC_ACT_UNSPEC`, which `tc` calls "continue": classification continues with the next filter.
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

/// `TC_ACT_SHOT`, for a program whose result is the verdict.
const DROP: u32 = 2;
/// The name that `tc` prints for filters with programs of ours.
pub(super) const PROGRAM_NAME: &str = "podtap";

impl Hook {
    pub(super) fn parent(self) -> TcHandle {
        let minor = match self {
            Self::Ingress => TcHandle::MIN_INGRESS,
            Self::Egress => TcHandle::MIN_EGRESS,
        };
        TcHandle { minor, ..TcHandle::CLSACT }
    }
}

pub(super) fn redirect_program_message(
    target: FilterTarget,
    program: Vec<TcOption>,
    to: u32,
    cookie: &[u8],
) -> TcMessage {
    with_action(target, program, mirred(REDIRECT, to, cookie))
}

pub(super) fn drop_message(target: FilterTarget) -> TcMessage {
    let [length, program] = classic_program([result(DROP)]);
    bpf_message(target, vec![length, program, direct_action()])
}

pub(super) fn mirror_program_message(
    target: FilterTarget,
    program: Vec<TcOption>,
    to: u32,
    cookie: &[u8],
) -> TcMessage {
    with_action(target, program, mirred(MIRROR, to, cookie))
}

fn with_action(target: FilterTarget, program: Vec<TcOption>, action: TcAction) -> TcMessage {
    let mut options = program;
    options.insert(0, actions(&[action]));
    bpf_message(target, options)
}

pub(super) fn verdict_program_message(target: FilterTarget, program: Vec<TcOption>) -> TcMessage {
    let mut options = program;
    options.push(direct_action());
    bpf_message(target, options)
}

/// A program, its name, and the class ID that it gets. Class ID 0 is what no attribute means.
pub(super) fn loaded(program: i32, classid: u32, name: &str) -> Vec<TcOption> {
    let descriptor = TcFilterBpfOption::ProgFd(program.cast_unsigned());
    let classid = (classid != 0).then(|| TcFilterBpfOption::ClassId(classid.into()));
    let name = TcFilterBpfOption::ProgName(name.to_owned());
    classid.into_iter().chain([descriptor, name]).map(TcOption::Bpf).collect()
}

/// The result of the program is the verdict.
fn direct_action() -> TcOption {
    TcOption::Bpf(TcFilterBpfOption::Flags(TcBpfFlags::DirectAction))
}

/// A filter of `cls_bpf`, which with a classic program needs no right to load eBPF.
pub(super) fn bpf_message(target: FilterTarget, options: Vec<TcOption>) -> TcMessage {
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

pub(super) fn remove_message(id: &FilterId) -> TcMessage {
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

pub(super) fn read(message: &TcMessage, interface: u32, hook: Hook) -> Option<Filter> {
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
    let (mut program, mut classid, mut mirror, mut drops, mut direct) = (None, 0, None, false, false);
    for option in options {
        match option {
            TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => program = Some(*id),
            TcOption::Bpf(TcFilterBpfOption::ClassId(id)) => classid = (*id).into(),
            TcOption::Bpf(TcFilterBpfOption::Flags(flags)) => direct = flags.contains(TcBpfFlags::DirectAction),
            TcOption::Bpf(TcFilterBpfOption::Other(other)) => match other.kind() {
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
        classid,
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
            TcStats2::Other(other) if other.kind() == TCA_STATS_PKT64 => {
                packets = value(other).try_into().ok().map(u64::from_ne_bytes);
            }
            _ => {}
        }
    }
    counters.packets = packets.unwrap_or(counters.packets);
    counters
}
