//! From the spec of a `NodeTap`, as JSON, to the desired state with its references resolved.

use std::{collections::BTreeMap, fmt, sync::Arc};

use serde::{Deserialize as _, de::DeserializeOwned};
use serde_json::Value;

use crate::{
    bounds::UNDERLAY_MTU,
    identity::{Pod, Uid},
    node_state::{NodeState, Receiver, Sender, Tap},
    node_status::{ReceiverStatus, SenderStatus, State},
    program::{Program, ProgramId, check_program},
    protocol::DesiredUpdate,
    reason::Reason,
};

/// The desired state of a node, decoded and with its references resolved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DesiredState {
    /// UID of the `NodeTap` that it comes from; none when there is no such object.
    pub uid: Option<String>,
    /// Generation of the `NodeTap`.
    pub generation: i64,
    /// The senders that this version understands.
    pub senders: Vec<DesiredSender>,
    /// The receivers that this version understands.
    pub receivers: Vec<Receiver>,
    /// A status for each of the other senders.
    pub refused_senders: Vec<SenderStatus>,
    /// A status for each of the other receivers.
    pub refused_receivers: Vec<ReceiverStatus>,
}

/// One pod under one tap, with all that it needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredSender {
    /// The tap, shared by all of its senders.
    pub tap: Arc<Tap>,
    /// The tapped pod.
    pub pod: Pod,
    /// The compiled filter expression, shared by all senders that have it.
    pub program: Option<Arc<Program>>,
    /// Largest IP packet that the network between the nodes carries; the MTU of the route applies if it is smaller.
    pub underlay_mtu: Option<u32>,
}

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

/// What is wrong with an entry.
struct Unreadable(String);

impl Unreadable {
    fn entry(error: &impl fmt::Display) -> Self {
        Self(format!(
            "This version of the helper cannot read the entry ({error}). If the controller is newer, the helper pod is about to be replaced."
        ))
    }
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
                Err(Unreadable(message)) => state.refused_senders.push(SenderStatus {
                    tap_uid: text(entry, "/tap"),
                    pod_uid: text(entry, "/pod/uid"),
                    interface: None,
                    state: State::Refused,
                    reason: Reason::InvalidSpec,
                    message,
                    degraded: Vec::new(),
                }),
            }
        }
        for entry in list(spec, "receivers") {
            match read::<Receiver>(entry) {
                Ok(receiver) => state.receivers.push(receiver),
                Err(Unreadable(message)) => state.refused_receivers.push(ReceiverStatus {
                    tap_uid: text(entry, "/tap/uid"),
                    vni: entry["vni"].as_u64().and_then(|vni| vni.try_into().ok()).unwrap_or_default(),
                    state: State::Refused,
                    reason: Reason::InvalidSpec,
                    message,
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
        Ok(DesiredState { uid: self.uid.clone(), generation: self.generation, ..state })
    }
}

/// What entries refer to, and what applies to all of them.
struct NodeFields {
    taps: BTreeMap<String, Result<Arc<Tap>, String>>,
    programs: BTreeMap<String, Result<Arc<Program>, String>>,
    underlay_mtu: Result<Option<u32>, String>,
}

impl NodeFields {
    fn read(spec: &Value) -> Self {
        Self {
            taps: shared(spec, "taps", "uid", |_: &Tap| Ok(())),
            programs: shared(spec, "programs", "id", |program: &Program| {
                check_program(&program.instructions)
                    .map_err(|error| format!("the compiled expression cannot run: {error}"))
            }),
            underlay_mtu: underlay_mtu(spec),
        }
    }

    fn sender(&self, entry: &Value) -> Result<DesiredSender, Unreadable> {
        let Sender { tap, pod } = read(entry)?;
        let tap = self.tap(&tap)?;
        let program = match (&tap.program, tap.options.expression()) {
            (None, None) => None,
            (Some(id), Some(_)) => Some(self.program(id)?),
            (None, Some(_)) => {
                return Err(Unreadable("The filter has an expression, but no compiled program.".to_owned()));
            }
            (Some(_), None) => return Err(Unreadable("There is a compiled program, but no expression.".to_owned())),
        };
        let underlay_mtu = self.underlay_mtu.clone().map_err(|error| Unreadable::entry(&error))?;
        Ok(DesiredSender { tap, pod, program, underlay_mtu })
    }

    fn tap(&self, uid: &Uid) -> Result<Arc<Tap>, Unreadable> {
        match self.taps.get(&**uid) {
            Some(Ok(tap)) => Ok(Arc::clone(tap)),
            Some(Err(error)) => Err(Unreadable::entry(error)),
            None => Err(Unreadable(format!("The entry refers to the tap {uid}, which is not in spec.taps."))),
        }
    }

    fn program(&self, id: &ProgramId) -> Result<Arc<Program>, Unreadable> {
        match self.programs.get(&id.to_string()) {
            Some(Ok(program)) => Ok(Arc::clone(program)),
            Some(Err(error)) => Err(Unreadable::entry(error)),
            None => Err(Unreadable(format!("The tap refers to the program {id}, which is not in spec.programs."))),
        }
    }
}

/// Entries that others refer to, by their key. Two of one key are an error: nobody could say which is meant.
fn shared<T: DeserializeOwned>(
    spec: &Value,
    field: &str,
    key: &str,
    check: impl Fn(&T) -> Result<(), String>,
) -> BTreeMap<String, Result<Arc<T>, String>> {
    let mut entries = BTreeMap::new();
    for entry in list(spec, field) {
        let value = T::deserialize(entry).map_err(|error| error.to_string());
        let value = value.and_then(|value| check(&value).map(|()| Arc::new(value)));
        let key = entry[key].as_str().unwrap_or_default().to_owned();
        let duplicate = format!("spec.{field} has {key} twice");
        entries.entry(key).and_modify(|known| *known = Err(duplicate)).or_insert(value);
    }
    entries
}

/// The MTU; an error also for fields of the node that this version does not know: they could restrict what is mirrored.
fn underlay_mtu(spec: &Value) -> Result<Option<u32>, String> {
    const KNOWN: [&str; 5] = ["taps", "senders", "receivers", "programs", "underlayMTU"];
    let mut fields = spec.as_object().into_iter().flat_map(serde_json::Map::keys);
    if let Some(unknown) = fields.find(|field| !KNOWN.contains(&field.as_str())) {
        return Err(format!("unknown field `{unknown}` in spec"));
    }
    let mtu = Option::<u32>::deserialize(&spec["underlayMTU"]).map_err(|error| error.to_string())?;
    match mtu {
        Some(mtu) if !UNDERLAY_MTU.contains(&mtu) => {
            Err(format!("underlayMTU must be between {} and {}, not {mtu}", UNDERLAY_MTU.start(), UNDERLAY_MTU.end()))
        }
        mtu => Ok(mtu),
    }
}

fn read<T: DeserializeOwned>(entry: &Value) -> Result<T, Unreadable> {
    T::deserialize(entry).map_err(|error| Unreadable::entry(&error))
}

fn list<'a>(spec: &'a Value, field: &str) -> impl Iterator<Item = &'a Value> {
    spec[field].as_array().into_iter().flatten()
}

fn text(entry: &Value, pointer: &str) -> String {
    entry.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests;
