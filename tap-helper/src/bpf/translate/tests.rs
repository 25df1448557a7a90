//! Random cBPF programs, run by a cBPF interpreter and, translated, by an eBPF interpreter: both agree.

use podtap_model::bounds::MAX_INSTRUCTIONS;
use proptest::prelude::*;

use super::*;

fn i(code: u16, jt: u8, jf: u8, k: u32) -> Instruction {
    Instruction { code, jt, jf, k }
}

/// A frame as the kernel has it: its bytes, and an offloaded VLAN tag (type and TCI).
#[derive(Clone, Debug)]
struct Frame {
    bytes: Vec<u8>,
    tag: Option<(u16, u16)>,
}

impl Frame {
    /// As on the wire.
    fn whole(&self) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        if let Some((kind, number)) = self.tag {
            let tag = [kind.to_be_bytes(), number.to_be_bytes()].concat();
            bytes.splice(12..12, tag);
        }
        bytes
    }
}

fn big_endian(bytes: &[u8], at: u32, size: u32) -> Option<u32> {
    let at = usize::try_from(at).ok()?;
    let part = bytes.get(at..at.checked_add(usize::try_from(size).ok()?)?)?;
    Some(part.iter().fold(0, |value, byte| value << 8 | u32::from(*byte)))
}

/// Whether a cBPF program matches a frame, as bpf(4) defines it, without any code of the translator.
fn classic(program: &[Instruction], frame: &[u8]) -> bool {
    let (mut a, mut x, mut memory, mut at) = (0_u32, 0_u32, [0_u32; 16], 0);
    loop {
        let Instruction { code, jt, jf, k } = program[at];
        at += 1;
        let word = |k: u32| usize::try_from(k).expect("a small number");
        let operand = if code & 8 == 0 { k } else { x };
        let load = |offset: u32| {
            big_endian(
                frame,
                offset,
                match code & 0x18 {
                    0 => 4,
                    8 => 2,
                    _ => 1,
                },
            )
        };
        let length = u32::try_from(frame.len()).expect("a small number");
        match code {
            0x00 => a = k,
            0x01 => x = k,
            0x20 | 0x28 | 0x30 => match load(k) {
                Some(value) => a = value,
                None => return false,
            },
            0x40 | 0x48 | 0x50 => match x.checked_add(k).and_then(load) {
                Some(value) => a = value,
                None => return false,
            },
            0xb1 => match big_endian(frame, k, 1) {
                Some(value) => x = (value & 15) * 4,
                None => return false,
            },
            0x60 => a = memory[word(k)],
            0x61 => x = memory[word(k)],
            0x80 => a = length,
            0x81 => x = length,
            0x02 => memory[word(k)] = a,
            0x03 => memory[word(k)] = x,
            0x04 | 0x0c => a = a.wrapping_add(operand),
            0x14 | 0x1c => a = a.wrapping_sub(operand),
            0x24 | 0x2c => a = a.wrapping_mul(operand),
            0x34 | 0x3c | 0x94 | 0x9c if operand == 0 => return false,
            0x34 | 0x3c => a /= operand,
            0x94 | 0x9c => a %= operand,
            0x44 | 0x4c => a |= operand,
            0x54 | 0x5c => a &= operand,
            0xa4 | 0xac => a ^= operand,
            0x64 | 0x6c => a = a.checked_shl(operand).unwrap_or(0),
            0x74 | 0x7c => a = a.checked_shr(operand).unwrap_or(0),
            0x84 => a = a.wrapping_neg(),
            0x05 => at += word(k),
            0x15 | 0x1d => at += usize::from(if a == operand { jt } else { jf }),
            0x25 | 0x2d => at += usize::from(if a > operand { jt } else { jf }),
            0x35 | 0x3d => at += usize::from(if a >= operand { jt } else { jf }),
            0x45 | 0x4d => at += usize::from(if a & operand != 0 { jt } else { jf }),
            0x06 => return k != 0,
            0x16 => return a != 0,
            0x07 => x = a,
            0x87 => a = x,
            _ => panic!("unknown code {code:#x}"),
        }
    }
}

/// Whether the translation matches. The `struct __sk_buff` is at 1 << 32, the stack ends at 2 << 32.
#[expect(clippy::cast_possible_truncation, reason = "as registers do")]
fn extended(program: &[Insn], frame: &Frame) -> bool {
    const CONTEXT: u64 = 1 << 32;
    const TOP: u64 = 2 << 32;
    let mut register = [0_u64; 11];
    (register[1], register[10]) = (CONTEXT, TOP);
    // The program must not rely on the initial contents.
    let mut stack = [0xa5_u8; 512];
    let mut at = 0;
    loop {
        let Insn { code, dst, src, off, imm } = program[at];
        at += 1;
        let (dst, from) = (usize::from(dst), register[usize::from(src)]);
        let operand = if code & 8 == 0 { i64::from(imm).cast_unsigned() } else { from };
        let narrow = operand as u32;
        let low = register[dst] as u32;
        let slot = |address: u64| usize::try_from(512 - (TOP - address)).expect("the address is on the stack");
        let mut go = |condition: bool| {
            if condition {
                at = at.checked_add_signed(isize::from(off)).expect("jumps go forward");
            }
        };
        match code {
            0xbf => register[dst] = from,
            0x07 => register[dst] = register[dst].wrapping_add(operand),
            0xb4 | 0xbc => register[dst] = narrow.into(),
            0x04 | 0x0c => register[dst] = low.wrapping_add(narrow).into(),
            0x14 | 0x1c => register[dst] = low.wrapping_sub(narrow).into(),
            0x24 | 0x2c => register[dst] = low.wrapping_mul(narrow).into(),
            0x34 | 0x3c => register[dst] = (low / narrow).into(),
            0x94 | 0x9c => register[dst] = (low % narrow).into(),
            0x44 | 0x4c => register[dst] = (low | narrow).into(),
            0x54 | 0x5c => register[dst] = (low & narrow).into(),
            0xa4 | 0xac => register[dst] = (low ^ narrow).into(),
            0x64 | 0x6c => register[dst] = low.wrapping_shl(narrow).into(),
            0x74 | 0x7c => register[dst] = low.wrapping_shr(narrow).into(),
            0x84 => register[dst] = low.wrapping_neg().into(),
            0xdc if imm == 16 => register[dst] = (low as u16).to_be().into(),
            0xdc => register[dst] = low.to_be().into(),
            0x61 if from == CONTEXT => {
                let (kind, number) = frame.tag.unwrap_or_default();
                register[dst] = match off {
                    0 => frame.bytes.len() as u64,
                    20 => u64::from(frame.tag.is_some()),
                    24 => number.into(),
                    28 => kind.to_be().into(),
                    _ => panic!("reads __sk_buff at {off}"),
                };
            }
            0x61 | 0x69 | 0x71 => {
                let start = slot(from.wrapping_add_signed(off.into()));
                let size = if code == 0x61 {
                    4
                } else if code == 0x69 {
                    2
                } else {
                    1
                };
                let mut value = [0; 8];
                value[..size].copy_from_slice(&stack[start..start + size]);
                register[dst] = u64::from_le_bytes(value);
            }
            0x63 => {
                let start = slot(register[dst].wrapping_add_signed(off.into()));
                stack[start..start + 4].copy_from_slice(&(from as u32).to_le_bytes());
            }
            0x85 => {
                assert_eq!((imm, register[1]), (26, CONTEXT));
                let (offset, size) = (register[2] as usize, register[4] as usize);
                assert!(register[2] < 1 << 31, "the kernel takes offsets for signed");
                let start = slot(register[3]);
                match frame.bytes.get(offset..offset + size) {
                    Some(part) => {
                        stack[start..start + size].copy_from_slice(part);
                        register[0] = 0;
                    }
                    None => register[0] = (-14_i64).cast_unsigned(),
                }
                register[1..6].fill(0xdead_dead_dead_dead);
            }
            0x95 => return register[0] != 0,
            0x05 => go(true),
            0x15 => go(register[dst] == operand),
            0x16 | 0x1e => go(low == narrow),
            0x56 => go(low != narrow),
            0x26 | 0x2e => go(low > narrow),
            0x36 | 0x3e => go(low >= narrow),
            0x46 | 0x4e => go(low & narrow != 0),
            0xa6 => go(low < narrow),
            _ => panic!("unknown code {code:#x}"),
        }
    }
}

/// Loads from an offloaded tag are translated if they are aligned to its fields; others do not match.
fn reads_unaligned_tag(program: &[Instruction]) -> bool {
    program.iter().any(|instruction| match instruction.code {
        0x20 => (9..16).contains(&instruction.k) && instruction.k != 12,
        0x28 => matches!(instruction.k, 11 | 13 | 15),
        0x40 | 0x48 => true,
        _ => false,
    })
}

const CODES: [u16; 47] = [
    0x00, 0x01, 0x20, 0x28, 0x30, 0x40, 0x48, 0x50, 0x60, 0x61, 0x80, 0x81, 0xb1, 0x02, 0x03, 0x04, 0x0c, 0x14, 0x1c,
    0x24, 0x2c, 0x34, 0x3c, 0x94, 0x9c, 0x44, 0x4c, 0x54, 0x5c, 0xa4, 0xac, 0x64, 0x6c, 0x74, 0x7c, 0x84, 0x05, 0x15,
    0x1d, 0x25, 0x35, 0x3d, 0x45, 0x4d, 0x07, 0x87, 0x16,
];

fn instruction() -> impl Strategy<Value = Instruction> {
    let k = prop_oneof![0..20_u32, 0..80_u32, any::<u32>()];
    (prop::sample::select(&CODES[..]), 0..6_u8, 0..6_u8, k).prop_map(|(code, jt, jf, k)| {
        let k = match code {
            0x60 | 0x61 | 0x02 | 0x03 => k % 16,
            0x64 | 0x74 => k % 32,
            0x34 | 0x94 => k.max(1),
            0x20 | 0x28 | 0x30 | 0x40 | 0x48 | 0x50 | 0xb1 => k >> (u32::from(k > 100) * 16),
            0x05 => k % 6,
            _ => k,
        };
        i(code, jt, jf, k)
    })
}

fn program() -> impl Strategy<Value = Vec<Instruction>> {
    prop::collection::vec(instruction(), 1..40).prop_map(|random| {
        // Memory must be written before it is read.
        let mut program: Vec<_> = (0..16).map(|cell| i(0x02, 0, 0, cell)).chain(random).collect();
        // Targets for all jumps.
        program.extend([i(0x16, 0, 0, 0), i(6, 0, 0, 0), i(6, 0, 0, 1), i(6, 0, 0, 0), i(6, 0, 0, 1), i(6, 0, 0, 9)]);
        program
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 5000, ..ProptestConfig::default() })]

    #[test]
    fn translation_matches_like_the_original(
        program in program(),
        bytes in prop::collection::vec(any::<u8>(), 14..80),
        tag in prop::option::of(any::<(u16, u16)>()),
    ) {
        let frame = Frame { bytes, tag: tag.filter(|_| !reads_unaligned_tag(&program)) };
        let translated = translate(&program).expect("a valid program");
        prop_assert_eq!(extended(&translated, &frame), classic(&program, &frame.whole()));
    }
}

/// What `tcpdump -y EN10MB -dd 'vlan 5 and tcp port 80'` prints (libpcap 1.10.3), in part.
#[test]
fn reads_offloaded_tags_where_compilers_expect_them() {
    let program = [
        i(0x28, 0, 0, 12),
        i(0x15, 0, 5, 0x8100),
        i(0x28, 0, 0, 14),
        i(0x54, 0, 0, 0xfff),
        i(0x15, 0, 2, 5),
        i(0x28, 0, 0, 16),
        i(0x15, 1, 0, 0x800),
        i(6, 0, 0, 0),
        i(6, 0, 0, 262_144),
    ];
    let translated = translate(&program).expect("a valid program");
    let untagged = [vec![0; 12], vec![8, 0], vec![0; 46]].concat();
    let matches = |tag, bytes: &[u8]| extended(&translated, &Frame { bytes: bytes.to_vec(), tag });
    assert!(matches(Some((0x8100, 0x2005)), &untagged), "offloaded");
    assert!(
        !matches(Some((0x8100, 6)), &untagged) && !matches(Some((0x88a8, 5)), &untagged) && !matches(None, &untagged)
    );
    let inside = Frame { bytes: untagged.clone(), tag: Some((0x8100, 5)) }.whole();
    assert!(matches(None, &inside), "in the frame");
}

#[test]
fn rejects_invalid_programs() {
    assert_eq!(translate(&[]), Err(ProgramError::Length(0)));
    assert_eq!(translate(&[i(0x60, 0, 0, 16), i(6, 0, 0, 1)]), Err(ProgramError::Memory(0)));
}

#[test]
fn rejects_or_translates_every_opcode_and_operand() {
    for code in 0..=u16::MAX {
        for k in [0, 1, 15, 16, 31, 32, u32::MAX] {
            let _ = translate(&[i(code, 0, 0, k), i(6, 0, 0, 1)]);
        }
    }
}

#[test]
fn the_longest_jump_fits_an_offset() {
    // Over as many as possible of the instruction with the longest translation: a byte at an index.
    let between = MAX_INSTRUCTIONS - 3;
    let mut program = vec![i(0x15, 1, 0, 0), i(0x05, 0, 0, u32::try_from(between - 1).expect("a small number"))];
    program.extend(vec![i(0x50, 0, 0, 40); between]);
    program.push(i(6, 0, 0, 1));
    let translated = translate(&program).expect("a valid program");
    let longest = translated.iter().map(|insn| insn.off).max();
    assert!(translated.len() > 20_000 && longest < Some(i16::MAX), "{} {longest:?}", translated.len());
}

#[test]
fn unreachable_instructions_are_omitted() {
    let program = [i(0x05, 0, 0, 1), i(0x87, 0, 0, 0), i(6, 0, 0, 1)];
    let translated = translate(&program).expect("a valid program");
    assert_eq!(translated.len(), translate(&program[2..]).expect("a valid program").len() + 1);
}
