//! Stack depth: what each function of a program reaches below its frame pointer, summed up over the
//! deepest chain of calls.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};

use super::xlated::Instruction;

/// The frame pointer.
const R10: u8 = 10;
/// The verifier rounds each frame up to this (`check_max_stack_depth`).
const FRAME_STEP: u32 = 32;
/// Deepest chain of calls that the verifier allows (`MAX_CALL_FRAMES`).
const CALLS_MAX: usize = 8;

const CLASS: u8 = 0x07;
const LDX: u8 = 0x01;
const ST: u8 = 0x02;
const STX: u8 = 0x03;
const CALL: u8 = 0x85;
const PSEUDO_CALL: u8 = 1;
const MOV64_REGISTER: u8 = 0xbf;
const ADD64_IMMEDIATE: u8 = 0x07;

/// Bytes of stack of the deepest chain of calls from the first instruction on.
pub fn deepest(program: &[Instruction]) -> Result<u32> {
    let mut starts: BTreeSet<usize> = BTreeSet::from([0]);
    starts.extend((0..program.len()).filter_map(|at| called(program, at)));
    chain(program, &starts, 0, CALLS_MAX)
}

fn chain(
    program: &[Instruction],
    starts: &BTreeSet<usize>,
    start: usize,
    calls_left: usize,
) -> Result<u32> {
    ensure!(calls_left > 0, "calls that never end");
    let end = starts.range(start + 1..).next().copied();
    let body = start..end.unwrap_or(program.len());
    let mut below = 0;
    for at in body.clone() {
        if let Some(callee) = called(program, at) {
            below = below.max(chain(program, starts, callee, calls_left - 1)?);
        }
    }
    Ok(frame(&program[body]) + below)
}

/// The first instruction of the subprogram that is called at `at`. In what the kernel shows of a
/// loaded program the distance lies in the offset, the immediate is the subprogram's number.
fn called(program: &[Instruction], at: usize) -> Option<usize> {
    let instruction = program[at];
    let is_call = instruction.code == CALL && instruction.source() == PSEUDO_CALL;
    is_call.then(|| (at as i64 + 1 + i64::from(instruction.offset)) as usize)
}

/// Bytes of one function's frame.
fn frame(body: &[Instruction]) -> u32 {
    let lowest = body.iter().enumerate().map(|(at, instruction)| {
        let is_access = match instruction.code & CLASS {
            LDX => instruction.source() == R10,
            ST | STX => instruction.destination() == R10,
            _ => false,
        };
        match address(&body[at..]) {
            Some(offset) => offset,
            None if is_access => i32::from(instruction.offset),
            None => 0,
        }
    });
    let depth = lowest.min().unwrap_or(0).min(0).unsigned_abs();
    depth.max(1).next_multiple_of(FRAME_STEP)
}

/// The offset from the frame pointer where `code` begins with taking an address on the stack.
fn address(code: &[Instruction]) -> Option<i32> {
    let [copy, add, ..] = code else { return None };
    let is_address = copy.code == MOV64_REGISTER
        && copy.source() == R10
        && add.code == ADD64_IMMEDIATE
        && add.destination() == copy.destination();
    is_address.then_some(add.immediate)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instruction(code: u8, registers: u8, offset: i16, immediate: i32) -> Instruction {
        Instruction {
            code,
            registers,
            offset,
            immediate,
        }
    }

    #[test]
    fn deepest_chain_is_the_sum_of_its_frames() {
        let exit = instruction(0x95, 0, 0, 0);
        let program = [
            // *(u64 *)(r10 - 40) = r1: 64 bytes.
            instruction(0x7b, 0x1a, -40, 0),
            // A helper, then a call of the function at 5.
            instruction(CALL, 0, 0, 5),
            instruction(CALL, PSEUDO_CALL << 4, 2, 1),
            instruction(CALL, PSEUDO_CALL << 4, 4, 2),
            exit,
            // r2 = r10; r2 += -100: 128 bytes.
            instruction(MOV64_REGISTER, 0xa2, 0, 0),
            instruction(ADD64_IMMEDIATE, 2, 0, -100),
            exit,
            // Nothing: 32 bytes.
            exit,
        ];
        assert_eq!(deepest(&program).expect("it ends"), 64 + 128);
    }

    #[test]
    fn recursion_is_refused() {
        let program = [instruction(CALL, PSEUDO_CALL << 4, -1, 0)];
        assert!(deepest(&program).is_err());
    }
}
