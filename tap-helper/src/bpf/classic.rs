//! Classic BPF: its codes, and what of it is taken.

use thiserror::Error;

use super::settings::Instruction;

/// `BPF_MAXINSNS` (`include/uapi/linux/bpf_common.h`).
pub const MAX_INSTRUCTIONS: usize = 4096;
/// `BPF_MEMWORDS`.
const MEMORY_WORDS: u32 = 16;

/// Why an expression's instructions are refused.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum TranslateError {
    #[error("it has {0} instructions; at least 1 and at most {MAX_INSTRUCTIONS} are possible")]
    Length(usize),
    #[error("instruction {0} has the unknown code {1:#06x}")]
    Code(usize, u16),
    #[error("instruction {0} jumps backwards, as `protochain` does, or behind the end")]
    Jump(usize),
    #[error("instruction {0} has the operand {1}, which is out of range")]
    Operand(usize, u32),
    #[error("the last instruction is no return")]
    NoReturn,
    #[error("a jump at instruction {0} is too long once translated")]
    TooLong(usize),
}

// Codes (include/uapi/linux/bpf_common.h).
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

/// As `bpf_check_classic` does, with the same set of codes.
pub(super) fn check(program: &[Instruction]) -> Result<(), TranslateError> {
    let length = program.len();
    if length == 0 || length > MAX_INSTRUCTIONS {
        return Err(TranslateError::Length(length));
    }
    for (number, instruction) in program.iter().enumerate() {
        let Instruction { code, jt, jf, k } = *instruction;
        if !is_known(code) {
            return Err(TranslateError::Code(number, code));
        }
        let operand = match (code & 7, code & MODE) {
            (LD | LDX, MEM) | (ST | STX, _) => k < MEMORY_WORDS,
            // Above are Linux's own values, as the receiving device: a compiler for files does not use them.
            (LD, ABS | IND) | (LDX, MSH) => k <= i32::MAX.cast_unsigned(),
            _ => true,
        } && match (code & 7, code & 0xf0) {
            (ALU, DIV | MOD) => code & FROM_X != 0 || k != 0,
            (ALU, LSH | RSH) => code & FROM_X != 0 || k < 32,
            _ => true,
        };
        if !operand {
            return Err(TranslateError::Operand(number, k));
        }
        let rest = length - number - 1;
        let fits = match (code & 7, code & 0xf0) {
            (JMP, JA) => usize::try_from(k).is_ok_and(|k| k < rest),
            (JMP, _) => usize::from(jt.max(jf)) < rest,
            _ => true,
        };
        if !fits {
            return Err(TranslateError::Jump(number));
        }
    }
    if program[length - 1].code & 7 == RET { Ok(()) } else { Err(TranslateError::NoReturn) }
}

fn is_known(code: u16) -> bool {
    match code & 7 {
        LD => matches!(code, 0x00 | 0x20 | 0x28 | 0x30 | 0x40 | 0x48 | 0x50 | 0x60 | 0x80),
        LDX => matches!(code, 0x01 | 0x61 | 0x81 | 0xb1),
        ST | STX => code <= 7,
        ALU => code <= 0xac && (code & 0xf0 != NEG || code & FROM_X == 0),
        JMP => code == 0x05 || matches!(code & !FROM_X, 0x15 | 0x25 | 0x35 | 0x45) && code <= 0x4d,
        RET => matches!(code, 0x06 | 0x16),
        _ => matches!(code, 0x07 | 0x87),
    }
}

/// Which instructions can be reached: eBPF refuses a program with others. Jumps only go forward.
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
