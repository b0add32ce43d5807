//! The stack's high-water mark. Start-up code paints the whole stack; what is no longer paint has been used.
#![expect(unsafe_code, reason = "looks at memory below the live stack")]

/// A painted stack that grows downwards.
#[derive(Debug)]
pub struct PaintedStack {
    lowest: *const u32,
    words: usize,
    paint: u32,
}

impl PaintedStack {
    /// The stack from `lowest` up to `top`, of which every word was `paint` when the program started.
    ///
    /// # Safety
    /// The range is readable memory for the rest of the program, word-aligned.
    pub unsafe fn new(lowest: *const u32, top: *const u32, paint: u32) -> Self {
        Self { lowest, words: (top.addr() - lowest.addr()) / 4, paint }
    }

    /// Paints from `lowest` up to `top`, which lies below the part in use.
    ///
    /// # Safety
    /// The range is writable memory that nothing uses.
    pub unsafe fn paint(lowest: *mut u32, top: *const u32, paint: u32) {
        for i in 0..(top.addr() - lowest.addr()) / 4 {
            // SAFETY: within the range; volatile, because no Rust object lies here.
            unsafe { lowest.add(i).write_volatile(paint) };
        }
    }
}

impl crate::Stack for PaintedStack {
    fn capacity(&self) -> usize {
        4 * self.words
    }

    fn peak(&self) -> usize {
        // SAFETY: within the readable range; volatile, because the part below the stack pointer belongs to nobody.
        let is_paint = |&i: &usize| unsafe { self.lowest.add(i).read_volatile() } == self.paint;
        4 * (self.words - (0..self.words).take_while(is_paint).count())
    }
}

#[cfg(test)]
mod tests {
    use super::PaintedStack;
    use crate::Stack as _;

    #[test]
    fn the_lowest_word_that_is_no_paint_ends_the_free_part() {
        const PAINT: u32 = 0xCCCC_CCCC;
        let mut words = [0_u32; 16];
        let range = words.as_mut_ptr_range();
        // SAFETY: all but the last two words of the array, which nothing else uses now.
        unsafe { PaintedStack::paint(range.start, range.end.sub(2), PAINT) };
        // SAFETY: the array outlives the stack.
        let stack = unsafe { PaintedStack::new(range.start, range.end, PAINT) };
        assert_eq!((stack.capacity(), stack.peak()), (64, 8));
        // SAFETY: a word of the array.
        unsafe { range.start.add(5).write_volatile(1) };
        assert_eq!(stack.peak(), 44);
    }
}
