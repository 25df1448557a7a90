//! The bpf(2) commands for which aya has no public function.
//!
//! aya handles the maps, and runs programs in tests. It cannot load the programs: `EbpfLoader` takes a whole object, puts maps
//! that exist already under its programs only if they are pinned, and leaves no room for the translated expression. It also
//! parses the kernel's BTF for each load (aya 0.14: 40 ms and 19 MiB of memory with the 5.5 MB of Linux 6.18; later releases,
//! which do that on demand only, need Rust 1.98). And aya finds a program by its ID only by looking at all programs of the node.
//!
//! The kernel follows pointers in the attributes: each function here fills them from slices that outlive the call, with their
//! lengths.

use std::{
    mem,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    time::{Duration, Instant},
};

use aya_obj::generated::{bpf_attr, bpf_cmd, bpf_insn, bpf_prog_info, bpf_prog_type};
use nix::{
    errno::Errno,
    libc,
    sys::signal::{SigSet, SigmaskHow},
};

use super::BpfError;

/// How long a load is tried again that was interrupted, although signals are blocked: the kernel has reasons of its own
/// (`TIF_NOTIFY_SIGNAL`).
const PATIENCE: Duration = Duration::from_secs(5);
/// Size of the buffer for the verifier's log, which is requested only after the kernel rejected a program.
const LOG_SIZE: usize = 1 << 20;
/// Maps of a program of ours; a foreign program may have more, which are ignored.
const MAX_MAPS: usize = 16;

#[expect(unsafe_code, reason = "neither std nor nix has bpf(2)")]
fn bpf(command: bpf_cmd, attribute: &mut bpf_attr) -> Result<i32, Errno> {
    // SAFETY: the attribute is live and exclusive, and the module's documentation covers the pointers in it. The kernel accepts
    // attributes that are longer than its own as long as the rest is zero (`bpf_check_uarg_tail_zero`).
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attribute, size_of::<bpf_attr>()) };
    Errno::result(result).map(|value| i32::try_from(value).unwrap_or_default())
}

#[expect(unsafe_code, reason = "bindgen derives no Default for unions")]
fn attribute() -> bpf_attr {
    // SAFETY: a union of structs of integers.
    unsafe { mem::zeroed() }
}

#[expect(unsafe_code, reason = "a descriptor that the kernel just returned")]
fn open(command: bpf_cmd, attribute: &mut bpf_attr) -> Result<OwnedFd, Errno> {
    // SAFETY: called only with commands that return a new descriptor.
    bpf(command, attribute).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
}

fn length<T>(slice: &[T]) -> u32 {
    u32::try_from(slice.len()).unwrap_or(u32::MAX)
}

/// Loads BTF.
pub(super) fn load_btf(btf: &[u8]) -> Result<OwnedFd, Errno> {
    let mut attribute = attribute();
    attribute.__bindgen_anon_7.btf = btf.as_ptr() as u64;
    attribute.__bindgen_anon_7.btf_size = length(btf);
    open(bpf_cmd::BPF_BTF_LOAD, &mut attribute)
}

/// Loads a classifier. The error comes with the verifier's log.
pub(super) fn load_classifier(name: &str, instructions: &[bpf_insn]) -> Result<OwnedFd, (Errno, String)> {
    let mut attribute = attribute();
    attribute.__bindgen_anon_3.prog_type = bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS as u32;
    attribute.__bindgen_anon_3.insn_cnt = length(instructions);
    attribute.__bindgen_anon_3.insns = instructions.as_ptr() as u64;
    attribute.__bindgen_anon_3.license = c"Dual BSD/GPL".as_ptr() as u64;
    let mut kernel_name = [0; 16];
    // The last byte stays zero.
    for (to, from) in kernel_name[..15].iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    attribute.__bindgen_anon_3.prog_name = kernel_name;
    let errno = match load(&mut attribute) {
        Ok(program) => return Ok(program),
        Err(errno) => errno,
    };
    let mut log = vec![0_u8; LOG_SIZE];
    attribute.__bindgen_anon_3.log_level = 1;
    attribute.__bindgen_anon_3.log_size = length(&log);
    attribute.__bindgen_anon_3.log_buf = log.as_mut_ptr() as u64;
    // Its error may be that of the log, which finds no room (ENOSPC).
    load(&mut attribute).map_err(|_| {
        let text = log.split(|byte| *byte == 0).next().unwrap_or_default();
        (errno, String::from_utf8_lossy(text).into_owned())
    })
}

/// The verifier gives up with EAGAIN when a signal is pending (`do_check`, kernel/bpf/verifier.c): signals are blocked meanwhile.
fn load(attribute: &mut bpf_attr) -> Result<OwnedFd, Errno> {
    let mask = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK);
    let start = Instant::now();
    let result = loop {
        match open(bpf_cmd::BPF_PROG_LOAD, attribute) {
            Err(Errno::EAGAIN | Errno::EINTR) if start.elapsed() < PATIENCE => {}
            result => break result,
        }
    };
    // It fails for invalid arguments only.
    let _ = mask.and_then(|mask| mask.thread_set_mask());
    result
}

/// Runs a classifier once on a frame that exists for this purpose only. `context` is the start of a `struct __sk_buff`; the ifindex in
/// it is one of the calling thread's network namespace. Returns the program's result.
pub(super) fn run(program: impl AsFd, frame: &[u8], context: &[u8]) -> Result<u32, Errno> {
    let mut attribute = attribute();
    attribute.test.prog_fd = program.as_fd().as_raw_fd().cast_unsigned();
    attribute.test.data_in = frame.as_ptr() as u64;
    attribute.test.data_size_in = length(frame);
    attribute.test.ctx_in = context.as_ptr() as u64;
    attribute.test.ctx_size_in = length(context);
    bpf(bpf_cmd::BPF_PROG_TEST_RUN, &mut attribute)?;
    Ok(retval(&attribute))
}

#[expect(unsafe_code, reason = "a union")]
fn retval(attribute: &bpf_attr) -> u32 {
    // SAFETY: integers, of which every value is valid.
    unsafe { attribute.test.retval }
}

/// The program with an ID.
pub(super) fn program_by_id(id: u32) -> Result<OwnedFd, Errno> {
    let mut attribute = attribute();
    attribute.__bindgen_anon_6.__bindgen_anon_1.prog_id = id;
    open(bpf_cmd::BPF_PROG_GET_FD_BY_ID, &mut attribute)
}

/// The ID of a program, and those of its maps.
#[expect(unsafe_code, reason = "bindgen derives no Default for structs with bit fields")]
pub(super) fn program_info(program: impl AsFd) -> Result<(u32, Vec<u32>), Errno> {
    let mut maps = [0_u32; MAX_MAPS];
    // SAFETY: a struct of integers.
    let mut info: bpf_prog_info = unsafe { mem::zeroed() };
    info.nr_map_ids = length(&maps);
    info.map_ids = maps.as_mut_ptr() as u64;
    let mut attribute = attribute();
    attribute.info.bpf_fd = program.as_fd().as_raw_fd().cast_unsigned();
    attribute.info.info_len = u32::try_from(size_of_val(&info)).unwrap_or_default();
    attribute.info.info = &raw mut info as u64;
    bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attribute)?;
    let known = usize::try_from(info.nr_map_ids).unwrap_or(MAX_MAPS).min(MAX_MAPS);
    Ok((info.id, maps[..known].to_vec()))
}

/// The ID of a program.
pub(super) fn program_id(program: impl AsFd) -> Result<u32, BpfError> {
    program_info(program).map(|(id, _)| id).map_err(|errno| BpfError::kernel("inspect a program", errno))
}
