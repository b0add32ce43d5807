//! Sound into the engine: samples are pushed in pieces of any size, and each frame becomes a feature row as soon as it is complete. The
//! pieces change nothing: every frame is computed from the same place, by [`crate::kernels::front_end`].

use rankpatch_format::front_end::FrontEnd;

use super::{Engine, Input, Output};
use crate::built_in::SOUND;
use crate::kernels::front_end::{copy_samples, frame};
use crate::{Error, Result};

/// What has been heard of the sequence and not been run.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Heard {
    /// Samples at hand, which belong to frames that are not complete.
    samples: u16,
    /// Samples from one frame to the next, once there are any.
    hop: u16,
    /// Feature rows that wait for the pass.
    rows: usize,
}

impl Engine<'_> {
    /// Appends `samples` to the sequence and makes the features of each frame that they complete. Returns the number of frames
    /// that wait for [`Engine::run_pushed`]; a network that streams runs them at once.
    ///
    /// A network that does not stream begins a new clip with the first push after a run. Running anything else, and
    /// attaching or detaching an adapter, forgets what was pushed.
    ///
    /// # Errors
    /// [`Error::WrongInput`] if the base has no front end, [`Error::SequenceTooLong`] for more frames than the context has room for;
    /// nothing has been changed then.
    pub fn push_samples(&mut self, samples: &[i16]) -> Result<usize> {
        // The byte order of all cores that read bases in place.
        self.push_sample_bytes(bytemuck::cast_slice(samples))
    }

    /// [`Engine::push_samples`] with samples as a file or a link has them: two bytes each, the low one first.
    ///
    /// # Errors
    /// As [`Engine::push_samples`].
    pub fn push_sample_bytes(&mut self, samples: &[[u8; 2]]) -> Result<usize> {
        let base = self.base;
        let front_end = base
            .front_end()
            .filter(|_| SOUND)
            .ok_or(Error::WrongInput { expected: base.feature_width(), found: samples.len() })?;
        let streaming = base.streaming();
        if !streaming && self.position > 0 {
            self.reset();
        }
        let expected = self.context - self.position;
        let found = self.heard.rows + front_end.frames(usize::from(self.heard.samples) + samples.len());
        if found > expected {
            return Err(Error::SequenceTooLong { expected, found });
        }
        self.heard.hop = front_end.hop as u16;
        let mut rest = samples;
        while !rest.is_empty() {
            let start = usize::from(self.heard.samples);
            let (piece, later) = rest.split_at((front_end.frame - start).min(rest.len()));
            rest = later;
            let end = start + piece.len();
            if let Some(to) = self.arena.samples.get_mut(start..end) {
                copy_samples(to, piece);
            }
            // At most a frame, whose length is a u16.
            self.heard.samples = end as u16;
            if end == front_end.frame {
                self.make_row(&front_end);
                if streaming && self.heard.rows == self.pass_rows() {
                    self.run_made();
                }
            }
        }
        if streaming && self.heard.rows > 0 {
            self.run_made();
        }
        Ok(self.heard.rows)
    }

    /// Runs the frames that were pushed and returns the output after the last of them. Samples of a frame that is not complete
    /// are left out at the end of a clip; a network that streams keeps them.
    ///
    /// # Errors
    /// [`Error::SequenceTooLong`] if there is no complete frame.
    pub fn run_pushed(&mut self) -> Result<&[f32]> {
        if self.heard.rows > 0 {
            self.run_made();
        }
        if self.output == Output::None {
            return Err(Error::SequenceTooLong { expected: self.context, found: 0 });
        }
        Ok(self.output())
    }

    /// Appends `samples` to the sequence and returns the output after the last complete frame. A network that does not stream
    /// starts again with each call.
    ///
    /// # Errors
    /// As [`Engine::push_samples`] and [`Engine::run_pushed`].
    pub fn run_samples(&mut self, samples: &[i16]) -> Result<&[f32]> {
        if !self.base.streaming() {
            self.reset();
        }
        self.push_samples(samples)?;
        self.run_pushed()
    }

    /// Samples of the clip that were pushed and not run; for a network that streams, those at hand.
    pub fn heard(&self) -> usize {
        self.heard.rows * usize::from(self.heard.hop) + usize::from(self.heard.samples)
    }

    /// The feature rows that wait for the pass, `[rows, width]`.
    pub fn pushed_features(&self) -> &[f32] {
        let value = self.base.value(0);
        let start = value.offset as usize / 4;
        self.arena.values.get(start..start + self.heard.rows * value.width as usize).unwrap_or(&[])
    }

    /// The next feature row, from the frame that is complete; the samples that the next frame shares stay.
    fn make_row(&mut self, front_end: &FrontEnd<'_>) {
        let value = self.base.value_inlined(0);
        let width = value.width as usize;
        let start = value.offset as usize / 4 + self.heard.rows * width;
        let Some(row) = self.arena.values.get_mut(start..start + width) else { return };
        let scratch = bytemuck::try_cast_slice_mut(scratch_bytes(self.arena.codes)).unwrap_or(&mut []);
        frame(front_end, self.arena.samples, scratch, row);
        let mut samples = &mut *self.arena.samples;
        // Pieces that do not overlap.
        while let Some((to, from)) = samples.split_at_mut_checked(front_end.hop.max(1)) {
            copy_samples(to, bytemuck::cast_slice(from));
            samples = from;
        }
        self.heard.samples = (front_end.frame - front_end.hop) as u16;
        self.heard.rows += 1;
    }

    fn run_made(&mut self) {
        let rows = core::mem::take(&mut self.heard.rows);
        if !self.base.streaming() {
            self.heard.samples = 0;
        }
        self.pass::<u16>(Input::Made, rows);
    }
}

/// The whole words of a region that begins at a word.
fn scratch_bytes(region: &mut [i8]) -> &mut [i8] {
    let len = region.len() / 4 * 4;
    region.get_mut(..len).unwrap_or(&mut [])
}

#[cfg(test)]
mod tests;
