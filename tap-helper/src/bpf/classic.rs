//! Classic BPF: opcodes and reachability.

use podtap_model::Instruction;

// Opcodes (include/uapi/linux/bpf_common.h).
pub(super) const LD: u16 = 0;
pub(super) const LDX: u16 = 1;
pub(super) const ST: u16 = 2;
pub(super) const STX: u16 = 3;
pub(super) const ALU: u16 = 4;
pub(super) const JMP: u16 = 5;
pub(super) const RET: u16 = 6;
pub(super) const MISC: u16 = 7;
pub(super) const SIZE: u16 = 0x18;
pub(super) const MODE: u16 = 0xe0;
pub(super) const IMM: u16 = 0x00;
pub(super) const ABS: u16 = 0x20;
pub(super) const IND: u16 = 0x40;
pub(super) const MEM: u16 = 0x60;
pub(super) const LEN: u16 = 0x80;
pub(super) const MSH: u16 = 0xa0;
pub(super) const WORD: u16 = 0x00;
pub(super) const HALF: u16 = 0x08;
pub(super) const BYTE: u16 = 0x10;
pub(super) const FROM_X: u16 = 0x08;
pub(super) const DIV: u16 = 0x30;
pub(super) const MOD: u16 = 0x90;
pub(super) const NEG: u16 = 0x80;
pub(super) const LSH: u16 = 0x60;
pub(super) const RSH: u16 = 0x70;
pub(super) const JA: u16 = 0x00;

/// Which instructions are reachable: the verifier rejects programs with others. Jumps only go forward, and stay within the
/// program.
pub(super) fn reachable(program: &[Instruction]) -> Vec<bool> {
    let mut reached = vec![false; program.len() + 1];
    reached[0] = true;
    for (number, Instruction { code, jt, jf, k }) in program.iter().enumerate() {
        if !reached[number] {
            continue;
        }
        match (code & 7, code & 0xf0) {
            (RET, _) => {}
            (JMP, JA) => reached[number + 1 + usize::try_from(*k).unwrap_or(0)] = true,
            (JMP, _) => {
                reached[number + 1 + usize::from(*jt)] = true;
                reached[number + 1 + usize::from(*jf)] = true;
            }
            _ => reached[number + 1] = true,
        }
    }
    reached
}
