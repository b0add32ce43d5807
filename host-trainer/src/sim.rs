//! The device's own code on the host: every number that a tool reports about a quantized base or adapter comes from
//! here, and has the same bits as on the chip.
//!
//! A [`Simulator`] owns a base image and at most one adapter. An [`Engine`] borrows its memory, so it lives inside a call:
//! [`Simulator::session`] for one, [`Simulator::map`] for one per thread. What a metric is, [`crate::train`] knows.

use std::sync::atomic::{AtomicUsize, Ordering};

use rankpatch_format::adapter::Adapter;
use rankpatch_format::base::{ALIGN, Base};
use rankpatch_format::digest::Digest;
use rankpatch_format::link::Mode;
use rankpatch_runtime::{
    Attachment, Engine, MIN_HEAD_OUTPUTS, MergedType, Sampler, arena_bytes, merged_bytes,
};
use rayon::prelude::*;

use crate::base::Image;
use crate::data::text::TextSpan;
use crate::train::{Example, Metric, Sequence, Tally, Target, metric_of, negative_log_likelihood};
use crate::{Error, Result};

/// What a network reads.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Input<'a> {
    /// Token ids.
    Tokens(&'a [u16]),
    /// Feature rows `[rows, width]`, row-major.
    Features(&'a [f32]),
    /// Samples of a sound, as the base's front end reads them.
    Samples(&'a [i16]),
}

/// How a text is continued.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Most tokens to add.
    pub max_tokens: usize,
    /// 0 is greedy; otherwise logits are divided by it.
    pub temperature: f32,
    /// Seed of the sampler.
    pub seed: u32,
}

/// A text as the device would generate it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generated {
    /// Ids of the tokens added.
    pub ids: Vec<u16>,
    /// The bytes that they add to the prompt.
    pub text: Vec<u8>,
    /// Digest over the logits that each token was drawn from.
    pub digest: u64,
}

/// A device in memory.
#[derive(Debug, Clone)]
pub struct Simulator {
    image: Image,
    adapter: Option<(Vec<u8>, Mode)>,
    context: usize,
}

impl Simulator {
    /// A device with this base and no adapter, for sequences as long as the base takes.
    ///
    /// # Errors
    /// As [`Base::new`].
    pub fn new(image: Image) -> Result<Self> {
        let context = image.base()?.manifest().max_rows as usize;
        Ok(Self { image, adapter: None, context })
    }

    /// The same with an adapter applied.
    ///
    /// # Errors
    /// As [`Adapter::new`].
    pub fn with_adapter(self, file: Vec<u8>, mode: Mode) -> Result<Self> {
        Adapter::new(&file, &self.image.base()?)?;
        Ok(Self { adapter: Some((file, mode)), ..self })
    }

    /// The same without an adapter.
    #[must_use]
    pub fn without_adapter(self) -> Self {
        Self { adapter: None, ..self }
    }

    /// The same for sequences of at most `context` rows, which needs a smaller arena.
    #[must_use]
    pub fn with_context(self, context: usize) -> Self {
        Self { context: context.min(self.context), ..self }
    }

    /// The base image.
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// The base.
    ///
    /// # Errors
    /// None after [`Simulator::new`] has checked it.
    pub fn base(&self) -> Result<Base<'_>> {
        self.image.base()
    }

    /// The adapter that is applied.
    ///
    /// # Errors
    /// None after [`Simulator::with_adapter`] has checked it.
    pub fn adapter(&self) -> Result<Option<Adapter<'_>>> {
        let base = self.image.base()?;
        Ok(self.adapter.as_ref().map(|(file, _)| Adapter::new(file, &base)).transpose()?)
    }

    /// Bytes of the arena that the base needs; a large task head adds its outputs.
    ///
    /// # Errors
    /// None after [`Simulator::new`].
    pub fn arena_bytes(&self) -> Result<usize> {
        Ok(arena_bytes(&self.image.base()?, self.context))
    }

    /// Runs something on an engine with the adapter applied, at the start of a sequence.
    ///
    /// # Errors
    /// Those of `run`, and those of [`Engine::attach`] and [`Engine::attach_merged`].
    pub fn session<R>(&self, run: impl FnOnce(&mut Engine<'_>) -> Result<R>) -> Result<R> {
        self.attached_session(|engine, _| run(engine))
    }

    /// Like [`Simulator::session`], with what attaching did.
    ///
    /// # Errors
    /// As [`Simulator::session`].
    pub fn attached_session<R>(
        &self,
        run: impl FnOnce(&mut Engine<'_>, Option<Attachment>) -> Result<R>,
    ) -> Result<R> {
        let base = self.image.base()?;
        let adapter = self.adapter()?;
        let head_out = adapter.as_ref().and_then(|adapter| adapter.head()).map_or(0, |head| head.n_out);
        let more = head_out.saturating_sub(MIN_HEAD_OUTPUTS) * size_of::<f32>();
        let mut arena = words(arena_bytes(&base, self.context) + more);
        let mut merged = match (&adapter, &self.adapter) {
            (Some(adapter), Some((_, Mode::Merged))) => {
                Some(words(merged_bytes(&base, adapter, MergedType::Int8)))
            }
            _ => None,
        };
        let mut engine = Engine::new(base, bytemuck::cast_slice_mut(&mut arena), self.context)?;
        let attachment = match (adapter, &mut merged) {
            (None, _) => None,
            (Some(adapter), None) => Some(engine.attach(adapter)?),
            (Some(adapter), Some(memory)) => {
                Some(engine.attach_merged(adapter, MergedType::Int8, bytemuck::cast_slice_mut(memory))?)
            }
        };
        run(&mut engine, attachment)
    }

    /// Runs something for each item, on one engine per thread that starts a new sequence for it. Results are in the order
    /// of the items, and the same for any number of threads.
    ///
    /// # Errors
    /// The first of `run`, and those of [`Simulator::session`].
    pub fn map<I: Sync, R: Send>(
        &self,
        items: &[I],
        run: impl Fn(&mut Engine<'_>, &I) -> Result<R> + Sync,
    ) -> Result<Vec<R>> {
        let next = AtomicUsize::new(0);
        let workers = rayon::current_num_threads().min(items.len());
        let parts = (0..workers).into_par_iter().map(|_| {
            self.session(|engine| {
                let mut done = Vec::new();
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(index) else { return Ok(done) };
                    engine.reset();
                    done.push((index, run(engine, item)?));
                }
            })
        });
        let mut done: Vec<(usize, R)> = parts.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect();
        done.sort_unstable_by_key(|(index, _)| *index);
        Ok(done.into_iter().map(|(_, result)| result).collect())
    }

    /// The output after each input: of the task head if the adapter has one, else of the base after the last row.
    ///
    /// # Errors
    /// [`Error::Runtime`] if an input does not fit.
    pub fn outputs(&self, inputs: &[Input<'_>]) -> Result<Vec<Vec<f32>>> {
        self.map(inputs, |engine, input| Ok(run(engine, *input)?.to_vec()))
    }

    /// Index of the greatest output for each input.
    ///
    /// # Errors
    /// As [`Simulator::outputs`].
    pub fn classify(&self, inputs: &[Input<'_>]) -> Result<Vec<usize>> {
        self.map(inputs, |engine, input| Ok(rankpatch_runtime::math::argmax(run(engine, *input)?)))
    }

    /// The logits after every token of each sequence, `[tokens, vocab_size]`.
    ///
    /// # Errors
    /// As [`Simulator::outputs`].
    pub fn logits<S: AsRef<[u16]> + Sync>(&self, sequences: &[S]) -> Result<Vec<Vec<f32>>> {
        self.map(sequences, |engine, sequence| {
            let mut logits = Vec::new();
            engine.run_tokens_each(sequence.as_ref(), |_, row| logits.extend_from_slice(row))?;
            Ok(logits)
        })
    }

    /// The negative log-likelihood of each sequence in nats: the sum over its tokens but the first of
    /// -ln softmax(logits)\[token\], in f64. A sequence of fewer than two tokens has none.
    ///
    /// # Errors
    /// As [`Simulator::outputs`].
    pub fn negative_log_likelihoods<S: AsRef<[u16]> + Sync>(&self, sequences: &[S]) -> Result<Vec<f64>> {
        self.map(sequences, |engine, sequence| text_nats(engine, sequence.as_ref(), 0))
    }

    /// The spans of a text and the digest of the outputs that told them. The adapter's head must answer after each row.
    ///
    /// # Errors
    /// [`Error::NoTokenizer`] if the base reads no text; [`Error::Runtime`] if the head tells no spans or the text is too long.
    pub fn spans(&self, text: &str) -> Result<(Vec<TextSpan>, u64)> {
        let tokens = self.encode(text)?;
        self.session(|engine| tagged_spans(engine, &tokens))
    }

    /// Measures `examples`: texts in bits per character, classes in accuracy, spans in F1. The counterpart of
    /// [`crate::train::evaluate_float`].
    ///
    /// # Errors
    /// As [`Simulator::outputs`].
    pub fn evaluate(&self, examples: &[Example]) -> Result<Metric> {
        let results = self.map(examples, |engine, example| match (&example.sequence, &example.target) {
            (Sequence::Tokens(tokens), Target::Next { given, .. }) => {
                Ok(Measured::Nats(text_nats(engine, tokens, *given)?))
            }
            (Sequence::Tokens(tokens), Target::Words(tagged)) => {
                // Ids of a base with a tokenizer are u16.
                let tokens: Vec<u16> = tokens[tagged.first_row..].iter().map(|id| *id as u16).collect();
                Ok(Measured::Spans(tagged_spans(engine, &tokens)?.0))
            }
            (Sequence::Tokens(tokens), Target::Class(_)) => {
                Ok(Measured::Outputs(engine.run_tokens(tokens)?.to_vec()))
            }
            (Sequence::Features(rows), _) => Ok(Measured::Outputs(engine.run_features(rows)?.to_vec())),
        })?;
        let mut tally = Tally::new(metric_of(examples));
        for (example, result) in examples.iter().zip(results) {
            match (result, &example.target) {
                (Measured::Nats(nats), Target::Next { characters, .. }) => tally.text(nats, *characters),
                (Measured::Outputs(outputs), Target::Class(class)) => tally.answer(&outputs, *class),
                (Measured::Spans(spans), Target::Words(tagged)) => tally.spans(&spans, &tagged.spans),
                // Features have classes, not texts: [`crate::train::TaskData`] refuses anything else.
                _ => {}
            }
        }
        Ok(tally.metric())
    }

    /// The digest that the self-test of the adapter has on the device, which its file states.
    ///
    /// # Errors
    /// [`Error::Runtime`] if there is no adapter.
    pub fn self_test_digest(&self) -> Result<u64> {
        self.session(|engine| Ok(engine.self_test_digest()?))
    }

    /// Continues `prompt`, greedily or drawing at a temperature, until the text ends, `max_tokens` were added or the
    /// context is full. `token` hears each token's bytes.
    ///
    /// # Errors
    /// [`Error::NoTokenizer`] if the base reads no text, [`Error::Batch`] if the adapter has a task head, [`Error::Runtime`]
    /// if the prompt does not fit.
    pub fn generate(
        &self,
        prompt: &str,
        sampling: Sampling,
        mut token: impl FnMut(&[u8]),
    ) -> Result<Generated> {
        let prompt = self.encode(prompt)?;
        let base = self.image.base()?;
        let tokenizer = base.tokenizer().ok_or_else(|| self.no_tokenizer())?;
        let ends = [tokenizer.info().bos, tokenizer.info().eos];
        if !base.streaming() {
            return Err(Error::Batch {
                what: "base",
                expected: "one that goes on where it stopped, to continue a text".into(),
                found: format!("{}, which reads a whole sequence at once", base.manifest().name),
            });
        }
        if let Some(head) = self.adapter()?.as_ref().and_then(Adapter::head) {
            return Err(Error::Batch {
                what: "adapter",
                expected: "one without a task head: a text is continued from the base's own output".into(),
                found: format!("a head with {} outputs", head.n_out),
            });
        }
        self.session(|engine| {
            let mut sampler = Sampler::new(sampling.temperature, sampling.seed);
            let mut generated = Generated { ids: Vec::new(), text: Vec::new(), digest: 0 };
            let mut digest = Digest::default();
            engine.run_tokens(&prompt)?;
            let mut previous = prompt.last().copied().unwrap_or(0);
            while generated.ids.len() < sampling.max_tokens {
                digest.update(engine.output());
                // Ids of a vocabulary are u16.
                let id = sampler.next(engine.output()) as u16;
                if ends.contains(&id) {
                    break;
                }
                let bytes = tokenizer.decode(previous, id);
                token(bytes);
                generated.text.extend_from_slice(bytes);
                generated.ids.push(id);
                if generated.ids.len() == sampling.max_tokens || engine.position() == engine.context() {
                    break;
                }
                engine.run_tokens(&[id])?;
                previous = id;
            }
            generated.digest = digest.value();
            Ok(generated)
        })
    }

    /// The token ids of a text, with the start of a sequence before them.
    ///
    /// # Errors
    /// [`Error::NoTokenizer`] if the base reads no text.
    pub fn encode(&self, text: &str) -> Result<Vec<u16>> {
        let base = self.image.base()?;
        let tokenizer = base.tokenizer().ok_or_else(|| self.no_tokenizer())?;
        // One id per byte at most, one for the start and one for a leading space.
        let mut tokens = vec![0; text.len() + 2];
        let len = tokenizer.encode(text.as_bytes(), &mut tokens)?;
        tokens.truncate(len);
        Ok(tokens)
    }

    fn no_tokenizer(&self) -> Error {
        Error::NoTokenizer { base: self.image.base().map_or("", |base| base.manifest().name).to_owned() }
    }
}

/// Runs an input from where the sequence stands and returns the output after it.
///
/// # Errors
/// [`Error::Runtime`] if it does not fit.
pub fn run<'e>(engine: &'e mut Engine<'_>, input: Input<'_>) -> Result<&'e [f32]> {
    Ok(match input {
        Input::Tokens(tokens) => engine.run_tokens(tokens)?,
        Input::Features(features) => engine.run_features(features)?,
        Input::Samples(samples) => engine.run_samples(samples)?,
    })
}

/// What running an example gives.
enum Measured {
    Nats(f64),
    Outputs(Vec<f32>),
    Spans(Vec<TextSpan>),
}

/// The spans of a text, and the digest of the outputs that told them.
fn tagged_spans(engine: &mut Engine<'_>, tokens: &[u16]) -> Result<(Vec<TextSpan>, u64)> {
    let mut spans = Vec::new();
    let digest = engine.run_spans(tokens, |span| spans.push(TextSpan::from(span)))?;
    Ok((spans, digest))
}

/// The negative log-likelihood of `tokens` but the first one and `given` ones behind it.
fn text_nats<T: Copy + Into<u32>>(engine: &mut Engine<'_>, tokens: &[T], given: usize) -> Result<f64> {
    let Some((_, targets @ [_, ..])) = tokens.split_first() else { return Ok(0.0) };
    let mut nats = 0.0;
    // The last token is only ever a target.
    engine.run_tokens_each(&tokens[..targets.len()], |at, logits| {
        if at >= given {
            nats += negative_log_likelihood(logits, targets[at].into() as usize);
        }
    })?;
    Ok(nats)
}

/// Zeroed memory for `bytes` bytes, aligned as arenas are.
pub(crate) fn words(bytes: usize) -> Vec<u128> {
    const { assert!(align_of::<u128>() >= ALIGN) };
    vec![0; bytes.div_ceil(size_of::<u128>())]
}

#[cfg(test)]
mod tests {
    use rankpatch_format::fixture;
    use rankpatch_format::layout::Layout;

    use super::*;

    fn decoder(adapter: Option<Mode>) -> Simulator {
        let network = fixture::decoder();
        let simulator = Simulator::new(Image::build(&network, Layout::RowMajor, 5).unwrap()).unwrap();
        let Some(mode) = adapter else { return simulator };
        let data = fixture::adapter(&network, &[(0, 2), (6, 3)], None, 1.0, 1);
        simulator.with_adapter(data.write().unwrap(), mode).unwrap()
    }

    fn sequences() -> Vec<Vec<u16>> {
        (1..=17u16).map(|len| (0..len).map(|at| 1 + (at * 31 + len * 7) % 250).collect()).collect()
    }

    #[test]
    fn results_are_in_order_for_any_number_of_threads() {
        let simulator = decoder(Some(Mode::Streamed));
        let logits = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| simulator.logits(&sequences()).unwrap())
        };
        let one = logits(1);
        assert_eq!(one, logits(3));
        let vocab_size = simulator.base().unwrap().vocab_size() as usize;
        for (sequence, logits) in sequences().iter().zip(&one) {
            assert_eq!(logits.len(), sequence.len() * vocab_size);
            let output = simulator.outputs(&[Input::Tokens(sequence)]).unwrap().remove(0);
            assert_eq!(output, logits[logits.len() - vocab_size..], "one pass or many");
        }
        assert!(simulator.map(&[] as &[u8], |_, _| Ok(())).unwrap().is_empty());
    }

    #[test]
    fn a_likelihood_is_the_sum_over_the_tokens_after_the_first() {
        let simulator = decoder(None);
        let vocab_size = simulator.base().unwrap().vocab_size() as usize;
        let logits = simulator.logits(&sequences()).unwrap();
        let found = simulator.negative_log_likelihoods(&sequences()).unwrap();
        for ((sequence, logits), found) in sequences().iter().zip(&logits).zip(found) {
            let mut expected = 0.0;
            for (row, target) in logits.chunks(vocab_size).zip(&sequence[1..]) {
                let total: f64 = row.iter().map(|logit| f64::from(*logit).exp()).sum();
                expected -= (f64::from(row[usize::from(*target)]).exp() / total).ln();
            }
            assert!((found - expected).abs() < 1e-9 * expected.max(1.0), "{found} for {expected}");
        }
    }

    #[test]
    fn the_adapter_changes_outputs_and_without_it_they_are_back() {
        let (plain, streamed, merged) =
            (decoder(None), decoder(Some(Mode::Streamed)), decoder(Some(Mode::Merged)));
        let output = |simulator: &Simulator| simulator.outputs(&[Input::Tokens(&[1, 9, 70, 8])]).unwrap();
        assert_ne!(output(&plain), output(&streamed));
        assert_ne!(output(&streamed), output(&merged), "merging rounds");
        assert_eq!(output(&plain), output(&streamed.clone().without_adapter()));
        assert_eq!(streamed.self_test_digest().unwrap(), merged.self_test_digest().unwrap());
        assert!(matches!(
            plain.self_test_digest(),
            Err(Error::Runtime(rankpatch_runtime::Error::NothingActive))
        ));
        let copied = |simulator: &Simulator| {
            simulator
                .attached_session(|_, attachment| Ok(attachment.map(|a| a.weight_bytes_copied > 0)))
                .unwrap()
        };
        assert_eq!([copied(&plain), copied(&streamed), copied(&merged)], [None, Some(false), Some(true)]);
    }

    #[test]
    fn heads_of_any_size_get_an_arena() {
        let network = fixture::encoder();
        let simulator = Simulator::new(Image::build(&network, Layout::RowMajor, 1).unwrap()).unwrap();
        let data = fixture::adapter(&network, &[(0, 1)], Some(300), 1.0, 2);
        let simulator = simulator.with_adapter(data.write().unwrap(), Mode::Streamed).unwrap();
        assert_eq!(simulator.outputs(&[Input::Features(&[0.5; 27])]).unwrap()[0].len(), 300);
        let error = simulator.generate("a", Sampling { max_tokens: 1, temperature: 0.0, seed: 1 }, |_| {});
        assert!(matches!(error, Err(Error::NoTokenizer { .. })), "{error:?}");
    }

    #[test]
    fn a_text_is_not_continued_with_the_outputs_of_a_head() {
        let network = fixture::decoder();
        let data = fixture::adapter(&network, &[], Some(4), 1.0, 2);
        let simulator = decoder(None).with_adapter(data.write().unwrap(), Mode::Streamed).unwrap();
        let error = simulator.generate("a", Sampling { max_tokens: 1, temperature: 0.0, seed: 1 }, |_| {});
        assert!(error.unwrap_err().to_string().contains("expected one without a task head"));
    }
}
