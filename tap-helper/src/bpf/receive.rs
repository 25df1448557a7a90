//! The program of a receiver, which keeps the probes from consumers and tells whose probes arrive.

use std::{
    fmt,
    hash::Hasher as _,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray};
use podtap_model::EtherType;

use super::{
    BpfError, Monotonic, ObjectError,
    layout::{PodKey, PodProbes, Receiver},
    object::{MapsByName, Object, RECEIVER, maps_of},
    probe::uid,
};
use crate::names::Hash;

/// What the program of a receiver has to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceiveSettings {
    /// UID of the tap whose frames it receives.
    pub tap: String,
    /// EtherType of probes.
    pub probe_ether_type: EtherType,
    /// Whether consumers get frames with metadata.
    pub metadata: bool,
}

impl ReceiveSettings {
    /// Identifies the program with these settings.
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        let mut hash = Hash::new().text(&self.tap);
        hash.write(&self.probe_ether_type.get().to_be_bytes());
        hash.write(&[self.metadata.into()]);
        hash.write(RECEIVER);
        hash.finish()
    }
}

/// A loaded program of a receiver: a classifier without direct-action for the ingress of its VXLAN device, which matches what is
/// redirected to the interface that consumers read.
#[derive(Debug)]
pub struct Receive {
    program: OwnedFd,
}

impl Receive {
    /// Loads it.
    pub fn load(settings: &ReceiveSettings) -> Result<Self, BpfError> {
        let mut object = Object::parse(RECEIVER)?;
        let maps = object.maps(MapsByName::new())?;
        object.link(&maps)?;
        let mut maps = ReceiveMaps::from_names(maps).ok_or(ObjectError::Maps)?;
        let receiver = Receiver {
            program_hash: settings.fingerprint(),
            ethertype: settings.probe_ether_type.get().to_be().into(),
            metadata: settings.metadata.into(),
            forgotten: 0,
            tap: uid(&settings.tap),
        };
        maps.receiver.set(0, receiver, 0).map_err(|error| BpfError::aya("configure a receiver", &error))?;
        Ok(Self { program: object.load("podtap_receive")? })
    }

    /// The program.
    #[must_use]
    pub fn program(&self) -> BorrowedFd<'_> {
        self.program.as_fd()
    }
}

/// The maps of a receiver's program.
pub struct ReceiveMaps {
    receiver: Array<MapData, Receiver>,
    pod_probes: HashMap<MapData, PodKey, PodProbes>,
    received: PerCpuArray<MapData, u64>,
}

impl fmt::Debug for ReceiveMaps {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("ReceiveMaps").finish_non_exhaustive()
    }
}

/// When probes of a pod arrived last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastProbes {
    /// UID of the pod.
    pub pod: String,
    key: PodKey,
    /// The last one.
    pub last: Monotonic,
    /// The last one of full size, if any.
    pub last_full_size: Option<Monotonic>,
    /// The frames that the receiver should have got from the pod by then.
    pub expected: u64,
}

impl ReceiveMaps {
    /// The maps of a program in the kernel, whichever process loaded it.
    pub fn adopt(program: u32) -> Result<Self, BpfError> {
        Self::from_names(maps_of(program)?).ok_or(BpfError::Foreign(program))
    }

    fn from_names(mut maps: MapsByName) -> Option<Self> {
        let mut take = |name: &str| Map::from_map_data(maps.remove(name)?).ok();
        Some(Self {
            receiver: take("receiver")?.try_into().ok()?,
            pod_probes: take("pod_probes")?.try_into().ok()?,
            received: take("received")?.try_into().ok()?,
        })
    }

    /// The [fingerprint](ReceiveSettings::fingerprint) of the program.
    pub fn fingerprint(&self) -> Result<u64, BpfError> {
        Ok(self.receiver()?.program_hash)
    }

    fn receiver(&self) -> Result<Receiver, BpfError> {
        self.receiver.get(&0, 0).map_err(|error| BpfError::aya("read the settings of a receiver", &error))
    }

    /// The frames that were redirected.
    pub fn received(&self) -> Result<u64, BpfError> {
        let values = self.received.get(&0, 0).map_err(|error| BpfError::aya("count received frames", &error))?;
        Ok(values.iter().sum())
    }

    /// The frames that the receiver should have got from the pods that were [forgotten](Self::forget).
    pub fn forgotten(&self) -> Result<u64, BpfError> {
        Ok(self.receiver()?.forgotten)
    }

    /// The pods whose probes arrived. Forgets what is no pod: anyone who can send to the receiver can send probes.
    pub fn probes(&mut self) -> Result<Vec<LastProbes>, BpfError> {
        let (mut pods, mut invalid) = (Vec::new(), Vec::new());
        for entry in &self.pod_probes {
            let (key, probes) = match entry {
                Ok(entry) => entry,
                // It was removed during the walk.
                Err(MapError::KeyNotFound) => continue,
                Err(error) => return Err(BpfError::aya("read which probes arrived", &error)),
            };
            let moment = |nanoseconds: u64| (nanoseconds != 0).then_some(Monotonic::from_nanoseconds(nanoseconds));
            let (Some(last), Some(pod)) = (moment(probes.last), key.pod()) else {
                invalid.push(key);
                continue;
            };
            pods.push(LastProbes {
                pod,
                key,
                last,
                last_full_size: moment(probes.last_full_size),
                expected: probes.expected(),
            });
        }
        for key in invalid {
            self.remove(&key)?;
        }
        Ok(pods)
    }

    /// Returns whether it was there.
    fn remove(&mut self, key: &PodKey) -> Result<bool, BpfError> {
        match self.pod_probes.remove(key) {
            Ok(()) => Ok(true),
            Err(MapError::KeyNotFound) => Ok(false),
            Err(error) => Err(BpfError::aya("forget a pod", &error)),
        }
    }

    /// Forgets a pod, but not the frames that should have arrived from it.
    pub fn forget(&mut self, pod: &LastProbes) -> Result<(), BpfError> {
        if !self.remove(&pod.key)? {
            return Ok(());
        }
        let mut receiver = self.receiver()?;
        receiver.forgotten += pod.expected;
        self.receiver.set(0, receiver, 0).map_err(|error| BpfError::aya("forget a pod", &error))
    }
}
