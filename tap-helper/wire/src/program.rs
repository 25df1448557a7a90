//! Which programs of classic BPF are safe to run: the rules of the kernel (`bpf_check_classic`, `check_load_and_stores`,
//! net/core/filter.c), less its extensions, which reach beyond the frame.

use std::{error::Error, fmt};

use crate::wish::{Instruction, MAX_INSTRUCTIONS};

/// Loads from here upwards are offsets below zero: the kernel's extensions (`SKF_LL_OFF` and others), which `libpcap` uses for
/// live captures only.
const FIRST_EXTENSION: u32 = 1 << 31;
/// Bits of a code in which arithmetic has its operation (`BPF_OP`).
const OPERATION: u16 = 0xf0;

/// Why a program must not run, mostly with the number of the instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProgramError {
    /// It has none, or too many instructions.
    Length(usize),
    /// The code is none of classic BPF.
    Code(usize, u16),
    /// It reads what is no byte of the frame.
    Outside(usize),
    /// It divides by the constant 0.
    Division(usize),
    /// It shifts by a constant above 31.
    Shift(usize),
    /// It reads a cell of memory that was not written on every way to it.
    Unwritten(usize),
    /// There is no such cell of memory.
    Memory(usize),
    /// It is a loop, as libpcap makes of `protochain`.
    Backwards(usize),
    /// What comes next is behind the last instruction.
    End(usize),
}

impl fmt::Display for ProgramError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length(count) => {
                write!(formatter, "it has {count} instructions; 1 to {MAX_INSTRUCTIONS} are possible")
            }
            Self::Code(at, code) => write!(formatter, "instruction {at} has the unknown code {code:#x}"),
            Self::Outside(at) => write!(formatter, "instruction {at} reads outside of the frame"),
            Self::Division(at) => write!(formatter, "instruction {at} divides by zero"),
            Self::Shift(at) => write!(formatter, "instruction {at} shifts by more than 31"),
            Self::Unwritten(at) => write!(formatter, "instruction {at} reads memory that was not written"),
            Self::Memory(at) => write!(formatter, "instruction {at} uses memory that is not there"),
            Self::Backwards(at) => write!(formatter, "instruction {at} jumps backwards, as protochain does"),
            Self::End(at) => write!(formatter, "instruction {at} leads beyond the end"),
        }
    }
}

impl Error for ProgramError {}

/// What an instruction does, as far as safety is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Nothing that could go wrong.
    Plain,
    /// Reads the frame at a fixed offset, or at one that is added to the index.
    Frame,
    /// Divides by a constant.
    Divide,
    /// Shifts by a constant.
    Shift,
    Load,
    Store,
    Jump,
    Branch,
    Return,
}

fn kind(code: u16) -> Option<Kind> {
    Some(match code {
        // ld and ldx: a constant, the frame's length; tax, txa.
        0x00 | 0x01 | 0x80 | 0x81 | 0x07 | 0x87 => Kind::Plain,
        // ld, ldh, ldb of [k] and of [x + k]; ldxb 4 * ([k] & 0xf).
        0x20 | 0x28 | 0x30 | 0x40 | 0x48 | 0x50 | 0xb1 => Kind::Frame,
        0x60 | 0x61 => Kind::Load,
        0x02 | 0x03 => Kind::Store,
        // div and mod by a constant.
        0x34 | 0x94 => Kind::Divide,
        // lsh and rsh by a constant.
        0x64 | 0x74 => Kind::Shift,
        // neg has no operand.
        0x8c => return None,
        // add, sub, mul, or, and, xor with a constant or x; div, lsh, rsh and mod with x; neg.
        _ if code & 0x07 == 0x04 => match code & OPERATION {
            0x00..=0xa0 if code & !(OPERATION | 0x0c) == 0 => Kind::Plain,
            _ => return None,
        },
        0x05 => Kind::Jump,
        // jeq, jgt, jge and jset with a constant or x.
        0x15 | 0x1d | 0x25 | 0x2d | 0x35 | 0x3d | 0x45 | 0x4d => Kind::Branch,
        // ret of a constant and of the accumulator.
        0x06 | 0x16 => Kind::Return,
        _ => return None,
    })
}

/// Whether the program is safe to run: it reads nothing but the frame, and it ends. Who compiles a program and who runs it ask
/// the same function, so that none is wanted that no node takes.
pub fn check_program(program: &[Instruction]) -> Result<(), ProgramError> {
    if program.is_empty() || program.len() > MAX_INSTRUCTIONS {
        return Err(ProgramError::Length(program.len()));
    }
    // Which cells have been written on every way to an instruction.
    let mut written = vec![u16::MAX; program.len()];
    written[0] = 0;
    for (index, instruction) in program.iter().enumerate() {
        let Instruction { code, jt, jf, k } = *instruction;
        let mut cells = written[index];
        let cell = || 1u16.checked_shl(k).ok_or(ProgramError::Memory(index));
        // How many instructions it skips, on either way.
        let mut skips = [0, 0];
        match kind(code).ok_or(ProgramError::Code(index, code))? {
            Kind::Frame if k >= FIRST_EXTENSION => return Err(ProgramError::Outside(index)),
            Kind::Divide if k == 0 => return Err(ProgramError::Division(index)),
            Kind::Shift if k >= 32 => return Err(ProgramError::Shift(index)),
            Kind::Load if cells & cell()? == 0 => return Err(ProgramError::Unwritten(index)),
            Kind::Plain | Kind::Frame | Kind::Divide | Kind::Shift | Kind::Load => {}
            Kind::Store => cells |= cell()?,
            // A distance below zero, as readers that are not the kernel take it.
            Kind::Jump if k.cast_signed() < 0 => return Err(ProgramError::Backwards(index)),
            Kind::Jump => skips = [k; 2],
            Kind::Branch => skips = [jt.into(), jf.into()],
            Kind::Return => continue,
        }
        for skip in skips {
            let next = usize::try_from(skip).ok().and_then(|skip| written.get_mut(index.checked_add(skip)? + 1));
            *next.ok_or(ProgramError::End(index))? &= cells;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(instructions: &[(u16, u8, u8, u32)]) -> Vec<Instruction> {
        instructions.iter().copied().map(Instruction::from).collect()
    }

    #[test]
    fn what_libpcap_makes() {
        // tcpdump -dd 'tcp port 443'
        let made = [
            (0x28, 0, 0, 12),
            (0x15, 0, 6, 0x86dd),
            (0x30, 0, 0, 20),
            (0x15, 0, 15, 6),
            (0x28, 0, 0, 54),
            (0x15, 12, 0, 443),
            (0x28, 0, 0, 56),
            (0x15, 10, 11, 443),
            (0x15, 0, 10, 0x800),
            (0x30, 0, 0, 23),
            (0x15, 0, 8, 6),
            (0x28, 0, 0, 20),
            (0x45, 6, 0, 0x1fff),
            (0xb1, 0, 0, 14),
            (0x48, 0, 0, 14),
            (0x15, 2, 0, 443),
            (0x48, 0, 0, 16),
            (0x15, 0, 1, 443),
            (0x6, 0, 0, 0x40000),
            (0x6, 0, 0, 0),
        ];
        assert_eq!(check_program(&program(&made)), Ok(()));
        // tcpdump -dd 'ip[2:2] > 2 * len', with memory and arithmetic, as the compiler could make it.
        let memory =
            [(0x80, 0, 0, 0), (0x24, 0, 0, 2), (0x02, 0, 0, 3), (0x61, 0, 0, 3), (0x87, 0, 0, 0), (0x16, 0, 0, 0)];
        assert_eq!(check_program(&program(&memory)), Ok(()));
    }

    #[track_caller]
    fn refused(instructions: &[(u16, u8, u8, u32)], words: &str) {
        let why = check_program(&program(instructions)).expect_err("it is not safe").to_string();
        assert!(why.contains(words), "wanted “{words}” in “{why}”");
    }

    #[test]
    fn what_is_not_safe() {
        const RETURN: (u16, u8, u8, u32) = (0x06, 0, 0, 1);
        refused(&[(0x20, 0, 0, 12)], "instruction 0 leads beyond the end");
        refused(&[(0x15, 0, 1, 0), RETURN], "instruction 0 leads beyond the end");
        refused(&[(0x05, 0, 0, 1), RETURN], "leads beyond the end");
        refused(&[(0x05, 0, 0, i32::MAX.cast_unsigned()), RETURN], "leads beyond the end");
        refused(&[RETURN, (0x05, 0, 0, u32::MAX), RETURN], "instruction 1 jumps backwards, as protochain does");
        // Even where nothing leads there.
        refused(&[RETURN, (0x15, 0, 0, 1)], "instruction 1 leads beyond the end");
        // A call, a 64-bit operation, reserved bits, other bases of jumps, negation of X, loads of other sizes and modes.
        for code in
            [0x85, 0xb7, 0x100, 0x1006, 0xff, 0xffff, 0x55, 0x8c, 0x18, 0xa0, 0xc0, 0x21, 0x0a, 0x26, 0x17, 0xb4, 0xa5]
        {
            refused(&[(code, 0, 0, 0), RETURN], &format!("unknown code {code:#x}"));
        }
        refused(&[(0x34, 0, 0, 0), RETURN], "divides by zero");
        refused(&[(0x94, 0, 0, 0), RETURN], "divides by zero");
        refused(&[(0x64, 0, 0, 32), RETURN], "shifts by more than 31");
        refused(&[(0x60, 0, 0, 16), RETURN], "memory that is not there");
        refused(&[(0x02, 0, 0, 16), RETURN], "memory that is not there");
        refused(&[(0x60, 0, 0, 0), RETURN], "not written");
        // Written on one of two ways only.
        refused(&[(0x15, 0, 1, 0), (0x02, 0, 0, 0), (0x60, 0, 0, 0), RETURN], "instruction 2 reads memory");
        // SKF_AD_OFF + SKF_AD_IFINDEX.
        refused(&[(0x20, 0, 0, 0xffff_f008), RETURN], "outside of the frame");
        refused(&[(0xb1, 0, 0, 1 << 31), RETURN], "outside of the frame");
        refused(&[], "0 instructions; 1 to 512 are possible");
        refused(&vec![RETURN; MAX_INSTRUCTIONS + 1], "513 instructions; 1 to 512 are possible");
    }
}
