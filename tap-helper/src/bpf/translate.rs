//! Translates classic BPF (cBPF), as libpcap compiles it, to the body of an eBPF function.
//!
//! The kernel's own translation (`bpf_convert_filter`, net/core/filter.c) is for socket filters. In a classifier, loads use
//! `bpf_skb_load_bytes`, and an offloaded VLAN tag appears where it was in the frame. The program comes from users:
//! `check_program` validates it before translation, and the kernel's verifier checks the result.

use podtap_model::{Instruction, ProgramError, check_program};

use super::classic::{
    ABS, ALU, BYTE, DIV, FROM_X, HALF, IMM, IND, JA, JMP, LD, LDX, LEN, LSH, MEM, MISC, MOD, MODE, MSH, NEG, RET, RSH,
    SIZE, ST, STX, WORD, reachable,
};

/// An eBPF instruction (`struct bpf_insn`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Insn {
    pub code: u8,
    pub dst: u8,
    pub src: u8,
    pub off: i16,
    pub imm: i32,
}

// Registers. R6 to R9 are preserved across calls.
const R0: u8 = 0;
const R1: u8 = 1;
const R2: u8 = 2;
const R3: u8 = 3;
const R4: u8 = 4;
const FRAME: u8 = 6;
/// 4 if the outer VLAN tag is offloaded, 0 otherwise.
const SHIFT: u8 = 7;
const A: u8 = 8;
const X: u8 = 9;
const STACK: u8 = 10;
/// Stack slot for loads, above the 16 words of scratch memory.
const LOADED: i16 = -8;
const MEMORY: i16 = -8 - 64;

// eBPF opcodes (include/uapi/linux/bpf.h). Operations of arithmetic and comparison have the same codes as in cBPF.
const MOV32: u8 = 0xb4;
const MOV32_X: u8 = 0xbc;
const MOV64_X: u8 = 0xbf;
const ADD64: u8 = 0x07;
const ADD32_X: u8 = 0x0c;
const ADD32: u8 = 0x04;
const SUB32_X: u8 = 0x1c;
const AND32: u8 = 0x54;
const LSH32: u8 = 0x64;
const OR32_X: u8 = 0x4c;
const TO_BIG_ENDIAN: u8 = 0xdc;
const LOAD_WORD: u8 = 0x61;
const LOAD_HALF: u8 = 0x69;
const LOAD_BYTE: u8 = 0x71;
const STORE_WORD: u8 = 0x63;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
const GOTO: u8 = 0x05;
const JEQ64: u8 = 0x15;
const JEQ32: u8 = 0x16;
const JNE32: u8 = 0x56;
const JGT32: u8 = 0x26;
const JLT32: u8 = 0xa6;
const JMP32: u8 = 0x06;
/// `bpf_skb_load_bytes`.
const LOAD_BYTES: i32 = 26;

// Offsets in `struct __sk_buff`.
const SKB_LEN: i16 = 0;
const SKB_VLAN_PRESENT: i16 = 20;
const SKB_VLAN_TCI: i16 = 24;
const SKB_VLAN_PROTO: i16 = 28;

/// The body of `int expression(struct __sk_buff *)`: returns 1 if the cBPF program returns anything but 0.
pub(super) fn translate(program: &[Instruction]) -> Result<Vec<Insn>, ProgramError> {
    check_program(program)?;
    let reached = reachable(program);
    let mut output = Output { insns: Vec::new() };
    output.prologue();
    // Where each cBPF instruction begins, and the jumps to resolve: their position and cBPF target.
    let mut starts = vec![0; program.len()];
    let mut jumps: Vec<(usize, usize)> = Vec::new();
    for (number, instruction) in program.iter().enumerate() {
        starts[number] = output.insns.len();
        if reached[number] {
            output.instruction(*instruction, |at, target| jumps.push((at, number + 1 + target)));
        }
    }
    for (at, target) in jumps {
        output.insns[at].off = near(starts[target] - at - 1);
    }
    Ok(output.insns)
}

struct Output {
    insns: Vec<Insn>,
}

impl Output {
    fn emit(&mut self, code: u8, dst: u8, src: u8, off: i16, imm: i32) {
        self.insns.push(Insn { code, dst, src, off, imm });
    }

    fn prologue(&mut self) {
        self.emit(MOV64_X, FRAME, R1, 0, 0);
        self.emit(MOV32, A, 0, 0, 0);
        self.emit(MOV32, X, 0, 0, 0);
        self.emit(MOV32, SHIFT, 0, 0, 0);
        self.emit(LOAD_WORD, R2, R1, SKB_VLAN_PRESENT, 0);
        self.emit(JEQ32, R2, 0, 1, 0);
        self.emit(MOV32, SHIFT, 0, 0, 4);
    }

    fn no_match(&mut self) {
        self.emit(MOV32, R0, 0, 0, 0);
        self.emit(EXIT, 0, 0, 0, 0);
    }

    /// One cBPF instruction. `jump` gets the position of a jump, and how many cBPF instructions it skips.
    fn instruction(&mut self, Instruction { code, jt, jf, k }: Instruction, jump: impl FnMut(usize, usize)) {
        let imm = k.cast_signed();
        match (code & 7, code & MODE) {
            (LD, IMM) => self.emit(MOV32, A, 0, 0, imm),
            (LDX, IMM) => self.emit(MOV32, X, 0, 0, imm),
            (LD, ABS) => self.load_absolute(k, code & SIZE),
            (LD, IND) => {
                // X + k must not wrap around into the frame.
                self.emit(JLT32, X, 0, 2, 1 << 24);
                self.no_match();
                self.emit(MOV32_X, R2, X, 0, 0);
                self.emit(ADD32, R2, 0, 0, imm);
                self.load_anywhere(code & SIZE);
            }
            (LD, MEM) => self.emit(LOAD_WORD, A, STACK, slot(k), 0),
            (LDX, MEM) => self.emit(LOAD_WORD, X, STACK, slot(k), 0),
            (LD | LDX, LEN) => {
                let register = if code & 7 == LD { A } else { X };
                self.emit(LOAD_WORD, register, FRAME, SKB_LEN, 0);
                self.emit(ADD32_X, register, SHIFT, 0, 0);
            }
            (LDX, MSH) => {
                // X = 4 * (byte & 15); A is preserved.
                self.emit(MOV32_X, X, A, 0, 0);
                self.load_absolute(k, BYTE);
                self.emit(MOV32_X, R1, A, 0, 0);
                self.emit(MOV32_X, A, X, 0, 0);
                self.emit(MOV32_X, X, R1, 0, 0);
                self.emit(AND32, X, 0, 0, 15);
                self.emit(LSH32, X, 0, 0, 2);
            }
            (ST, _) => self.emit(STORE_WORD, STACK, A, slot(k), 0),
            (STX, _) => self.emit(STORE_WORD, STACK, X, slot(k), 0),
            (ALU, _) => self.arithmetic(code, imm),
            (JMP, _) => self.jump(code, imm, (jt, jf), jump),
            (RET, _) => {
                if code & 0x18 == 0 {
                    self.emit(MOV32, R0, 0, 0, i32::from(k != 0));
                } else {
                    self.emit(MOV32, R0, 0, 0, 0);
                    self.emit(JEQ32, A, 0, 1, 0);
                    self.emit(MOV32, R0, 0, 0, 1);
                }
                self.emit(EXIT, 0, 0, 0, 0);
            }
            _ if code == MISC => self.emit(MOV32_X, X, A, 0, 0),
            _ => self.emit(MOV32_X, A, X, 0, 0),
        }
    }

    fn arithmetic(&mut self, code: u16, imm: i32) {
        let operation = code & 0xf0;
        if code & FROM_X != 0 && matches!(operation, DIV | MOD) {
            self.emit(JNE32, X, 0, 2, 0);
            self.no_match();
        }
        if code & FROM_X != 0 && matches!(operation, LSH | RSH) {
            // libpcap's interpreter yields 0 for shifts by 32 or more; eBPF masks the shift.
            self.emit(JLT32, X, 0, 2, 32);
            self.emit(MOV32, A, 0, 0, 0);
            self.emit(GOTO, 0, 0, 1, 0);
        }
        // cBPF and 32-bit eBPF arithmetic have the same opcodes.
        let code = u8::try_from(code).unwrap_or_default();
        let from_x = u16::from(code) & FROM_X != 0;
        self.emit(code, A, if from_x { X } else { 0 }, 0, if from_x || operation == NEG { 0 } else { imm });
    }

    fn jump(&mut self, code: u16, imm: i32, (jt, jf): (u8, u8), mut jump: impl FnMut(usize, usize)) {
        if code & 0xf0 == JA {
            jump(self.insns.len(), usize::try_from(imm).unwrap_or_default());
            self.emit(GOTO, 0, 0, 0, 0);
            return;
        }
        let from_x = code & FROM_X != 0;
        // The same operations in class JMP32.
        let code = u8::try_from(code & 0xf8).unwrap_or_default() | JMP32;
        jump(self.insns.len(), usize::from(jt));
        self.emit(code, A, if from_x { X } else { 0 }, 0, if from_x { 0 } else { imm });
        if jf != 0 {
            jump(self.insns.len(), usize::from(jf));
            self.emit(GOTO, 0, 0, 0, 0);
        }
    }

    /// A load at an offset of the frame with its VLAN tag.
    fn load_absolute(&mut self, offset: u32, size: u16) {
        self.emit(MOV32, R2, 0, 0, offset.cast_signed());
        match offset {
            // Before any tag.
            _ if offset + bytes(size) <= 12 => self.load(size),
            16.. => {
                self.emit(SUB32_X, R2, SHIFT, 0, 0);
                self.load(size);
            }
            _ => self.load_anywhere(size),
        }
    }

    /// A load at the offset in R2, known at run time only. Between 9 and 15 it may read the tag.
    fn load_anywhere(&mut self, size: u16) {
        // The kernel takes offsets for signed.
        self.emit(JLT32, R2, 0, 2, 1 << 24);
        self.no_match();
        let early = 12 - bytes(size).cast_signed();
        let start = self.insns.len();
        self.emit(JEQ32, SHIFT, 0, 0, 0); // no tag: to the load
        self.emit(JLT32, R2, 0, 0, early + 1); // before it: to the load
        self.emit(JGT32, R2, 0, 0, 15); // after it: to the subtraction
        self.tag(size);
        let subtraction = self.insns.len();
        self.emit(SUB32_X, R2, SHIFT, 0, 0);
        let load = self.insns.len();
        self.load(size);
        let done = self.insns.len();
        for (at, target) in [(start, load), (start + 1, load), (start + 2, subtraction)] {
            self.insns[at].off = near(target - at - 1);
        }
        for at in start + 3..subtraction {
            if self.insns[at].code == GOTO {
                self.insns[at].off = near(done - at - 1);
            }
        }
    }

    /// Loads from the tag itself, aligned as compilers emit them; any other does not match. Ends with jumps past the load.
    fn tag(&mut self, size: u16) {
        let read = |output: &mut Self, register, at| {
            output.emit(LOAD_WORD, register, FRAME, at, 0);
        };
        let offsets: &[i32] = match size {
            WORD => &[12],
            HALF => &[12, 14],
            _ => &[12, 13, 14, 15],
        };
        for offset in offsets {
            let skip = self.insns.len();
            self.emit(JNE32, R2, 0, 0, *offset);
            // skb->vlan_proto is in network byte order, skb->vlan_tci is not.
            read(self, A, if *offset < 14 { SKB_VLAN_PROTO } else { SKB_VLAN_TCI });
            if *offset < 14 {
                self.emit(TO_BIG_ENDIAN, A, 0, 0, 16);
            }
            match size {
                WORD => {
                    self.emit(LSH32, A, 0, 0, 16);
                    read(self, R1, SKB_VLAN_TCI);
                    self.emit(AND32, R1, 0, 0, 0xffff);
                    self.emit(OR32_X, A, R1, 0, 0);
                }
                HALF => self.emit(AND32, A, 0, 0, 0xffff),
                _ => {
                    if offset % 2 == 0 {
                        self.emit(0x74, A, 0, 0, 8);
                    }
                    self.emit(AND32, A, 0, 0, 0xff);
                }
            }
            self.emit(GOTO, 0, 0, 0, 0);
            self.insns[skip].off = near(self.insns.len() - skip - 1);
        }
        self.no_match();
    }

    /// A = the value at offset R2; no match if that is beyond the end.
    fn load(&mut self, size: u16) {
        self.emit(MOV64_X, R1, FRAME, 0, 0);
        self.emit(MOV64_X, R3, STACK, 0, 0);
        self.emit(ADD64, R3, 0, 0, LOADED.into());
        self.emit(MOV32, R4, 0, 0, bytes(size).cast_signed());
        self.emit(CALL, 0, 0, 0, LOAD_BYTES);
        self.emit(JEQ64, R0, 0, 2, 0);
        self.no_match();
        match size {
            WORD => self.emit(LOAD_WORD, A, STACK, LOADED, 0),
            HALF => self.emit(LOAD_HALF, A, STACK, LOADED, 0),
            _ => self.emit(LOAD_BYTE, A, STACK, LOADED, 0),
        }
        if size != BYTE {
            self.emit(TO_BIG_ENDIAN, A, 0, 0, bytes(size).cast_signed() * 8);
        }
    }
}

fn bytes(size: u16) -> u32 {
    match size {
        WORD => 4,
        HALF => 2,
        _ => 1,
    }
}

/// Stack offset of a word of scratch memory.
fn slot(word: u32) -> i16 {
    MEMORY + near(usize::try_from(word).unwrap_or_default() * 4)
}

/// A distance as a jump offset. The longest program is short enough, which a test checks.
fn near(distance: usize) -> i16 {
    i16::try_from(distance).unwrap_or(i16::MAX)
}

#[cfg(test)]
mod tests;
