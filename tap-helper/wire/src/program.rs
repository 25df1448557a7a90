//! Which programs of classic BPF are safe to run: the rules of the kernel (`bpf_check_classic`, `check_load_and_stores`,
//! net/core/filter.c), less its extensions, which reach beyond the frame.

use crate::{Instruction, MAX_INSTRUCTIONS};

/// Number of cells of scratch memory (`BPF_MEMWORDS`).
const CELLS: u32 = 16;
/// Loads from here upwards are offsets below zero: the kernel's extensions (`SKF_LL_OFF` and others), which `libpcap` uses for
/// live captures only.
const FIRST_EXTENSION: u32 = 1 << 31;
/// Bits of a code in which arithmetic has its operation (`BPF_OP`).
const OPERATION: u16 = 0xf0;

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
        // ld and ldx: a constant, the frame's length; ld: [x + k]; tax, txa.
        0x00 | 0x01 | 0x80 | 0x81 | 0x07 | 0x87 => Kind::Plain,
        // ld, ldh, ldb of [k] and of [x + k]; ldxb 4 * ([k] & 0xf).
        0x20 | 0x28 | 0x30 | 0x40 | 0x48 | 0x50 | 0xb1 => Kind::Frame,
        0x60 | 0x61 => Kind::Load,
        0x02 | 0x03 => Kind::Store,
        // div and mod by a constant.
        0x34 | 0x94 => Kind::Divide,
        // lsh and rsh by a constant.
        0x64 | 0x74 => Kind::Shift,
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

/// Checks that a program is safe to run; an empty one is.
///
/// # Errors
/// Why it is not, as the end of a sentence.
pub fn check_program(program: &[Instruction]) -> Result<(), String> {
    if program.is_empty() {
        return Ok(());
    }
    if program.len() > MAX_INSTRUCTIONS {
        return Err(format!("{} instructions are more than {MAX_INSTRUCTIONS}", program.len()));
    }
    // Which cells have been written on every way to an instruction.
    let mut written = vec![u16::MAX; program.len()];
    written[0] = 0;
    for (index, instruction) in program.iter().enumerate() {
        let at = |what: &str| Err(format!("instruction {index} {what}"));
        let Instruction { code, jt, jf, k } = *instruction;
        let mut cells = written[index];
        let cell = |k: u32| 1u16.checked_shl(k).filter(|_| k < CELLS);
        // How far it leads, on either way.
        let mut ways = [Some(1), Some(1)];
        match kind(code) {
            None => return at(&format!("has the unknown code {code:#x}")),
            Some(Kind::Frame) if k >= FIRST_EXTENSION => return at("reads outside of the frame"),
            Some(Kind::Divide) if k == 0 => return at("divides by zero"),
            Some(Kind::Shift) if k >= 32 => return at("shifts by more than 31"),
            Some(Kind::Plain | Kind::Frame | Kind::Divide | Kind::Shift) => {}
            Some(Kind::Load) => match cell(k) {
                Some(cell) if cells & cell != 0 => {}
                Some(_) => return at("reads memory that was not written"),
                None => return at("reads memory that is not there"),
            },
            Some(Kind::Store) => match cell(k) {
                Some(cell) => cells |= cell,
                None => return at("writes memory that is not there"),
            },
            Some(Kind::Jump) => ways = [usize::try_from(k).ok().and_then(|k| k.checked_add(1)); 2],
            Some(Kind::Branch) => ways = [Some(usize::from(jt) + 1), Some(usize::from(jf) + 1)],
            Some(Kind::Return) => continue,
        }
        for way in ways {
            match way.and_then(|way| written.get_mut(index.checked_add(way)?)) {
                Some(next) => *next &= cells,
                None => return at("leads back, or beyond the end"),
            }
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
        assert_eq!(check_program(&[]), Ok(()));
        // tcpdump -dd 'ip[2:2] > 2 * len', with memory and arithmetic, as the compiler could make it.
        let memory =
            [(0x80, 0, 0, 0), (0x24, 0, 0, 2), (0x02, 0, 0, 3), (0x61, 0, 0, 3), (0x87, 0, 0, 0), (0x16, 0, 0, 0)];
        assert_eq!(check_program(&program(&memory)), Ok(()));
    }

    #[track_caller]
    fn refused(instructions: &[(u16, u8, u8, u32)], words: &str) {
        let why = check_program(&program(instructions)).expect_err("it is not safe");
        assert!(why.contains(words), "wanted “{words}” in “{why}”");
    }

    #[test]
    fn what_is_not_safe() {
        const RETURN: (u16, u8, u8, u32) = (0x06, 0, 0, 1);
        refused(&[(0x20, 0, 0, 12)], "instruction 0 leads back, or beyond the end");
        refused(&[(0x15, 0, 1, 0), RETURN], "instruction 0 leads back, or beyond the end");
        refused(&[(0x05, 0, 0, u32::MAX), RETURN], "leads back, or beyond the end");
        refused(&[(0x05, 0, 0, 1), RETURN], "leads back, or beyond the end");
        refused(&[(0xff, 0, 0, 0), RETURN], "unknown code 0xff");
        refused(&[(0x85, 0, 0, 0), RETURN], "unknown code 0x85");
        refused(&[(0xb4, 0, 0, 0), RETURN], "unknown code 0xb4");
        refused(&[(0x1006, 0, 0, 0)], "unknown code 0x1006");
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
        refused(&vec![RETURN; MAX_INSTRUCTIONS + 1], "513 instructions are more than 512");
    }
}
