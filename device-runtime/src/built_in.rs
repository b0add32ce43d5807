//! What a build can run: the features `text` and `sound` bring operators that only some networks need. A base is asked before anything runs,
//! so an operator without code is never met. What operators compute this module does not know.

use rankpatch_format::base::Base;
use rankpatch_format::graph::Op;

use crate::{Error, Result};

/// Whether there is code for what networks need that read tokens.
pub(crate) const TEXT: bool = cfg!(feature = "text");
/// Whether there is code for what networks need that read samples.
pub(crate) const SOUND: bool = cfg!(feature = "sound");

/// Whether this build can run `base`. With the features `text` and `sound` every build can run every base.
///
/// # Errors
/// [`Error::NotBuiltIn`] with the first operator that there is no code for.
pub fn check_built_in(base: &Base<'_>) -> Result<()> {
    check(base, TEXT, SOUND)
}

fn check(base: &Base<'_>, text: bool, sound: bool) -> Result<()> {
    if text && sound {
        return Ok(());
    }
    base.ops().try_for_each(|(op, kind)| match kind {
        Op::Embedding { .. }
        | Op::RmsNorm { .. }
        | Op::Rope { .. }
        | Op::Silu { .. }
        | Op::Mul { .. }
        | Op::Attention { causal: true, .. }
            if !text =>
        {
            Err(Error::NotBuiltIn { op, feature: "text" })
        }
        Op::Mfcc { .. } if !sound => Err(Error::NotBuiltIn { op, feature: "sound" }),
        _ => Ok(()),
    })
}

#[cfg(test)]
mod tests {
    use rankpatch_format::fixture;
    use rankpatch_format::layout::Layout;

    use super::*;
    use crate::tests::image;

    #[test]
    fn what_is_left_out_is_named() {
        let [decoder, encoder, listener] = [fixture::decoder(), fixture::encoder(), fixture::listener()]
            .map(|network| image(&network, Layout::RowMajor, 4));
        let [decoder, encoder, listener] =
            [&decoder, &encoder, &listener].map(|image| Base::new(image.bytes()).unwrap());
        for base in [&decoder, &encoder, &listener] {
            assert_eq!(check(base, true, true), Ok(()));
            assert_eq!(check_built_in(base), Ok(()));
        }
        let missing = |op, feature| Err(Error::NotBuiltIn { op, feature });
        assert_eq!(check(&decoder, false, true), missing(0, "text"));
        assert_eq!(check(&decoder, true, false), Ok(()));
        assert_eq!(check(&listener, true, false), missing(0, "sound"));
        assert_eq!(check(&encoder, false, false), Ok(()));
    }
}
