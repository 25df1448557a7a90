//! Filters of clients: classic BPF (`Documentation/networking/filter.rst`), checked once, and run over each frame.
//!
//! Jumps lead forward only, so that a program ends after at most [`MAX_INSTRUCTIONS`]. What reads beyond a frame's end, or divides by
//! zero, rejects the frame.

/// The thread that captures runs the filters of all clients: fewer than Linux allows (4096), so that none of them can stop it.
pub const MAX_INSTRUCTIONS: usize = 512;
/// Words of memory (`BPF_MEMWORDS`).
const WORDS: usize = 16;

/// Why a program is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("the filter has {0} instructions, which must be at most {MAX_INSTRUCTIONS}")]
    TooLong(usize),
    #[error("instruction {0} of the filter is not one of BPF, or leads outside of the filter or its memory")]
    Invalid(usize),
    #[error("the filter does not end with a return")]
    Endless,
}

/// A valid program. Without instructions, it passes all frames.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Program(Vec<Instruction>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Instruction {
    Load(Value),
    LoadX(Value),
    Store(usize),
    StoreX(usize),
    Calculate(Operation, Operand),
    Negate,
    /// Over so many instructions.
    Jump(usize),
    JumpIf(Condition, Operand, u8, u8),
    Return(Operand),
    ToX,
    FromX,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Value {
    Constant(u32),
    Memory(usize),
    /// Of the frame, on the wire.
    Length,
    /// So many bytes of the frame, at an offset.
    At(usize, u32),
    /// Likewise, behind X.
    Behind(usize, u32),
    /// Length of the IPv4 header at an offset.
    HeaderLength(u32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operand {
    Constant(u32),
    /// The index register; of a return, the accumulator.
    Register,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Add,
    Subtract,
    Multiply,
    Divide,
    Remainder,
    And,
    Or,
    Xor,
    ShiftLeft,
    ShiftRight,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Condition {
    Equal,
    Greater,
    NotLess,
    AnyBit,
}

impl Program {
    /// Decodes and checks instructions: code, jumps if true and if false, and a constant.
    pub fn decode(instructions: &[[u8; 8]]) -> Result<Self, Error> {
        if instructions.len() > MAX_INSTRUCTIONS {
            return Err(Error::TooLong(instructions.len()));
        }
        let decode = |(number, bytes): (usize, &[u8; 8])| {
            let behind = instructions.len() - number - 1;
            Instruction::decode(*bytes).filter(|decoded| decoded.reach() <= behind).ok_or(Error::Invalid(number))
        };
        let decoded = instructions.iter().enumerate().map(decode).collect::<Result<Vec<_>, _>>()?;
        match decoded.last() {
            None | Some(Instruction::Return(_)) => Ok(Self(decoded)),
            Some(_) => Err(Error::Endless),
        }
    }

    /// How many bytes of a frame to pass on: none, if it is rejected. `length`: that on the wire.
    pub fn run(&self, frame: &[u8], length: u32) -> u32 {
        let mut machine = Machine { frame, length, accumulator: 0, index: 0, memory: [0; WORDS] };
        let mut at = 0;
        while let Some(instruction) = self.0.get(at) {
            at += 1;
            match machine.execute(*instruction) {
                Some(Next::Skip(instructions)) => at += instructions,
                Some(Next::Return(bytes)) => return bytes,
                None => return 0,
            }
        }
        u32::MAX
    }
}

impl Instruction {
    fn decode([code_high, code, jt, jf, k @ ..]: [u8; 8]) -> Option<Self> {
        if code_high != 0 {
            return None;
        }
        let k = u32::from_be_bytes(k);
        let operand = if code & 0x08 == 0 { Operand::Constant(k) } else { Operand::Register };
        let word = usize::try_from(k).ok().filter(|word| *word < WORDS);
        match code & 0x07 {
            0 => Value::decode(code, k).map(Self::Load),
            1 => match Value::decode(code, k)? {
                value @ (Value::Constant(_) | Value::Memory(_) | Value::Length | Value::HeaderLength(_)) => {
                    Some(Self::LoadX(value))
                }
                Value::At(..) | Value::Behind(..) => None,
            },
            2 if code == 0x02 => word.map(Self::Store),
            3 if code == 0x03 => word.map(Self::StoreX),
            4 if code == 0x84 => Some(Self::Negate),
            4 => Some(Self::Calculate(Operation::decode(code >> 4, operand)?, operand)),
            5 if code == 0x05 => usize::try_from(k).ok().map(Self::Jump),
            5 => Some(Self::JumpIf(Condition::decode(code >> 4)?, operand, jt, jf)),
            6 if code == 0x06 => Some(Self::Return(Operand::Constant(k))),
            6 if code == 0x16 => Some(Self::Return(Operand::Register)),
            7 if code == 0x07 => Some(Self::ToX),
            7 if code == 0x87 => Some(Self::FromX),
            _ => None,
        }
    }

    /// How many instructions it may skip.
    fn reach(self) -> usize {
        match self {
            Self::Jump(instructions) => instructions.saturating_add(1),
            Self::JumpIf(_, _, jt, jf) => usize::from(jt.max(jf)) + 1,
            _ => 0,
        }
    }
}

impl Value {
    /// By the mode and the size of a load.
    fn decode(code: u8, k: u32) -> Option<Self> {
        let size = match code & 0x18 {
            0x00 => 4,
            0x08 => 2,
            0x10 => 1,
            _ => return None,
        };
        match (code & 0xe0, size) {
            (0x00, 4) => Some(Self::Constant(k)),
            (0x20, size) => Some(Self::At(size, k)),
            (0x40, size) => Some(Self::Behind(size, k)),
            (0x60, 4) => usize::try_from(k).ok().filter(|word| *word < WORDS).map(Self::Memory),
            (0x80, 4) => Some(Self::Length),
            // Only of the index register: class 1.
            (0xa0, 1) if code & 0x07 == 1 => Some(Self::HeaderLength(k)),
            _ => None,
        }
    }
}

impl Operation {
    fn decode(number: u8, operand: Operand) -> Option<Self> {
        let operation = match number {
            0x0 => Self::Add,
            0x1 => Self::Subtract,
            0x2 => Self::Multiply,
            0x3 => Self::Divide,
            0x4 => Self::Or,
            0x5 => Self::And,
            0x6 => Self::ShiftLeft,
            0x7 => Self::ShiftRight,
            0x9 => Self::Remainder,
            0xa => Self::Xor,
            _ => return None,
        };
        let is_valid = match (operation, operand) {
            (Self::Divide | Self::Remainder, Operand::Constant(divisor)) => divisor != 0,
            (Self::ShiftLeft | Self::ShiftRight, Operand::Constant(bits)) => bits < u32::BITS,
            _ => true,
        };
        is_valid.then_some(operation)
    }

    fn apply(self, left: u32, right: u32) -> Option<u32> {
        match self {
            Self::Add => Some(left.wrapping_add(right)),
            Self::Subtract => Some(left.wrapping_sub(right)),
            Self::Multiply => Some(left.wrapping_mul(right)),
            Self::Divide => left.checked_div(right),
            Self::Remainder => left.checked_rem(right),
            Self::And => Some(left & right),
            Self::Or => Some(left | right),
            Self::Xor => Some(left ^ right),
            Self::ShiftLeft => Some(left.checked_shl(right).unwrap_or_default()),
            Self::ShiftRight => Some(left.checked_shr(right).unwrap_or_default()),
        }
    }
}

impl Condition {
    const fn decode(number: u8) -> Option<Self> {
        match number {
            0x1 => Some(Self::Equal),
            0x2 => Some(Self::Greater),
            0x3 => Some(Self::NotLess),
            0x4 => Some(Self::AnyBit),
            _ => None,
        }
    }

    const fn holds(self, left: u32, right: u32) -> bool {
        match self {
            Self::Equal => left == right,
            Self::Greater => left > right,
            Self::NotLess => left >= right,
            Self::AnyBit => left & right != 0,
        }
    }
}

/// What follows an instruction.
enum Next {
    Skip(usize),
    Return(u32),
}

struct Machine<'a> {
    frame: &'a [u8],
    length: u32,
    accumulator: u32,
    index: u32,
    memory: [u32; WORDS],
}

impl Machine<'_> {
    /// `None`: the frame is rejected.
    fn execute(&mut self, instruction: Instruction) -> Option<Next> {
        match instruction {
            Instruction::Load(value) => self.accumulator = self.value(value)?,
            Instruction::LoadX(value) => self.index = self.value(value)?,
            Instruction::Store(word) => self.memory[word] = self.accumulator,
            Instruction::StoreX(word) => self.memory[word] = self.index,
            Instruction::Calculate(operation, operand) => {
                self.accumulator = operation.apply(self.accumulator, self.operand(operand))?;
            }
            Instruction::Negate => self.accumulator = self.accumulator.wrapping_neg(),
            Instruction::Jump(instructions) => return Some(Next::Skip(instructions)),
            Instruction::JumpIf(condition, operand, jt, jf) => {
                let holds = condition.holds(self.accumulator, self.operand(operand));
                return Some(Next::Skip(usize::from(if holds { jt } else { jf })));
            }
            Instruction::Return(Operand::Constant(bytes)) => return Some(Next::Return(bytes)),
            Instruction::Return(Operand::Register) => return Some(Next::Return(self.accumulator)),
            Instruction::ToX => self.index = self.accumulator,
            Instruction::FromX => self.accumulator = self.index,
        }
        Some(Next::Skip(0))
    }

    const fn operand(&self, operand: Operand) -> u32 {
        match operand {
            Operand::Constant(value) => value,
            Operand::Register => self.index,
        }
    }

    fn value(&self, value: Value) -> Option<u32> {
        match value {
            Value::Constant(value) => Some(value),
            Value::Memory(word) => Some(self.memory[word]),
            Value::Length => Some(self.length),
            Value::At(size, offset) => self.bytes(size, offset),
            Value::Behind(size, offset) => self.bytes(size, self.index.checked_add(offset)?),
            Value::HeaderLength(offset) => Some((self.bytes(1, offset)? & 0x0f) * 4),
        }
    }

    fn bytes(&self, size: usize, offset: u32) -> Option<u32> {
        let offset = usize::try_from(offset).ok()?;
        let bytes = self.frame.get(offset..offset.checked_add(size)?)?;
        Some(bytes.iter().fold(0, |number, byte| number << 8 | u32::from(*byte)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RETURN_A: [u8; 8] = [0, 0x16, 0, 0, 0, 0, 0, 0];

    fn instruction(code: u8, jumps: (u8, u8), k: u32) -> [u8; 8] {
        let mut bytes = [0, code, jumps.0, jumps.1, 0, 0, 0, 0];
        bytes[4..].copy_from_slice(&k.to_be_bytes());
        bytes
    }

    /// What the accumulator has behind these, of a frame of 60 bytes on the wire.
    fn result(instructions: &[(u8, u32)]) -> u32 {
        let decoded = instructions.iter().map(|(code, k)| instruction(*code, (0, 0), *k)).chain([RETURN_A]);
        let program = Program::decode(&decoded.collect::<Vec<_>>()).expect("it is valid");
        program.run(&[0x01, 0x02, 0x03, 0x04, 0x45, 0x06], 60)
    }

    #[test]
    fn loads_have_a_size_and_a_place() {
        assert_eq!(result(&[(0x20, 0)]), 0x0102_0304);
        assert_eq!(result(&[(0x28, 1)]), 0x0203);
        assert_eq!(result(&[(0x30, 5)]), 6);
        assert_eq!(result(&[(0x01, 2), (0x50, 1)]), 4);
        assert_eq!(result(&[(0x01, 2), (0x48, 1)]), 0x0445);
        assert_eq!(result(&[(0x80, 0)]), 60);
        assert_eq!(result(&[(0xb1, 4), (0x87, 0)]), 20, "length of an IPv4 header");
        assert_eq!(result(&[(0x00, 7), (0x02, 15), (0x00, 1), (0x60, 15)]), 7);
        assert_eq!(result(&[(0x01, 8), (0x03, 3), (0x61, 3), (0x87, 0)]), 8);
        // Beyond the end, and what Linux alone has.
        for (code, k) in [(0x20, 3), (0x28, 5), (0x30, 6), (0x30, u32::MAX), (0x20, 0xffff_f000), (0xb1, 6)] {
            assert_eq!(result(&[(code, k), (0x00, 1)]), 0, "{code:#x} {k}");
        }
        assert_eq!(result(&[(0x01, u32::MAX), (0x50, 1), (0x00, 1)]), 0, "X and the offset do not wrap");
    }

    #[test]
    fn numbers_are_calculated_with() {
        let of = |code, left, right| result(&[(0x00, left), (code, right)]);
        assert_eq!(of(0x04, u32::MAX, 3), 2);
        assert_eq!(of(0x14, 1, 2), u32::MAX);
        assert_eq!(of(0x24, 0x8000_0001, 2), 2);
        assert_eq!((of(0x34, 7, 2), of(0x94, 7, 4)), (3, 3));
        assert_eq!((of(0x44, 5, 2), of(0x54, 7, 2), of(0xa4, 7, 2)), (7, 2, 5));
        assert_eq!((of(0x64, 1, 31), of(0x74, 8, 3)), (1 << 31, 1));
        assert_eq!(of(0x84, 1, 0), u32::MAX);
        // With X.
        assert_eq!(result(&[(0x00, 9), (0x07, 0), (0x00, 1), (0x0c, 0)]), 10);
        assert_eq!(result(&[(0x00, 9), (0x01, 0), (0x3c, 0), (0x00, 1)]), 0, "division by zero");
        assert_eq!(result(&[(0x00, 9), (0x01, 32), (0x6c, 0)]), 0, "all bits are shifted out");
    }

    #[test]
    fn conditions_choose() {
        let of = |code, value| {
            let program = [
                instruction(0x00, (0, 0), value),
                instruction(code, (1, 0), 6),
                instruction(0x06, (0, 0), 0),
                instruction(0x06, (0, 0), 1),
            ];
            Program::decode(&program).expect("it is valid").run(&[], 0) == 1
        };
        assert_eq!([5, 6, 7].map(|value| of(0x15, value)), [false, true, false]);
        assert_eq!([5, 6, 7].map(|value| of(0x25, value)), [false, false, true]);
        assert_eq!([5, 6, 7].map(|value| of(0x35, value)), [false, true, true]);
        assert_eq!([1, 2, 12].map(|value| of(0x45, value)), [false, true, true]);
        let jump = [instruction(0x05, (0, 0), 1), instruction(0x06, (0, 0), 0), instruction(0x06, (0, 0), 9)];
        assert_eq!(Program::decode(&jump).expect("it is valid").run(&[], 0), 9);
    }

    #[test]
    fn what_is_not_valid_is_refused() {
        let behind = |code, jumps, k| Program::decode(&[instruction(code, jumps, k), RETURN_A]);
        let invalid = [
            (0x05, (0, 0), 1),
            (0x05, (0, 0), u32::MAX),
            (0x15, (1, 0), 0),
            (0x15, (0, 255), 0),
            (0x02, (0, 0), 16),
            (0x60, (0, 0), 16),
            (0x34, (0, 0), 0),
            (0x94, (0, 0), 0),
            (0x64, (0, 0), 32),
            (0x0e, (0, 0), 0),
            (0x18, (0, 0), 0),
            (0x21, (0, 0), 0),
            (0xb0, (0, 0), 0),
            (0xb4, (0, 0), 0),
            (0x55, (0, 0), 0),
        ];
        for (code, jumps, k) in invalid {
            assert_eq!(behind(code, jumps, k), Err(Error::Invalid(0)), "{code:#x}");
        }
        assert_eq!(Program::decode(&[[1, 0x06, 0, 0, 0, 0, 0, 0]]), Err(Error::Invalid(0)));
        assert_eq!(Program::decode(&[instruction(0x00, (0, 0), 1)]), Err(Error::Endless));
        assert!(Program::decode(&vec![RETURN_A; MAX_INSTRUCTIONS]).is_ok());
        assert_eq!(Program::decode(&vec![RETURN_A; MAX_INSTRUCTIONS + 1]), Err(Error::TooLong(MAX_INSTRUCTIONS + 1)));
        assert_eq!(Program::decode(&[]).expect("it is valid").run(&[1], 1), u32::MAX, "without a filter");
    }

    proptest! {
        #[test]
        fn whatever_is_decoded_ends(
            instructions in prop::collection::vec((0_u8..=0xff, 0_u8..4, 0_u8..4, 0_u32..40), 0..40),
            frame in prop::collection::vec(any::<u8>(), 0..64),
        ) {
            let mut instructions: Vec<[u8; 8]> =
                instructions.iter().map(|(code, jt, jf, k)| instruction(*code, (*jt, *jf), *k)).collect();
            instructions.retain(|instruction| Instruction::decode(*instruction).is_some());
            instructions.extend([RETURN_A; 41]);
            let program = Program::decode(&instructions).expect("its jumps are short");
            program.run(&frame, 64);
        }
    }
}
