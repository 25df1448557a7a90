//! The system call bpf(2), for the commands that are needed.
//!
//! `aya` has them, too, but only for programs that it loads with maps that it makes; here, programs are loaded with maps that are
//! in use. The only module of this crate with unsafe code: the kernel follows pointers in the attributes, so each function below
//! fills them from slices that live until it returns and have the length that the kernel assumes.

use std::{
    fs,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use aya_obj::generated::bpf_insn;
use nix::{errno::Errno, libc};

// `enum bpf_cmd` (include/uapi/linux/bpf.h, as is the rest)
const MAP_CREATE: i32 = 0;
const MAP_LOOKUP: i32 = 1;
const MAP_UPDATE: i32 = 2;
const PROG_LOAD: i32 = 5;
const PROG_TEST_RUN: i32 = 10;
const PROG_BY_ID: i32 = 13;
const MAP_BY_ID: i32 = 14;
const INFO: i32 = 15;
const BTF_LOAD: i32 = 18;
/// `BPF_PROG_TYPE_SCHED_CLS`.
const SCHED_CLS: u32 = 3;
/// `BPF_MAP_TYPE_PERCPU_ARRAY`.
const PERCPU_ARRAY: u32 = 6;
/// Length of names, with the terminating zero (`BPF_OBJ_NAME_LEN`).
const NAME: usize = 16;
/// How often a program is handed to the verifier, which gives up when a signal comes (`do_check`, kernel/bpf/verifier.c).
const ATTEMPTS: u32 = 5;
/// Room for what the verifier says; asked for only after it refused.
const LOG: usize = 1 << 20;

/// Calls with an attribute of a command.
///
/// The attribute's pointers are the callers' concern; it must be `repr(C)` without padding, as all below are.
#[expect(unsafe_code, reason = "there is no other way to make the call")]
fn bpf<A>(command: i32, attribute: &mut A) -> Result<i32, Errno> {
    // SAFETY: pointer and length are those of a live, exclusive attribute, and longer or shorter ones than the kernel's are
    // allowed (`bpf_check_uarg_tail_zero`). The module's documentation says what holds for the pointers in it.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attribute, size_of::<A>()) };
    Errno::result(result).map(|value| i32::try_from(value).unwrap_or_default())
}

#[expect(unsafe_code, reason = "a descriptor that the kernel just made")]
fn descriptor(number: i32) -> OwnedFd {
    // SAFETY: called only with the result of a command that returns a new descriptor, which nobody else has.
    unsafe { OwnedFd::from_raw_fd(number) }
}

fn raw(fd: impl AsFd) -> u32 {
    fd.as_fd().as_raw_fd().cast_unsigned()
}

fn length(slice: &[u8]) -> u32 {
    u32::try_from(slice.len()).unwrap_or(u32::MAX)
}

fn name_of(name: &str) -> [u8; NAME] {
    let mut bytes = [0; NAME];
    let end = name.len().min(NAME - 1);
    bytes[..end].copy_from_slice(&name.as_bytes()[..end]);
    bytes
}

/// Loads type information.
pub(super) fn load_btf(bytes: &[u8]) -> Result<OwnedFd, Errno> {
    #[repr(C)]
    struct Attribute {
        btf: u64,
        log: u64,
        btf_size: u32,
        log_size: u32,
        log_level: u32,
        reserved: u32,
    }
    let btf_size = length(bytes);
    let mut attribute =
        Attribute { btf: bytes.as_ptr() as u64, log: 0, btf_size, log_size: 0, log_level: 0, reserved: 0 };
    bpf(BTF_LOAD, &mut attribute).map(descriptor)
}

/// What a new map is to be.
pub(super) struct NewMap<'a> {
    pub name: &'a str,
    pub kind: u32,
    pub key_size: u32,
    pub value_size: u32,
    pub max_entries: u32,
    /// Type information, and the types of key and value in it.
    pub btf: Option<(BorrowedFd<'a>, u32, u32)>,
}

/// A map with what the kernel says of it.
#[derive(Debug)]
pub(super) struct Map {
    fd: OwnedFd,
    id: u32,
    kind: u32,
    key_size: usize,
    value_size: usize,
    max_entries: u32,
    name: String,
}

impl Map {
    /// Makes one.
    pub(super) fn create(new: &NewMap<'_>) -> Result<Self, Errno> {
        #[repr(C)]
        #[derive(Default)]
        struct Attribute {
            kind: u32,
            key_size: u32,
            value_size: u32,
            max_entries: u32,
            flags: u32,
            inner: u32,
            numa_node: u32,
            name: [u8; NAME],
            interface: u32,
            btf: u32,
            btf_key: u32,
            btf_value: u32,
        }
        let mut attribute = Attribute {
            kind: new.kind,
            key_size: new.key_size,
            value_size: new.value_size,
            max_entries: new.max_entries,
            name: name_of(new.name),
            ..Attribute::default()
        };
        if let Some((btf, key, value)) = new.btf {
            (attribute.btf, attribute.btf_key, attribute.btf_value) = (raw(btf), key, value);
        }
        Self::of(descriptor(bpf(MAP_CREATE, &mut attribute)?))
    }

    /// The one with a number.
    pub(super) fn by_id(id: u32) -> Result<Self, Errno> {
        Self::of(by_id(MAP_BY_ID, id)?)
    }

    fn of(fd: OwnedFd) -> Result<Self, Errno> {
        // struct bpf_map_info: type, id, key_size, value_size, max_entries, map_flags, name
        let mut info = [0; 40];
        object_info(&fd, &mut info)?;
        let word = |at: usize| info.get(at..at + 4).and_then(|v| v.try_into().ok()).map_or(0, u32::from_ne_bytes);
        let name = info[24..].split(|byte| *byte == 0).next().unwrap_or_default();
        Ok(Self {
            id: word(4),
            kind: word(0),
            key_size: usize::try_from(word(8)).unwrap_or(usize::MAX),
            value_size: usize::try_from(word(12)).unwrap_or(usize::MAX),
            max_entries: word(16),
            name: String::from_utf8_lossy(name).into_owned(),
            fd,
        })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Its number.
    pub(super) fn id(&self) -> u32 {
        self.id
    }

    /// Type, sizes of keys and values, and number of entries.
    pub(super) fn shape(&self) -> (u32, usize, usize, u32) {
        (self.kind, self.key_size, self.value_size, self.max_entries)
    }

    /// A second descriptor of the same map.
    pub(super) fn try_clone(&self) -> Result<Self, Errno> {
        let fd = self.fd.try_clone().map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EMFILE)))?;
        let Self { id, kind, key_size, value_size, max_entries, .. } = *self;
        Ok(Self { fd, id, kind, key_size, value_size, max_entries, name: self.name.clone() })
    }

    /// The value of a number; of a map with one value for each processor, all of them, each from a multiple of 8 bytes on.
    pub(super) fn get(&self, key: u32) -> Result<Vec<u8>, Errno> {
        let size = match self.kind {
            PERCPU_ARRAY => self.value_size.next_multiple_of(8) * possible_processors()?,
            _ => self.value_size,
        };
        let mut value = vec![0; size];
        self.element(MAP_LOOKUP, key, value.as_mut_ptr() as u64)?;
        Ok(value)
    }

    /// Sets the value of a number.
    pub(super) fn set(&self, key: u32, value: &[u8]) -> Result<(), Errno> {
        if value.len() != self.value_size || self.kind == PERCPU_ARRAY {
            return Err(Errno::EINVAL);
        }
        self.element(MAP_UPDATE, key, value.as_ptr() as u64)
    }

    fn element(&self, command: i32, key: u32, value: u64) -> Result<(), Errno> {
        #[repr(C)]
        struct Attribute {
            map: u32,
            reserved: u32,
            key: u64,
            value: u64,
            flags: u64,
        }
        if self.key_size != size_of::<u32>() {
            return Err(Errno::EINVAL);
        }
        let key = key.to_ne_bytes();
        let mut attribute = Attribute { map: raw(&self.fd), reserved: 0, key: key.as_ptr() as u64, value, flags: 0 };
        bpf(command, &mut attribute).map(drop)
    }
}

impl AsFd for Map {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Processors that may ever be there; values for each of them are read.
fn possible_processors() -> Result<usize, Errno> {
    let text = fs::read_to_string("/sys/devices/system/cpu/possible").map_err(|_| Errno::ENOENT)?;
    // As 0-3, or 0,2-7.
    let last = text.trim().rsplit([',', '-']).next().and_then(|number| number.parse::<usize>().ok());
    last.map(|number| number + 1).ok_or(Errno::EINVAL)
}

/// Loads a classifier. What the verifier said comes with the refusal.
pub(super) fn load_program(name: &str, instructions: &[bpf_insn]) -> Result<OwnedFd, (Errno, String)> {
    #[repr(C)]
    #[derive(Default)]
    struct Attribute {
        kind: u32,
        count: u32,
        instructions: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log: u64,
        kernel_version: u32,
        flags: u32,
        name: [u8; NAME],
    }
    let mut attribute = Attribute {
        kind: SCHED_CLS,
        count: u32::try_from(instructions.len()).unwrap_or(u32::MAX),
        instructions: instructions.as_ptr() as u64,
        license: c"Dual BSD/GPL".as_ptr() as u64,
        name: name_of(name),
        ..Attribute::default()
    };
    for _ in 0..ATTEMPTS {
        match bpf(PROG_LOAD, &mut attribute) {
            Ok(program) => return Ok(descriptor(program)),
            Err(Errno::EAGAIN) => {}
            Err(_) => break,
        }
    }
    let mut log = vec![0_u8; LOG];
    attribute.log_level = 1;
    attribute.log_size = length(&log);
    attribute.log = log.as_mut_ptr() as u64;
    match bpf(PROG_LOAD, &mut attribute) {
        Ok(fd) => Ok(descriptor(fd)),
        Err(errno) => {
            let end = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
            Err((errno, String::from_utf8_lossy(&log[..end]).into_owned()))
        }
    }
}

fn by_id(command: i32, id: u32) -> Result<OwnedFd, Errno> {
    #[repr(C)]
    struct Attribute {
        id: u32,
        next: u32,
        flags: u32,
    }
    bpf(command, &mut Attribute { id, next: 0, flags: 0 }).map(descriptor)
}

/// The program with a number, as `tc` and the kernel's answers show it.
pub(super) fn program_by_id(id: u32) -> Result<OwnedFd, Errno> {
    by_id(PROG_BY_ID, id)
}

fn object_info(fd: &OwnedFd, info: &mut [u8]) -> Result<(), Errno> {
    #[repr(C)]
    struct Attribute {
        fd: u32,
        size: u32,
        info: u64,
    }
    let size = length(info);
    bpf(INFO, &mut Attribute { fd: raw(fd), size, info: info.as_mut_ptr() as u64 }).map(drop)
}

/// A program's number, and those of its maps.
pub(super) fn program_info(program: &OwnedFd) -> Result<(u32, Vec<u32>), Errno> {
    // The first 64 bytes of struct bpf_prog_info, up to and with the pointer to the numbers of maps.
    let mut maps = [0_u32; 16];
    let mut info = [0_u8; 64];
    info[52..56].copy_from_slice(&16_u32.to_ne_bytes());
    info[56..64].copy_from_slice(&(maps.as_mut_ptr() as u64).to_ne_bytes());
    object_info(program, &mut info)?;
    let word = |at: usize| info.get(at..at + 4).and_then(|v| v.try_into().ok()).map_or(0, u32::from_ne_bytes);
    let count = usize::try_from(word(52)).unwrap_or(usize::MAX).min(maps.len());
    Ok((word(4), maps[..count].to_vec()))
}

/// Runs a program once on a frame that exists for that only; returns its result and the frame as it is then.
pub(super) fn run(program: &OwnedFd, frame: &[u8], context: &[u8]) -> Result<(i32, Vec<u8>), Errno> {
    #[repr(C)]
    #[derive(Default)]
    struct Attribute {
        program: u32,
        result: u32,
        size_in: u32,
        size_out: u32,
        data_in: u64,
        data_out: u64,
        repeat: u32,
        duration: u32,
        context_size_in: u32,
        context_size_out: u32,
        context_in: u64,
        context_out: u64,
    }
    let mut out = vec![0; frame.len() + 4096];
    let mut attribute = Attribute {
        program: raw(program),
        size_in: length(frame),
        size_out: length(&out),
        data_in: frame.as_ptr() as u64,
        data_out: out.as_mut_ptr() as u64,
        repeat: 1,
        context_size_in: length(context),
        context_in: if context.is_empty() { 0 } else { context.as_ptr() as u64 },
        ..Attribute::default()
    };
    bpf(PROG_TEST_RUN, &mut attribute)?;
    out.truncate(usize::try_from(attribute.size_out).unwrap_or_default());
    Ok((attribute.result.cast_signed(), out))
}
