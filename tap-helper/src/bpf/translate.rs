//! Classic BPF, as libpcap compiles it, as the body of an eBPF function.
//!
//! What the kernel's own translation does (`bpf_convert_filter`, net/core/filter.c), for a program of another type: loads go
//! through `bpf_skb_load_bytes`, and a VLAN tag that the device took off the frame is put back for the reader. All numbers come
//! from whoever wrote the filter: nothing is emitted before `check_program` has seen it, and the kernel's verifier looks again.

use tap_wire::{Instruction, ProgramError, check_program};

use super::classic::{
    ABS, ALU, BYTE, DIV, FROM_X, HALF, IMM, IND, JA, JMP, LD, LDX, LEN, LSH, MEM, MISC, MOD, MODE, MSH, NEG, RET, RSH,
    SIZE, ST, STX, WORD, reachable,
};

/// An eBPF instruction (`struct bpf_insn`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "named as in the kernel")]
pub struct Insn {
    pub code: u8,
    pub dst: u8,
    pub src: u8,
    pub off: i16,
    pub imm: i32,
}

// Registers: those that calls leave alone hold what lives long.
const R0: u8 = 0;
const R1: u8 = 1;
const R2: u8 = 2;
const R3: u8 = 3;
const R4: u8 = 4;
const FRAME: u8 = 6;
/// 4 where the frame's outer tag is not in its bytes.
const SHIFT: u8 = 7;
const A: u8 = 8;
const X: u8 = 9;
const STACK: u8 = 10;
/// Where loads go, above the 16 words of memory.
const LOADED: i16 = -8;
const MEMORY: i16 = -8 - 64;

// Codes of eBPF (include/uapi/linux/bpf.h); those of arithmetic and comparisons are the classic ones in other classes.
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

/// The body of `int expression(struct __sk_buff *)`: 1 if the classic program returns anything but 0.
pub fn translate(program: &[Instruction]) -> Result<Vec<Insn>, ProgramError> {
    check_program(program)?;
    let reached = reachable(program);
    let mut output = Output { insns: Vec::new() };
    output.prologue();
    // Where each classic instruction begins, and which jumps wait for it.
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
    fn put(&mut self, code: u8, dst: u8, src: u8, off: i16, imm: i32) {
        self.insns.push(Insn { code, dst, src, off, imm });
    }

    fn prologue(&mut self) {
        self.put(MOV64_X, FRAME, R1, 0, 0);
        self.put(MOV32, A, 0, 0, 0);
        self.put(MOV32, X, 0, 0, 0);
        self.put(MOV32, SHIFT, 0, 0, 0);
        self.put(LOAD_WORD, R2, R1, SKB_VLAN_PRESENT, 0);
        self.put(JEQ32, R2, 0, 1, 0);
        self.put(MOV32, SHIFT, 0, 0, 4);
    }

    fn no_match(&mut self) {
        self.put(MOV32, R0, 0, 0, 0);
        self.put(EXIT, 0, 0, 0, 0);
    }

    /// One classic instruction; `jump` gets where a jump is, and over how many classic instructions it goes.
    fn instruction(&mut self, Instruction { code, jt, jf, k }: Instruction, jump: impl FnMut(usize, usize)) {
        let imm = k.cast_signed();
        match (code & 7, code & MODE) {
            (LD, IMM) => self.put(MOV32, A, 0, 0, imm),
            (LDX, IMM) => self.put(MOV32, X, 0, 0, imm),
            (LD, ABS) => self.load_absolute(k, code & SIZE),
            (LD, IND) => {
                // No sum may wrap around to something that is in the frame.
                self.put(JLT32, X, 0, 2, 1 << 24);
                self.no_match();
                self.put(MOV32_X, R2, X, 0, 0);
                self.put(ADD32, R2, 0, 0, imm);
                self.load_anywhere(code & SIZE);
            }
            (LD, MEM) => self.put(LOAD_WORD, A, STACK, slot(k), 0),
            (LDX, MEM) => self.put(LOAD_WORD, X, STACK, slot(k), 0),
            (LD | LDX, LEN) => {
                let register = if code & 7 == LD { A } else { X };
                self.put(LOAD_WORD, register, FRAME, SKB_LEN, 0);
                self.put(ADD32_X, register, SHIFT, 0, 0);
            }
            (LDX, MSH) => {
                // X = 4 * (byte & 15); A stays.
                self.put(MOV32_X, X, A, 0, 0);
                self.load_absolute(k, BYTE);
                self.put(MOV32_X, R1, A, 0, 0);
                self.put(MOV32_X, A, X, 0, 0);
                self.put(MOV32_X, X, R1, 0, 0);
                self.put(AND32, X, 0, 0, 15);
                self.put(LSH32, X, 0, 0, 2);
            }
            (ST, _) => self.put(STORE_WORD, STACK, A, slot(k), 0),
            (STX, _) => self.put(STORE_WORD, STACK, X, slot(k), 0),
            (ALU, _) => self.arithmetic(code, imm),
            (JMP, _) => self.jump(code, imm, (jt, jf), jump),
            (RET, _) => {
                if code & 0x18 == 0 {
                    self.put(MOV32, R0, 0, 0, i32::from(k != 0));
                } else {
                    self.put(MOV32, R0, 0, 0, 0);
                    self.put(JEQ32, A, 0, 1, 0);
                    self.put(MOV32, R0, 0, 0, 1);
                }
                self.put(EXIT, 0, 0, 0, 0);
            }
            _ if code == MISC => self.put(MOV32_X, X, A, 0, 0),
            _ => self.put(MOV32_X, A, X, 0, 0),
        }
    }

    fn arithmetic(&mut self, code: u16, imm: i32) {
        let operation = code & 0xf0;
        if code & FROM_X != 0 && matches!(operation, DIV | MOD) {
            self.put(JNE32, X, 0, 2, 0);
            self.no_match();
        }
        if code & FROM_X != 0 && matches!(operation, LSH | RSH) {
            // libpcap's own reader gives 0 for a shift by 32 or more, eBPF one by the rest.
            self.put(JLT32, X, 0, 2, 32);
            self.put(MOV32, A, 0, 0, 0);
            self.put(GOTO, 0, 0, 1, 0);
        }
        // Classic and extended 32-bit arithmetic have the same codes.
        let code = u8::try_from(code).unwrap_or_default();
        let from_x = u16::from(code) & FROM_X != 0;
        self.put(code, A, if from_x { X } else { 0 }, 0, if from_x || operation == NEG { 0 } else { imm });
    }

    fn jump(&mut self, code: u16, imm: i32, (jt, jf): (u8, u8), mut jump: impl FnMut(usize, usize)) {
        if code & 0xf0 == JA {
            jump(self.insns.len(), usize::try_from(imm).unwrap_or_default());
            self.put(GOTO, 0, 0, 0, 0);
            return;
        }
        let from_x = code & FROM_X != 0;
        // The same codes in another class: comparisons of 32 bits.
        let code = u8::try_from(code & 0xf8).unwrap_or_default() | JMP32;
        jump(self.insns.len(), usize::from(jt));
        self.put(code, A, if from_x { X } else { 0 }, 0, if from_x { 0 } else { imm });
        if jf != 0 {
            jump(self.insns.len(), usize::from(jf));
            self.put(GOTO, 0, 0, 0, 0);
        }
    }

    /// A load at an offset of the frame as it was with its tag.
    fn load_absolute(&mut self, offset: u32, size: u16) {
        self.put(MOV32, R2, 0, 0, offset.cast_signed());
        match offset {
            // Before the tag, whatever there is.
            _ if offset + bytes(size) <= 12 => self.load(size),
            16.. => {
                self.put(SUB32_X, R2, SHIFT, 0, 0);
                self.load(size);
            }
            _ => self.load_anywhere(size),
        }
    }

    /// A load at the offset in R2, which is not known now. Between 9 and 15 it may read the tag.
    fn load_anywhere(&mut self, size: u16) {
        // An index beyond any frame would turn negative for the kernel.
        self.put(JLT32, R2, 0, 2, 1 << 24);
        self.no_match();
        let early = 12 - bytes(size).cast_signed();
        let start = self.insns.len();
        self.put(JEQ32, SHIFT, 0, 0, 0); // no tag: to the load
        self.put(JLT32, R2, 0, 0, early + 1); // before it: to the load
        self.put(JGT32, R2, 0, 0, 15); // behind it: to the subtraction
        self.tag(size);
        let subtraction = self.insns.len();
        self.put(SUB32_X, R2, SHIFT, 0, 0);
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

    /// Reads of the tag itself, aligned as compilers make them; any other is out of range. Ends with jumps to behind the load.
    fn tag(&mut self, size: u16) {
        let read = |output: &mut Self, register, at| {
            output.put(LOAD_WORD, register, FRAME, at, 0);
        };
        let wanted: &[i32] = match size {
            WORD => &[12],
            HALF => &[12, 14],
            _ => &[12, 13, 14, 15],
        };
        for offset in wanted {
            let skip = self.insns.len();
            self.put(JNE32, R2, 0, 0, *offset);
            // skb->vlan_proto is in network byte order, skb->vlan_tci is not.
            read(self, A, if *offset < 14 { SKB_VLAN_PROTO } else { SKB_VLAN_TCI });
            if *offset < 14 {
                self.put(TO_BIG_ENDIAN, A, 0, 0, 16);
            }
            match size {
                WORD => {
                    self.put(LSH32, A, 0, 0, 16);
                    read(self, R1, SKB_VLAN_TCI);
                    self.put(AND32, R1, 0, 0, 0xffff);
                    self.put(OR32_X, A, R1, 0, 0);
                }
                HALF => self.put(AND32, A, 0, 0, 0xffff),
                _ => {
                    if offset % 2 == 0 {
                        self.put(0x74, A, 0, 0, 8);
                    }
                    self.put(AND32, A, 0, 0, 0xff);
                }
            }
            self.put(GOTO, 0, 0, 0, 0);
            self.insns[skip].off = near(self.insns.len() - skip - 1);
        }
        self.no_match();
    }

    /// A = what is at R2 in the frame's bytes; no match where that is beyond them.
    fn load(&mut self, size: u16) {
        self.put(MOV64_X, R1, FRAME, 0, 0);
        self.put(MOV64_X, R3, STACK, 0, 0);
        self.put(ADD64, R3, 0, 0, LOADED.into());
        self.put(MOV32, R4, 0, 0, bytes(size).cast_signed());
        self.put(CALL, 0, 0, 0, LOAD_BYTES);
        self.put(JEQ64, R0, 0, 2, 0);
        self.no_match();
        match size {
            WORD => self.put(LOAD_WORD, A, STACK, LOADED, 0),
            HALF => self.put(LOAD_HALF, A, STACK, LOADED, 0),
            _ => self.put(LOAD_BYTE, A, STACK, LOADED, 0),
        }
        if size != BYTE {
            self.put(TO_BIG_ENDIAN, A, 0, 0, bytes(size).cast_signed() * 8);
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

/// Stack offset of a word of memory.
fn slot(word: u32) -> i16 {
    MEMORY + near(usize::try_from(word).unwrap_or_default() * 4)
}

/// A distance within a program: the longest one becomes less than there is room for in an offset.
fn near(distance: usize) -> i16 {
    i16::try_from(distance).unwrap_or(i16::MAX)
}

#[cfg(test)]
#[path = "translate_tests.rs"]
mod tests;
