//! Probes: frames that take the path of mirrored frames, and that the [program](super::Receive) of the receiver counts and drops.
//!
//! The kernel redirects a probe to the sender device within `BPF_PROG_TEST_RUN` of the program `podtap_probe`, so the helper needs no
//! socket in the pod's namespace, and no process of the pod can send one.

use std::{
    fmt,
    os::fd::OwnedFd,
    time::{SystemTime, UNIX_EPOCH},
};

use nix::errno::Errno;
use podtap_model::{EtherType, metadata::NEAREST_BRIDGE};

use super::{
    BpfError, Counters, Maps, SetCounters,
    constants::{ETHERNET_HEADER, FULL_SIZE, PROBE_VERSION, SMALL, UID_SIZE},
    object::{Object, PROBE},
    syscall,
};
use crate::netlink::Mac;

/// Offsets in `struct __sk_buff` (include/uapi/linux/bpf.h).
const IFINDEX: usize = 40;
const CB: usize = 48;
/// Up to the third field of `cb`.
const CONTEXT: usize = CB + 12;
/// The length of a frame without padding.
const SMALL_LENGTH: u32 = ETHERNET_HEADER + 8 + 4 * 8 + 2 * UID_SIZE;
/// `TC_ACT_OK`.
const SENT: u32 = 0;

/// A probe.
#[derive(Clone, Copy, Debug)]
pub struct Probe<'a> {
    /// UID of the tap.
    pub tap: &'a str,
    /// UID of the pod.
    pub pod: &'a str,
    /// The address of the tapped interface.
    pub source: Mac,
    /// EtherType of the frame.
    pub ether_type: EtherType,
    /// The length that the frame is padded to; none for a small one.
    pub full_size: Option<u32>,
    /// Counts the probes of the sender, from 0.
    pub sequence: u64,
    /// Frames and bytes that the sender has sent.
    pub sent: super::Count,
}

impl Probe<'_> {
    /// The frame, without padding: an Ethernet header and a `struct probe` (bpf/probe.h).
    fn frame(&self) -> Vec<u8> {
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let time = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let kind = if self.full_size.is_some() { FULL_SIZE } else { SMALL };
        let mut frame = [&NEAREST_BRIDGE[..], &self.source, &self.ether_type.get().to_be_bytes()].concat();
        let length = self.full_size.unwrap_or(SMALL_LENGTH);
        frame.extend([PROBE_VERSION, kind].map(|number| number.to_le_bytes()[0]));
        frame.extend(u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes());
        frame.extend([0; 4]);
        for number in [self.sequence, time, self.sent.frames, self.sent.bytes] {
            frame.extend(number.to_be_bytes());
        }
        frame.extend([self.tap, self.pod].map(uid).concat());
        frame
    }
}

/// A UID as text, padded with zeroes.
pub(super) fn uid(text: &str) -> [u8; UID_SIZE as usize] {
    let mut bytes = [0; UID_SIZE as usize];
    for (to, from) in bytes.iter_mut().zip(text.bytes()) {
        *to = from;
    }
    bytes
}

/// The program that sends the probes of up to [`SENDERS`](super::SENDERS) senders, those of a set. Holds two descriptors.
pub struct Prober {
    program: OwnedFd,
    counters: SetCounters,
}

impl fmt::Debug for Prober {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Prober").finish_non_exhaustive()
    }
}

impl Prober {
    /// Loads it for the set of a classifier with this program ID.
    pub fn load(classifier: u32) -> Result<Self, BpfError> {
        let maps = Maps::adopt(classifier)?;
        let mut object = Object::parse(PROBE)?;
        let shared = object.maps(maps.by_name()?)?;
        object.link(&shared)?;
        Ok(Self { program: object.load("podtap_probe")?, counters: maps.into_counters() })
    }

    /// [`SetCounters::sender`].
    pub fn counters(&self, classid: u32) -> Result<Counters, BpfError> {
        self.counters.sender(classid)
    }

    /// Sends a probe of the sender with a class ID through its device, in the network namespace of the calling thread. Returns whether
    /// the device took it, which is not so once the sender's deadline has passed.
    pub fn send(&self, probe: &Probe<'_>, classid: u32, device: u32) -> Result<bool, BpfError> {
        self.run(&probe.frame(), [(CB, classid), (CB + 4, probe.full_size.unwrap_or_default())], device)
    }

    /// The same with a frame of metadata, which no counter counts.
    pub fn send_metadata(&self, frame: &[u8], classid: u32, device: u32) -> Result<bool, BpfError> {
        self.run(frame, [(CB, classid), (CB + 8, 1)], device)
    }

    fn run(&self, frame: &[u8], fields: [(usize, u32); 2], device: u32) -> Result<bool, BpfError> {
        let mut context = [0; CONTEXT];
        for (offset, value) in fields.into_iter().chain([(IFINDEX, device)]) {
            context[offset..offset + 4].copy_from_slice(&value.to_ne_bytes());
        }
        match syscall::run(&self.program, frame, &context) {
            Ok(verdict) => Ok(verdict == SENT),
            // The device was deleted.
            Err(Errno::ENODEV) => Ok(false),
            Err(errno) => Err(BpfError::kernel("send a probe", errno)),
        }
    }
}

#[cfg(test)]
mod tests {
    use podtap_model::metadata::{Metadata, MetadataFrame, PodMetadata};

    use super::{super::constants::METADATA_VERSION, *};

    /// The programs of taps and receivers read the same header.
    #[test]
    fn metadata_comes_after_the_header_of_probes() {
        let uid: podtap_model::Uid = "5f0d6c1e-0000-4000-8000-000000000001".parse().expect("a UID");
        let pod = PodMetadata {
            namespace: "shop".into(),
            name: "web".into(),
            addresses: [].into(),
            mac: "02:00:00:00:00:01".into(),
            ..PodMetadata::default()
        };
        let frame = MetadataFrame { tap: uid.clone(), pod: uid.clone(), metadata: Metadata::Pod(pod) };
        let frame = frame.encode([2, 0, 0, 0, 0, 1], EtherType::default().get()).expect("it is not too long");
        assert_eq!(u32::from(frame[14]), METADATA_VERSION);
        assert_eq!(frame[54..118], super::uid(&uid), "the tap");
        assert_eq!(frame[SMALL_LENGTH as usize], b'{');
    }

    #[test]
    fn a_frame_has_the_length_that_it_says() {
        let probe = Probe {
            tap: "5f0d6c1e-0000-4000-8000-000000000001",
            pod: &"p".repeat(64),
            source: [2, 0, 0, 0, 0, 1],
            ether_type: EtherType::default(),
            full_size: None,
            sequence: 1,
            sent: super::super::Count::default(),
        };
        let frame = probe.frame();
        assert_eq!((frame.len(), &frame[16..18]), (182, &182_u16.to_be_bytes()[..]));
        assert_eq!(
            (&frame[..6], &frame[6..12], &frame[12..14]),
            (&NEAREST_BRIDGE[..], &probe.source[..], &[0x88, 0xb5][..])
        );
        // The kernel pads it.
        let full_size = Probe { full_size: Some(1464), ..probe };
        assert_eq!((full_size.frame().len(), &full_size.frame()[16..18]), (182, &1464_u16.to_be_bytes()[..]));
    }
}
