//! The compiled programs, and what they become with an expression and maps.

use std::{
    collections::{BTreeMap, HashSet},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
};

use aya_obj::{Map as Definition, Object, btf::BtfFeatures, generated::bpf_insn};

use super::{
    BpfError,
    sys::{self, Map, NewMap},
    translate::Insn,
};

/// Readers of objects want them aligned.
#[repr(C, align(8))]
struct Aligned<T: ?Sized>(T);

static TAP: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/tap.bpf.o")));
static PROBE: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/probe.bpf.o")));

/// An object that was read.
pub(super) struct Image {
    object: Object,
}

/// Maps by their names.
pub(super) type Maps = BTreeMap<String, Map>;

impl Image {
    /// The programs of a tap.
    ///
    /// An expression takes the place of the function `expression`, before the calls to it are resolved. It is no program of its own
    /// that is reached by a tail call: the kernel empties a program array when the last process that had it open ends
    /// (`bpf_fd_array_map_clear`, kernel/bpf/arraymap.c), so that a filter would end with its helper, unless it were pinned.
    pub(super) fn tap(expression: &[Insn]) -> Result<Self, BpfError> {
        let mut image = Self::read(&TAP.0)?;
        if !expression.is_empty() {
            let found = image.object.functions.values_mut().find(|function| function.name == "expression");
            let function = found.ok_or_else(|| BpfError::object("the object has no function `expression`"))?;
            function.instructions = expression.iter().copied().map(raw).collect();
        }
        Ok(image)
    }

    /// Programs that tell what the kernel can do.
    pub(super) fn probe() -> Result<Self, BpfError> {
        Self::read(&PROBE.0)
    }

    fn read(bytes: &[u8]) -> Result<Self, BpfError> {
        let object = Object::parse(bytes).map_err(BpfError::object)?;
        Ok(Self { object })
    }

    /// Takes of `there` the maps that have the wanted names and shapes, and makes the others. `entries` gives maps another number
    /// of entries than the object.
    pub(super) fn maps(&mut self, mut there: Maps, entries: &[(&str, u32)]) -> Result<Maps, BpfError> {
        // Of what compilers make of C, every kernel that is new enough otherwise knows all.
        let features = BtfFeatures::new(true, true, true, true, false, false, false, false);
        let btf = match self.object.fixup_and_sanitize_btf(&features).map_err(BpfError::object)? {
            Some(btf) => {
                Some(sys::load_btf(&btf.to_bytes()).map_err(|errno| BpfError::kernel("load type information", errno))?)
            }
            None => None,
        };
        let mut maps = Maps::new();
        for (name, definition) in &self.object.maps {
            let other = entries.iter().find(|(candidate, _)| candidate == name);
            let mut new = NewMap {
                name,
                kind: definition.map_type(),
                key_size: definition.key_size(),
                value_size: definition.value_size(),
                max_entries: other.map_or(definition.max_entries(), |(_, entries)| *entries),
                btf: None,
            };
            if let (Definition::Btf(map), Some(btf)) = (definition, &btf) {
                new.btf = Some((btf.as_fd(), map.def.btf_key_type_id, map.def.btf_value_type_id));
            }
            let map = match there.remove(name) {
                Some(map) if fits(&map, &new) => map,
                _ => Map::create(&new).map_err(|errno| BpfError::kernel(&format!("make the map {name}"), errno))?,
            };
            maps.insert(name.clone(), map);
        }
        Ok(maps)
    }

    /// Binds the programs to maps and to each other.
    pub(super) fn link(&mut self, maps: &Maps) -> Result<(), BpfError> {
        let definitions = self.object.maps.clone();
        let text: HashSet<usize> = self.object.functions.keys().map(|(section, _)| *section).collect();
        let bound = definitions.iter().filter_map(|(name, definition)| {
            maps.get(name).map(|map| (name.as_str(), map.as_fd().as_raw_fd(), definition))
        });
        // Its own text names only the function; the cause is behind it.
        let failed = |error: aya_obj::relocation::EbpfRelocationError| {
            BpfError::object(std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string))
        };
        self.object.relocate_maps(bound, &text).map_err(failed)?;
        self.object.relocate_calls(&text).map_err(failed)
    }

    /// Forgets all programs but one.
    pub(super) fn keep(&mut self, name: &str) {
        self.object.programs.retain(|candidate, _| candidate == name);
        let programs: Vec<_> = self.object.programs.values().map(aya_obj::Program::function_key).collect();
        self.object.functions.retain(|key, function| programs.contains(key) || !function.name.starts_with("probe_"));
    }

    /// Loads a program.
    pub(super) fn load(&self, name: &str) -> Result<OwnedFd, BpfError> {
        let program = self.object.programs.get(name);
        let function = program.and_then(|program| self.object.functions.get(&program.function_key()));
        let function = function.ok_or_else(|| BpfError::object(format!("the object has no program `{name}`")))?;
        sys::load_program(name, &function.instructions).map_err(|(errno, log)| BpfError::Refused {
            name: name.to_owned(),
            errno,
            log,
        })
    }
}

/// What tells programs apart: those that are loaded with the same one do the same.
pub(super) fn identity(expression: &[Insn], deduplicate: bool) -> u64 {
    let mut hasher = DefaultHasher::new();
    TAP.0.hash(&mut hasher);
    expression.hash(&mut hasher);
    deduplicate.hash(&mut hasher);
    hasher.finish()
}

fn fits(map: &Map, new: &NewMap<'_>) -> bool {
    let (kind, key_size, value_size, max_entries) = map.shape();
    let sizes = [key_size, value_size].map(|size| u32::try_from(size).unwrap_or(u32::MAX));
    kind == new.kind && sizes == [new.key_size, new.value_size] && max_entries == new.max_entries
}

fn raw(insn: Insn) -> bpf_insn {
    bpf_insn {
        code: insn.code,
        _bitfield_align_1: [],
        _bitfield_1: bpf_insn::new_bitfield_1(insn.dst, insn.src),
        off: insn.off,
        imm: insn.imm,
    }
}
