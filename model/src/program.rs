//! Compiled filter expressions: programs of classic BPF, and which of them are safe to run. The rules are those of the kernel
//! (`bpf_check_classic` and `check_load_and_stores`, net/core/filter.c) without its extensions, which reach beyond the frame.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::bounds::MAX_INSTRUCTIONS;

/// Bytes of an encoded instruction.
const INSTRUCTION: usize = 8;

/// An instruction of classic BPF, `struct sock_filter` of include/uapi/linux/filter.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Instruction {
    /// Operation code.
    pub code: u16,
    /// Instructions to skip if the condition of a jump holds.
    pub jt: u8,
    /// Instructions to skip if it does not.
    pub jf: u8,
    /// Operand.
    pub k: u32,
}

/// Identifies a program by its content: `sha256:` and the digest of its encoding ([`Program::encode`]) in hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ProgramId(String);

impl ProgramId {
    /// The identifier of the program whose encoding has the SHA-256 digest.
    #[must_use]
    pub fn from_digest(digest: [u8; 32]) -> Self {
        let mut id = "sha256:".to_owned();
        for byte in digest {
            let digit = |value: u8| char::from_digit(value.into(), 16).unwrap_or_default();
            id.extend([digit(byte >> 4), digit(byte & 0xf)]);
        }
        Self(id)
    }
}

impl TryFrom<String> for ProgramId {
    type Error = ProgramError;

    fn try_from(text: String) -> Result<Self, ProgramError> {
        let digits = text.strip_prefix("sha256:").unwrap_or_default();
        let is_digest = digits.len() == 64 && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if is_digest { Ok(Self(text)) } else { Err(ProgramError::Identifier(text)) }
    }
}

impl From<ProgramId> for String {
    fn from(id: ProgramId) -> Self {
        id.0
    }
}

impl fmt::Display for ProgramId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// A compiled filter expression. A result other than 0 is a match.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Program {
    /// Identifies it by its content.
    pub id: ProgramId,
    /// Its instructions in base64, 8 bytes each: code (16 bits), jt, jf, k (32 bits), in network byte order.
    #[serde(rename = "code", with = "code")]
    #[cfg_attr(feature = "schema", schemars(with = "String"))]
    pub instructions: Vec<Instruction>,
}

impl Program {
    /// The bytes of instructions, 8 each: code, jt, jf and k in network byte order.
    #[must_use]
    pub fn encode(instructions: &[Instruction]) -> Vec<u8> {
        let encode = |&Instruction { code, jt, jf, k }: &Instruction| {
            let mut bytes = [0; INSTRUCTION];
            bytes[..2].copy_from_slice(&code.to_be_bytes());
            bytes[2] = jt;
            bytes[3] = jf;
            bytes[4..].copy_from_slice(&k.to_be_bytes());
            bytes
        };
        instructions.iter().flat_map(encode).collect()
    }

    fn decode(bytes: &[u8]) -> Result<Vec<Instruction>, ProgramError> {
        let (chunks, rest) = bytes.as_chunks::<INSTRUCTION>();
        if !rest.is_empty() {
            return Err(ProgramError::Encoding);
        }
        let decode = |&[code_high, code_low, jt, jf, k0, k1, k2, k3]: &[u8; INSTRUCTION]| Instruction {
            code: u16::from_be_bytes([code_high, code_low]),
            jt,
            jf,
            k: u32::from_be_bytes([k0, k1, k2, k3]),
        };
        Ok(chunks.iter().map(decode).collect())
    }
}

mod code {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    use super::{Instruction, Program, ProgramError};

    pub fn serialize<S: Serializer>(instructions: &[Instruction], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(Program::encode(instructions)))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Instruction>, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = STANDARD.decode(text).map_err(|_| D::Error::custom(ProgramError::Encoding))?;
        Program::decode(&bytes).map_err(D::Error::custom)
    }
}

impl From<(u16, u8, u8, u32)> for Instruction {
    fn from((code, jt, jf, k): (u16, u8, u8, u32)) -> Self {
        Self { code, jt, jf, k }
    }
}

/// Why a program is invalid. Positions count instructions from 0.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProgramError {
    /// The identifier is not one.
    #[error("{0:?} is not the identifier of a program: sha256: and 64 hexadecimal digits")]
    Identifier(String),
    /// The code is not base64 of whole instructions.
    #[error("the code of the program is not base64 of 8 bytes per instruction")]
    Encoding,
    /// It has no instructions, or too many.
    #[error("it has {0} instructions; 1 to {MAX_INSTRUCTIONS} are allowed")]
    Length(usize),
    /// An operation code that classic BPF does not have.
    #[error("instruction {0} has the unknown code {1:#x}")]
    Code(usize, u16),
    /// A load from outside of the frame.
    #[error("instruction {0} reads outside of the frame")]
    Outside(usize),
    /// A division by the constant 0.
    #[error("instruction {0} divides by zero")]
    Division(usize),
    /// A shift by a constant above 31.
    #[error("instruction {0} shifts by more than 31")]
    Shift(usize),
    /// A load from a memory cell that some path does not write.
    #[error("instruction {0} reads memory that is not written on every path")]
    Unwritten(usize),
    /// A memory cell that does not exist.
    #[error("instruction {0} uses memory that does not exist")]
    Memory(usize),
    /// A loop, as libpcap generates for `protochain`.
    #[error("instruction {0} jumps backwards, as protochain does")]
    Backwards(usize),
    /// A path that leaves the program.
    #[error("instruction {0} leads beyond the end")]
    End(usize),
}

/// Loads from here upwards are negative offsets: extensions of the kernel (`SKF_LL_OFF` and others), which libpcap uses in live
/// captures only.
const FIRST_EXTENSION: u32 = 1 << 31;
/// The bits of a code with the arithmetic operation (`BPF_OP`).
const OPERATION: u16 = 0xf0;

/// What matters of an instruction for safety.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Always safe.
    Plain,
    /// Reads the frame at a fixed offset, or at one added to the index register.
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

/// Whether the program is safe to run: it reads nothing but the frame, and it ends. The controller, which compiles programs, and the
/// tap-helper, which runs them, use the same check, so that no program is requested that nodes refuse.
pub fn check_program(program: &[Instruction]) -> Result<(), ProgramError> {
    if program.is_empty() || program.len() > MAX_INSTRUCTIONS {
        return Err(ProgramError::Length(program.len()));
    }
    // The cells that are written on every path to an instruction.
    let mut written = vec![u16::MAX; program.len()];
    written[0] = 0;
    for (index, instruction) in program.iter().enumerate() {
        let Instruction { code, jt, jf, k } = *instruction;
        let mut cells = written[index];
        let cell = || 1u16.checked_shl(k).ok_or(ProgramError::Memory(index));
        // How many instructions each branch skips.
        let mut skips = [0, 0];
        match kind(code).ok_or(ProgramError::Code(index, code))? {
            Kind::Frame if k >= FIRST_EXTENSION => return Err(ProgramError::Outside(index)),
            Kind::Divide if k == 0 => return Err(ProgramError::Division(index)),
            Kind::Shift if k >= 32 => return Err(ProgramError::Shift(index)),
            Kind::Load if cells & cell()? == 0 => return Err(ProgramError::Unwritten(index)),
            Kind::Plain | Kind::Frame | Kind::Divide | Kind::Shift | Kind::Load => {}
            Kind::Store => cells |= cell()?,
            // The kernel takes the distance as unsigned; other readers take this one as negative.
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
    fn programs_of_libpcap() {
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
        // tcpdump -dd 'ip[2:2] > 2 * len', with memory and arithmetic, as a compiler could generate it.
        let memory =
            [(0x80, 0, 0, 0), (0x24, 0, 0, 2), (0x02, 0, 0, 3), (0x61, 0, 0, 3), (0x87, 0, 0, 0), (0x16, 0, 0, 0)];
        assert_eq!(check_program(&program(&memory)), Ok(()));
    }

    #[track_caller]
    fn refused(instructions: &[(u16, u8, u8, u32)], words: &str) {
        let why = check_program(&program(instructions)).expect_err("it is not safe").to_string();
        assert!(why.contains(words), "expected “{words}” in “{why}”");
    }

    #[test]
    fn unsafe_programs() {
        const RETURN: (u16, u8, u8, u32) = (0x06, 0, 0, 1);
        refused(&[(0x20, 0, 0, 12)], "instruction 0 leads beyond the end");
        refused(&[(0x15, 0, 1, 0), RETURN], "instruction 0 leads beyond the end");
        refused(&[(0x05, 0, 0, 1), RETURN], "leads beyond the end");
        refused(&[(0x05, 0, 0, i32::MAX.cast_unsigned()), RETURN], "leads beyond the end");
        refused(&[RETURN, (0x05, 0, 0, u32::MAX), RETURN], "instruction 1 jumps backwards, as protochain does");
        // Even where no path leads there.
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
        refused(&[(0x60, 0, 0, 16), RETURN], "memory that does not exist");
        refused(&[(0x02, 0, 0, 16), RETURN], "memory that does not exist");
        refused(&[(0x60, 0, 0, 0), RETURN], "not written");
        // Written on one of two paths only.
        refused(&[(0x15, 0, 1, 0), (0x02, 0, 0, 0), (0x60, 0, 0, 0), RETURN], "instruction 2 reads memory");
        // SKF_AD_OFF + SKF_AD_IFINDEX.
        refused(&[(0x20, 0, 0, 0xffff_f008), RETURN], "outside of the frame");
        refused(&[(0xb1, 0, 0, 1 << 31), RETURN], "outside of the frame");
        refused(&[], "0 instructions; 1 to 512 are allowed");
        refused(&vec![RETURN; MAX_INSTRUCTIONS + 1], "513 instructions; 1 to 512 are allowed");
    }

    #[test]
    fn encoding() {
        let instructions = program(&[(0x28, 1, 2, 0x0102_0304), (0x06, 0, 0, u32::MAX)]);
        let program = Program { id: ProgramId::from_digest([0xab; 32]), instructions };
        let json = serde_json::to_value(&program).expect("a program");
        assert_eq!(
            json,
            serde_json::json!({"id": format!("sha256:{}", "ab".repeat(32)), "code": "ACgBAgECAwQABgAA/////w=="})
        );
        assert_eq!(serde_json::from_value::<Program>(json).expect("a program"), program);
        for (id, code) in [("sha256:ab", "ACgBAgECAwQ="), (&*program.id.0, "ACgB"), (&*program.id.0, "?")] {
            let json = serde_json::json!({"id": id, "code": code});
            assert!(serde_json::from_value::<Program>(json.clone()).is_err(), "{json}");
        }
    }
}
