//! From the spec of a `NodeTap`, as JSON, to the desired state with its references resolved.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use ipnet::IpNet;
use serde::{Deserialize as _, de::DeserializeOwned};
use serde_json::Value;

use crate::{
    bounds::{DEFAULT_ORPHAN_TIMEOUT_SECONDS, MAX_SOURCES, ORPHAN_TIMEOUT_SECONDS, UNDERLAY_MTU},
    desired::{DesiredSender, DesiredState},
    ether_type::EtherType,
    identity::Uid,
    node_state::{NodeState, Receiver, Sender, Tap},
    node_status::{ReceiverStatus, SenderStatus, State},
    program::{Program, ProgramError, ProgramId, check_program},
    protocol::DesiredUpdate,
    reason::Reason,
};

/// The spec is not one of a `NodeTap`. Without this error it would count as empty, which asks to remove everything.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// It is not an object.
    #[error("the spec of a NodeTap is a JSON object")]
    NotAnObject,
    /// A field has another type.
    #[error("spec.{0} of a NodeTap is a list")]
    NotAList(&'static str),
}

/// Why a part of the spec cannot be read.
#[derive(Debug, thiserror::Error)]
enum ReadError {
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    #[error("the compiled expression cannot run: {0}")]
    Program(#[from] ProgramError),
    #[error("spec.{field} has {key} twice")]
    Duplicate { field: &'static str, key: String },
    #[error("unknown field `{0}` in spec")]
    UnknownField(String),
    #[error("underlayMTU must be between {min} and {max}, not {0}", min = UNDERLAY_MTU.start(), max = UNDERLAY_MTU.end())]
    UnderlayMtu(u32),
    #[error("orphanTimeoutSeconds must be at most {max}, not {0}", max = ORPHAN_TIMEOUT_SECONDS.end())]
    OrphanTimeout(u32),
    #[error("spec.sources has more than {MAX_SOURCES} networks: {0}")]
    TooManySources(usize),
}

/// Why a sender or receiver is refused, as its status says it.
#[derive(Clone, Debug, thiserror::Error)]
enum Refusal {
    #[error(
        "This version of the helper cannot read the entry ({0}). If the controller is newer, the helper pod is about to be replaced."
    )]
    Unreadable(Arc<ReadError>),
    #[error("The entry refers to the tap {0}, which is not in spec.taps.")]
    NoTap(Uid),
    #[error("The tap refers to the program {0}, which is not in spec.programs.")]
    NoProgram(ProgramId),
    #[error("The filter has an expression, but no compiled program.")]
    NotCompiled,
    #[error("There is a compiled program, but no expression.")]
    NoExpression,
}

impl NodeState {
    /// Decodes each entry by itself, so that one that this version cannot read does not stop the others. It is refused with a
    /// status, like entries that refer to an unreadable tap or program.
    pub fn decode(spec: &Value) -> Result<DesiredState, DecodeError> {
        if !spec.is_object() {
            return Err(DecodeError::NotAnObject);
        }
        let is_list = |field: &&str| spec.get(*field).is_none_or(Value::is_array);
        if let Some(field) = ["taps", "senders", "receivers", "programs"].into_iter().find(|field| !is_list(field)) {
            return Err(DecodeError::NotAList(field));
        }
        let node = NodeFields::read(spec);
        let mut state = DesiredState::default();
        for entry in list(spec, "senders") {
            match node.sender(entry) {
                Ok(sender) => state.senders.push(sender),
                Err(refusal) => state.refused_senders.push(SenderStatus {
                    tap_uid: text(entry, "/tap"),
                    pod_uid: text(entry, "/pod/uid"),
                    interface: None,
                    addresses: Vec::new(),
                    state: State::Refused,
                    reason: Reason::InvalidSpec,
                    message: refusal.to_string(),
                    degraded: Vec::new(),
                }),
            }
        }
        let sources = sources(spec);
        state.sources = sources.as_ref().cloned().unwrap_or_default();
        let probe_ether_type = read::<Option<EtherType>>(&spec["probeEtherType"]).map(Option::unwrap_or_default);
        state.probe_ether_type = probe_ether_type.as_ref().copied().unwrap_or_default();
        for entry in list(spec, "receivers") {
            // Without the sources, they would accept nothing; without the EtherType, take probes for frames of pods.
            let common = sources.as_ref().map(drop).and(probe_ether_type.as_ref().map(drop));
            let receiver = common.map_err(Clone::clone).and_then(|()| read::<Receiver>(entry));
            match receiver {
                Ok(receiver) => state.receivers.push(receiver),
                Err(refusal) => state.refused_receivers.push(ReceiverStatus {
                    tap_uid: text(entry, "/tap/uid"),
                    vni: entry["vni"].as_u64().and_then(|vni| vni.try_into().ok()).unwrap_or_default(),
                    state: State::Refused,
                    reason: Reason::InvalidSpec,
                    message: refusal.to_string(),
                    pods_with_probes: Vec::new(),
                    pods_without_full_size_probes: Vec::new(),
                }),
            }
        }
        Ok(state)
    }
}

impl DesiredUpdate {
    /// Decodes the spec, see [`NodeState::decode`].
    pub fn decode(&self) -> Result<DesiredState, DecodeError> {
        let state = NodeState::decode(&self.spec)?;
        Ok(DesiredState { uid: self.uid.clone(), generation: self.generation, now: self.now, ..state })
    }
}

/// What entries refer to, and what applies to all of them.
struct NodeFields {
    taps: BTreeMap<String, Shared<Tap>>,
    programs: BTreeMap<String, Shared<Program>>,
    common: Shared<CommonFields>,
}

/// What all senders of the node have in common.
struct CommonFields {
    underlay_mtu: Option<u32>,
    orphan_timeout: Duration,
    probe_ether_type: EtherType,
}

/// What several senders refer to, or why it cannot be read.
type Shared<T> = Result<Arc<T>, Arc<ReadError>>;

impl NodeFields {
    fn read(spec: &Value) -> Self {
        Self {
            taps: shared(spec, "taps", "uid", |_: &Tap| Ok(())),
            programs: shared(spec, "programs", "id", |program: &Program| Ok(check_program(&program.instructions)?)),
            common: CommonFields::read(spec).map(Arc::new).map_err(Arc::new),
        }
    }

    fn sender(&self, entry: &Value) -> Result<DesiredSender, Refusal> {
        let Sender { tap, pod, details } = read(entry)?;
        let tap = self.tap(tap)?;
        let program = match (&tap.program, tap.options.expression()) {
            (None, None) => None,
            (Some(id), Some(_)) => Some(self.program(id)?),
            (None, Some(_)) => return Err(Refusal::NotCompiled),
            (Some(_), None) => return Err(Refusal::NoExpression),
        };
        let common = self.common.clone().map_err(Refusal::Unreadable)?;
        let CommonFields { underlay_mtu, orphan_timeout, probe_ether_type } = *common;
        let details = Box::new(details.unwrap_or_default());
        Ok(DesiredSender { tap, pod, details, program, underlay_mtu, orphan_timeout, probe_ether_type })
    }

    fn tap(&self, uid: Uid) -> Result<Arc<Tap>, Refusal> {
        match self.taps.get(&*uid) {
            Some(tap) => tap.clone().map_err(Refusal::Unreadable),
            None => Err(Refusal::NoTap(uid)),
        }
    }

    fn program(&self, id: &ProgramId) -> Result<Arc<Program>, Refusal> {
        match self.programs.get(&id.to_string()) {
            Some(program) => program.clone().map_err(Refusal::Unreadable),
            None => Err(Refusal::NoProgram(id.clone())),
        }
    }
}

/// Entries that others refer to, by their key. Two entries of one key are an error, since a reference to them is ambiguous.
fn shared<T: DeserializeOwned>(
    spec: &Value,
    field: &'static str,
    key: &str,
    check: impl Fn(&T) -> Result<(), ReadError>,
) -> BTreeMap<String, Shared<T>> {
    let mut entries = BTreeMap::new();
    for entry in list(spec, field) {
        let value = T::deserialize(entry).map_err(ReadError::from);
        let value = value.and_then(|value| check(&value).map(|()| value)).map(Arc::new).map_err(Arc::new);
        let key = entry[key].as_str().unwrap_or_default().to_owned();
        let duplicate = ReadError::Duplicate { field, key: key.clone() };
        entries.entry(key).and_modify(|known| *known = Err(Arc::new(duplicate))).or_insert(value);
    }
    entries
}

impl CommonFields {
    /// An error also for fields of the node that this version does not know: they could restrict what is mirrored.
    fn read(spec: &Value) -> Result<Self, ReadError> {
        const KNOWN: [&str; 9] = [
            "taps",
            "senders",
            "receivers",
            "sources",
            "programs",
            "underlayMTU",
            "orphanTimeoutSeconds",
            "probeEtherType",
            "checkedAddresses",
        ];
        let mut fields = spec.as_object().into_iter().flat_map(serde_json::Map::keys);
        if let Some(unknown) = fields.find(|field| !KNOWN.contains(&field.as_str())) {
            return Err(ReadError::UnknownField(unknown.clone()));
        }
        let underlay_mtu = Option::<u32>::deserialize(&spec["underlayMTU"])?;
        if let Some(mtu) = underlay_mtu.filter(|mtu| !UNDERLAY_MTU.contains(mtu)) {
            return Err(ReadError::UnderlayMtu(mtu));
        }
        let orphan_timeout = Option::<u32>::deserialize(&spec["orphanTimeoutSeconds"])?;
        let orphan_timeout = orphan_timeout.unwrap_or(DEFAULT_ORPHAN_TIMEOUT_SECONDS);
        // A shorter one than the API allows ends a mirror earlier; a longer one would let it run on without control.
        if orphan_timeout > *ORPHAN_TIMEOUT_SECONDS.end() {
            return Err(ReadError::OrphanTimeout(orphan_timeout));
        }
        let probe_ether_type = Option::<EtherType>::deserialize(&spec["probeEtherType"])?.unwrap_or_default();
        Ok(Self { underlay_mtu, orphan_timeout: Duration::from_secs(orphan_timeout.into()), probe_ether_type })
    }
}

/// From where receivers accept frames.
fn sources(spec: &Value) -> Result<Vec<IpNet>, Refusal> {
    let sources = read::<Vec<IpNet>>(spec.get("sources").unwrap_or(&Value::Array(Vec::new())))?;
    if sources.len() > MAX_SOURCES {
        return Err(Refusal::Unreadable(Arc::new(ReadError::TooManySources(sources.len()))));
    }
    Ok(sources)
}

fn read<T: DeserializeOwned>(entry: &Value) -> Result<T, Refusal> {
    T::deserialize(entry).map_err(|error| Refusal::Unreadable(Arc::new(error.into())))
}

fn list<'a>(spec: &'a Value, field: &str) -> impl Iterator<Item = &'a Value> {
    spec[field].as_array().into_iter().flatten()
}

fn text(entry: &Value, pointer: &str) -> String {
    entry.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests;
