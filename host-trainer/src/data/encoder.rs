//! Texts as token ids: split by the tokenizer that a base carries, as the device splits them, or by the `tokenizer.json` of a Hugging
//! Face model, with the special tokens that its post-processor puts around a text.
//!
//! It does not know what is learned from the ids.

use std::path::{Path, PathBuf};

use rankpatch_format::base::Base;
use rankpatch_format::tokenizer::Tokenizer;
use serde_json::Value;
use tokenizers::TruncationParams;

use super::merge;
use crate::{Error, Result};

/// The file of a Hugging Face tokenizer.
const FILE: &str = "tokenizer.json";
/// The file beside it that says which ids start and end a text.
const CONFIG: &str = "config.json";

/// What splits texts.
pub enum TextEncoder<'b> {
    /// The base's own tokenizer.
    Device(Tokenizer<'b>),
    /// A Hugging Face tokenizer.
    Hub(Box<Hub>),
}

/// A text to learn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Learned {
    /// The id that starts a sequence, the prompt, the text, the id that ends it, as far as the length allows.
    pub ids: Vec<u32>,
    /// Ids of the prompt.
    pub given: usize,
    /// Characters of what is left of the text, its end included.
    pub characters: usize,
}

impl<'b> TextEncoder<'b> {
    /// The encoder of a base: `tokenizer`, a file or a folder, if it is named; else the base's own; else the one in the folder
    /// `origin` that the base was imported from. `None` if there is none. Whole sequences are cut to `max_length` ids.
    ///
    /// # Errors
    /// [`Error::Io`], and [`Error::Field`] if the file is no tokenizer, or one is named for a base with its own.
    pub fn of(
        base: &Base<'b>,
        origin: &Path,
        tokenizer: Option<&Path>,
        max_length: Option<usize>,
    ) -> Result<Option<Self>> {
        match (tokenizer, base.tokenizer()) {
            (Some(path), Some(_)) => {
                let found = "one of its own, which devices use";
                Err(Error::field(path, "tokenizer", "a base without tokenizer", found))
            }
            (None, Some(own)) => Ok(Some(Self::Device(own))),
            (_, None) => Self::hub(base.vocab_size(), origin, tokenizer, max_length),
        }
    }

    /// The same for a network of `vocab_size` ids that has no tokenizer of its own.
    ///
    /// # Errors
    /// As [`TextEncoder::of`].
    pub fn hub(
        vocab_size: u32,
        origin: &Path,
        tokenizer: Option<&Path>,
        max_length: Option<usize>,
    ) -> Result<Option<Self>> {
        let file = match tokenizer {
            Some(path) if path.is_dir() => path.join(FILE),
            Some(path) => path.to_owned(),
            None => origin.join(FILE),
        };
        if tokenizer.is_none() && !file.is_file() {
            return Ok(None);
        }
        Ok(Some(Self::Hub(Box::new(Hub::load(&file, vocab_size, max_length)?))))
    }

    /// The ids of a whole sequence, special ones included; at most `max_length`.
    ///
    /// # Errors
    /// [`Error::Field`] for an id that the base does not have.
    pub fn sequence(&self, text: &str, max_length: Option<usize>) -> Result<Vec<u32>> {
        match self {
            Self::Hub(hub) => hub.sequence(text),
            Self::Device(tokenizer) => {
                let mut ids = device_ids(tokenizer, text)?;
                ids.truncate(max_length.unwrap_or(usize::MAX));
                Ok(ids)
            }
        }
    }

    /// The ids of a text behind its prompt, which may be empty; each is split on its own, as the device splits a prompt.
    /// `None` if `max_length` leaves nothing of the text.
    ///
    /// # Errors
    /// As [`TextEncoder::sequence`]; [`Error::Field`] if the model does not say what ends a text.
    pub fn learned(&self, prompt: &str, text: &str, max_length: Option<usize>) -> Result<Option<Learned>> {
        let (mut ids, given, ends) = match self {
            Self::Device(tokenizer) => {
                let bos = u32::from(tokenizer.info().bos);
                let mut ids = device_ids(tokenizer, prompt)?;
                let given = ids.len() - 1;
                let behind = &device_ids(tokenizer, text)?[1..];
                ids.extend_from_slice(behind);
                ids.push(bos);
                (ids, given, ends_on_device(tokenizer, behind))
            }
            Self::Hub(hub) => {
                let (start, end) = hub.limits()?;
                let (prompt, (behind, ends)) = (hub.plain(prompt)?.0, hub.plain(text)?);
                let ids = [start].into_iter().chain(prompt.iter().copied()).chain(behind).chain([end]);
                (ids.collect(), prompt.len(), ends)
            }
        };
        let mut characters = text.chars().count() + 1;
        if let Some(length) = max_length.filter(|length| *length < ids.len()) {
            ids.truncate(length);
            let kept = length.saturating_sub(1 + given);
            characters = ends.get(..kept).and_then(|ends| ends.iter().copied().max()).unwrap_or(0);
            if characters == 0 {
                return Ok(None);
            }
        }
        Ok(Some(Learned { ids, given, characters }))
    }
}

fn device_ids(tokenizer: &Tokenizer<'_>, text: &str) -> Result<Vec<u32>> {
    Ok(merge::encode(tokenizer, text)?.into_iter().map(u32::from).collect())
}

/// Characters that have begun by the end of each id.
fn ends_on_device(tokenizer: &Tokenizer<'_>, ids: &[u32]) -> Vec<usize> {
    let mut characters = 0;
    let mut space = tokenizer.info().prefix_space;
    let ends = ids.iter().map(|id| {
        for byte in tokenizer.piece(*id as u16) {
            // Bytes that continue a character are 10xx_xxxx; a space before the text is not the text's.
            characters += usize::from(byte & 0xC0 != 0x80 && !(space && *byte == b' '));
            space = false;
        }
        characters
    });
    ends.collect()
}

/// A Hugging Face tokenizer.
pub struct Hub {
    path: PathBuf,
    tokenizer: tokenizers::Tokenizer,
    /// The same, cutting to the longest sequence.
    cutting: tokenizers::Tokenizer,
    vocab_size: u32,
    /// The ids that start and end a text to learn, if the model says so.
    bos: Option<u32>,
    eos: Option<u32>,
}

impl Hub {
    fn load(path: &Path, vocab_size: u32, max_length: Option<usize>) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(Error::io(path))?;
        let mut tokenizer = tokenizers::Tokenizer::from_bytes(bytes)
            .map_err(|error| Error::field(path, "content", "a tokenizer", error))?;
        // What a file says of cutting and padding is somebody else's batch.
        let failed = |error| Error::field(path, "max_length", "room for the special tokens", error);
        tokenizer.with_padding(None).with_truncation(None).map_err(failed)?;
        let mut cutting = tokenizer.clone();
        let params =
            max_length.map(|max_length| TruncationParams { max_length, ..TruncationParams::default() });
        cutting.with_truncation(params).map_err(failed)?;
        let config = path.with_file_name(CONFIG);
        let config: Value = match std::fs::read(&config) {
            Ok(text) => serde_json::from_slice(&text)
                .map_err(|error| Error::field(&config, "content", "a JSON object", error))?,
            Err(_) => Value::Null,
        };
        // Models with several ends have the one of plain texts first.
        let id = |key: &str| {
            let id = config.get(key)?;
            u32::try_from(id.as_array().map_or(Some(id), |ids| ids.first())?.as_u64()?).ok()
        };
        let (bos, eos) = (id("bos_token_id"), id("eos_token_id"));
        Ok(Self { path: path.to_owned(), tokenizer, cutting, vocab_size, bos, eos })
    }

    /// The ids around a text to learn.
    fn limits(&self) -> Result<(u32, u32)> {
        let eos = self.eos.filter(|id| *id < self.vocab_size).ok_or_else(|| {
            let found = self.eos.map_or("nothing".into(), |id| id.to_string());
            let config = self.path.with_file_name(CONFIG);
            let expected = format!("an id below {} that ends a text", self.vocab_size);
            Error::field(&config, "eos_token_id", expected, found)
        })?;
        Ok((self.bos.filter(|id| *id < self.vocab_size).unwrap_or(eos), eos))
    }

    fn sequence(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.cutting.encode(text, true).map_err(|error| self.fails(text, error))?;
        self.checked(text, encoding.get_ids())
    }

    /// The ids of a text alone, and the characters that each ends behind.
    fn plain(&self, text: &str) -> Result<(Vec<u32>, Vec<usize>)> {
        let encoding =
            self.tokenizer.encode_char_offsets(text, false).map_err(|error| self.fails(text, error))?;
        let ends = encoding.get_offsets().iter().map(|(_, end)| *end).collect();
        Ok((self.checked(text, encoding.get_ids())?, ends))
    }

    fn checked(&self, text: &str, ids: &[u32]) -> Result<Vec<u32>> {
        match ids.iter().find(|id| **id >= self.vocab_size) {
            None => Ok(ids.to_vec()),
            Some(id) => {
                let expected = format!("ids below {}, as the base has", self.vocab_size);
                Err(Error::field(&self.path, format!("ids of {text:?}"), expected, id))
            }
        }
    }

    fn fails(&self, text: &str, error: impl std::fmt::Display) -> Error {
        Error::field(&self.path, format!("ids of {text:?}"), "some", error)
    }
}

#[cfg(test)]
mod tests {
    use rankpatch_format::layout::Layout;

    use super::*;
    use crate::base::Image;
    use crate::data::test_data::carried;

    fn folder(family: &str) -> PathBuf {
        carried("hf-golden").join(family)
    }

    fn image(path: &Path) -> Image {
        Image::build(&crate::import::load(path).unwrap(), Layout::RowMajor, 4).unwrap()
    }

    /// Texts with what the tokenizers library gives for them, with and without special ids.
    fn golden(family: &str) -> Vec<(String, Vec<u32>, Vec<u32>)> {
        let lines: Vec<Value> =
            serde_json::from_slice(&std::fs::read(folder(family).join("tokens.json")).unwrap()).unwrap();
        let ids =
            |value: &Value| value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
        let line = |line: &Value| {
            (line["text"].as_str().unwrap().to_owned(), ids(&line["whole"]), ids(&line["plain"]))
        };
        lines.iter().map(line).collect()
    }

    #[test]
    fn texts_are_split_as_the_library_splits_them() {
        // Family, and the ids that start and end a text to learn.
        for (family, limits) in [("llama", Some([1, 2])), ("gpt2", Some([0, 0])), ("bert", None)] {
            let path = folder(family);
            let image = image(&path);
            let texts = TextEncoder::of(&image.base().unwrap(), &path, None, None).unwrap().unwrap();
            for (text, whole, plain) in golden(family) {
                assert_eq!(texts.sequence(&text, None).unwrap(), whole, "{family}: {text}");
                let learned = texts.learned("", &text, None);
                let Some([start, end]) = limits else {
                    assert!(learned.unwrap_err().to_string().contains("eos_token_id: expected an id"));
                    continue;
                };
                let ids = [vec![start], plain, vec![end]].concat();
                let characters = text.chars().count() + 1;
                assert_eq!(learned.unwrap(), Some(Learned { ids, given: 0, characters }), "{family}: {text}");
            }
        }
    }

    #[test]
    fn what_is_cut_keeps_its_special_ids_and_counts_its_characters() {
        let path = folder("bert");
        let bert = image(&path);
        let texts = TextEncoder::of(&bert.base().unwrap(), &path, None, Some(4)).unwrap().unwrap();
        assert_eq!(texts.sequence("the cat's hat sat", Some(4)).unwrap(), [2, 32, 33, 3]);
        let path = folder("gpt2");
        let gpt2 = image(&path);
        let texts = TextEncoder::of(&gpt2.base().unwrap(), &path, None, None).unwrap().unwrap();
        let (prompt, text) = ("a cat", " sat on a mat");
        let whole = texts.learned(prompt, text, None).unwrap().unwrap();
        assert_eq!((whole.given, whole.characters, whole.ids.len()), (2, 14, 8), "{whole:?}");
        // " sat" and " on".
        let cut = texts.learned(prompt, text, Some(5)).unwrap().unwrap();
        assert_eq!((cut.ids.as_slice(), cut.given, cut.characters), (&whole.ids[..5], 2, 7));
        assert_eq!(texts.learned(prompt, text, Some(3)).unwrap(), None);
    }

    #[test]
    fn the_tokenizer_is_the_bases_own_or_one_that_fits() {
        let own = image(&carried("bases/stories260k"));
        let own = own.base().unwrap();
        let texts = TextEncoder::of(&own, &folder("gpt2"), None, None).unwrap().unwrap();
        assert!(matches!(texts, TextEncoder::Device(_)), "a base's own comes first");
        assert_eq!(texts.sequence("a cat", None).unwrap()[0], 1);
        let named = |base: &Base<'_>, path: &Path| {
            TextEncoder::of(base, Path::new(""), Some(path), None).map(|_| ()).unwrap_err().to_string()
        };
        assert!(named(&own, &folder("gpt2")).contains("expected a base without tokenizer"));
        let mistral = image(&folder("mistral"));
        let base = mistral.base().unwrap();
        assert!(TextEncoder::of(&base, &folder("mistral"), None, None).unwrap().is_none());
        assert!(
            named(&base, &folder("mistral").join("config.json"))
                .contains("config.json: content: expected a tokenizer")
        );
        // 43 ids, where the tokenizer has 45.
        let texts = TextEncoder::of(&base, Path::new(""), Some(&folder("gpt2")), None).unwrap().unwrap();
        let error = texts.sequence("  that sad cat  ate", None).unwrap_err().to_string();
        assert!(error.ends_with("expected ids below 43, as the base has, found 43"), "{error}");
    }
}
