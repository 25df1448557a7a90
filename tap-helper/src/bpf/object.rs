//! The compiled objects, and how they become programs: with a translated expression, linked to maps, loaded.

use std::{
    collections::{BTreeMap, HashSet},
    hash::Hasher as _,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    sync::LazyLock,
};

use aya::maps::{MapData, MapError};
use aya_obj::{Map as Definition, btf::BtfFeatures, generated::bpf_insn};

use super::{BpfError, ObjectError, syscall, translate::Insn};
use crate::names::Hash;

/// The ELF parser requires alignment.
#[repr(C, align(8))]
struct Aligned<T: ?Sized>(T);

static TAP_ALIGNED: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/tap.bpf.o")));
/// The programs of a tap.
pub(super) static TAP: &[u8] = &TAP_ALIGNED.0;

static PROBE_ALIGNED: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/probe.bpf.o")));
/// The program that sends probes.
pub(super) static PROBE: &[u8] = &PROBE_ALIGNED.0;

static RECEIVER_ALIGNED: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/receiver.bpf.o")));
/// The program of a receiver.
pub(super) static RECEIVER: &[u8] = &RECEIVER_ALIGNED.0;

/// Maps by name.
pub(super) type MapsByName = BTreeMap<String, MapData>;

/// A parsed object.
pub(super) struct Object(aya_obj::Object);

impl Object {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, BpfError> {
        Ok(Self(aya_obj::Object::parse(bytes).map_err(ObjectError::from)?))
    }

    /// Replaces the body of the function `expression`, before the calls to it are relocated.
    ///
    /// A tail call would spare the reload of the programs, but the kernel clears a program array when the last process that has
    /// it open exits (`bpf_fd_array_map_clear`, kernel/bpf/arraymap.c): unless pinned, a filter would end with its helper.
    pub(super) fn set_expression(&mut self, expression: &[Insn]) -> Result<(), BpfError> {
        let function = self.0.functions.values_mut().find(|function| function.name == "expression");
        let function = function.ok_or_else(|| ObjectError::NoFunction("expression".to_owned()))?;
        function.instructions = expression.iter().copied().map(bpf_insn::from).collect();
        Ok(())
    }

    /// Gives the map `flows` a single entry, because it takes the memory of all entries when it is created.
    pub(super) fn minimize_flows(&mut self) -> Result<(), BpfError> {
        let flows = self.0.maps.get_mut("flows").ok_or(ObjectError::Maps)?;
        flows.set_max_entries(1);
        Ok(())
    }

    /// The object's maps: those of `existing` with the same name and shape, and new ones.
    pub(super) fn maps(&mut self, mut existing: MapsByName) -> Result<MapsByName, BpfError> {
        // The features of BTF that clang emits for C, which all kernels with BTF maps and spin locks accept.
        let features = BtfFeatures::new(true, true, true, true, false, false, false, false);
        let btf = self.0.fixup_and_sanitize_btf(&features).map_err(ObjectError::from)?;
        let btf = btf.map(|btf| syscall::load_btf(&btf.to_bytes())).transpose();
        let btf = btf.map_err(|errno| BpfError::kernel("load BTF", errno))?;
        let mut maps = MapsByName::new();
        for (name, definition) in &self.0.maps {
            let map = match existing.remove(name) {
                Some(map) if has_shape(&map, definition)? => map,
                _ => MapData::create(definition.clone(), name, btf.as_ref().map(OwnedFd::as_fd))
                    .map_err(|error| BpfError::aya(format!("create the map {name}"), &error))?,
            };
            maps.insert(name.clone(), map);
        }
        Ok(maps)
    }

    /// Relocates the references to maps, and the calls.
    pub(super) fn link(&mut self, maps: &MapsByName) -> Result<(), BpfError> {
        let definitions = self.0.maps.clone();
        let text: HashSet<usize> = self.0.functions.keys().map(|(section, _)| *section).collect();
        let fds = definitions.iter().filter_map(|(name, definition)| {
            maps.get(name).map(|map| (name.as_str(), map.fd().as_fd().as_raw_fd(), definition))
        });
        self.0.relocate_maps(fds, &text).map_err(ObjectError::from)?;
        Ok(self.0.relocate_calls(&text).map_err(ObjectError::from)?)
    }

    /// Loads a program into the kernel.
    pub(super) fn load(&self, name: &str) -> Result<OwnedFd, BpfError> {
        let program = self.0.programs.get(name);
        let function = program.and_then(|program| self.0.functions.get(&program.function_key()));
        let function = function.ok_or_else(|| ObjectError::NoFunction(name.to_owned()))?;
        let rejected = |(errno, log)| BpfError::Rejected { name: name.to_owned(), errno, log };
        syscall::load_classifier(name, &function.instructions).map_err(rejected)
    }
}

/// The maps of a program in the kernel.
pub(super) fn maps_of(program: u32) -> Result<MapsByName, BpfError> {
    let operation = || format!("inspect program {program}");
    let info = syscall::program_by_id(program).and_then(syscall::program_info);
    let (_, ids) = info.map_err(|errno| BpfError::kernel(operation(), errno))?;
    let by_name = |id| {
        let map = MapData::from_id(id)?;
        let name = String::from_utf8_lossy(map.info()?.name()).into_owned();
        Ok((name, map))
    };
    let maps: Result<_, MapError> = ids.into_iter().map(by_name).collect();
    maps.map_err(|error| BpfError::aya(operation(), &error))
}

fn has_shape(map: &MapData, definition: &Definition) -> Result<bool, BpfError> {
    let info = map.info().map_err(|error| BpfError::aya("inspect a map", &error))?;
    let kind = info.map_type().map_or(0, |kind| kind as u32);
    Ok((kind, info.key_size(), info.value_size(), info.max_entries())
        == (definition.map_type(), definition.key_size(), definition.value_size(), definition.max_entries()))
}

/// Identifies programs: those with the same hash differ in their configuration at most. The kernel keeps it, in `configs`.
pub(super) fn program_hash(expression: &[Insn], track_flows: bool) -> u64 {
    static OBJECT: LazyLock<Hash> = LazyLock::new(|| {
        let mut hash = Hash::new();
        hash.write(TAP);
        hash
    });
    let mut hash = *OBJECT;
    hash.write(&[track_flows.into()]);
    for Insn { code, dst, src, off, imm } in expression {
        hash.write(&[*code, *dst, *src]);
        hash.write(&off.to_le_bytes());
        hash.write(&imm.to_le_bytes());
    }
    hash.finish()
}

impl From<Insn> for bpf_insn {
    fn from(Insn { code, dst, src, off, imm }: Insn) -> Self {
        Self { code, _bitfield_align_1: [], _bitfield_1: Self::new_bitfield_1(dst, src), off, imm }
    }
}
