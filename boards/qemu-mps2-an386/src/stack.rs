//! The stack's high-water mark. The start-up code painted the whole stack; what is no longer paint has been used.
#![expect(unsafe_code, reason = "looks at memory below the live stack")]

use cortex_m_rt::STACK_PAINT_VALUE;

unsafe extern "C" {
    static _stack_start: u32;
    static _stack_end: u32;
}

/// The painted stack of this board.
#[derive(Debug)]
pub struct PaintedStack(());

impl PaintedStack {
    pub(crate) const fn new() -> Self {
        Self(())
    }
}

impl rankpatch_board::Stack for PaintedStack {
    fn capacity(&self) -> usize {
        (&raw const _stack_start).addr() - (&raw const _stack_end).addr()
    }

    fn peak(&self) -> usize {
        let words = self.capacity() / 4;
        let lowest = &raw const _stack_end;
        // SAFETY: both symbols delimit the stack, which is readable memory; volatile, because the part below the stack
        // pointer belongs to nobody.
        let painted =
            (0..words).take_while(|&i| unsafe { lowest.add(i).read_volatile() } == STACK_PAINT_VALUE).count();
        (words - painted) * 4
    }
}
