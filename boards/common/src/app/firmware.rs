//! What is built into a firmware: the product it is for and the keys it knows. Both come from the environment of the build:
//! `RANKPATCH_PRODUCT`, a name, and `RANKPATCH_KEYS`, one or two public keys in hexadecimal digits with a comma between them.
//! Without keys every file is refused, unless the feature `insecure` lets unsigned ones pass.

use rankpatch_format::{KeyId, ProductId};
use rankpatch_runtime::trust::{Keys, PublicKey};

/// Name of the product.
pub const PRODUCT: &str = match option_env!("RANKPATCH_PRODUCT") {
    Some(name) => name,
    None => "",
};

/// Whether unsigned adapters are accepted.
pub const INSECURE: bool = cfg!(feature = "insecure");

/// The keys whose signatures count.
pub const KEYS: Keys = match option_env!("RANKPATCH_KEYS") {
    Some(text) => parse(text.as_bytes()),
    None => Keys::none(),
};

#[cfg(not(feature = "insecure"))]
pub(super) type Verify = Keys;
#[cfg(not(feature = "insecure"))]
pub(super) const VERIFIER: Verify = KEYS;

#[cfg(feature = "insecure")]
pub(super) type Verify = rankpatch_runtime::trust::AllowUnsigned<Keys>;
#[cfg(feature = "insecure")]
pub(super) const VERIFIER: Verify = rankpatch_runtime::trust::AllowUnsigned(KEYS);

/// The product's id; none without a name.
pub fn product() -> ProductId {
    if PRODUCT.is_empty() { ProductId::NONE } else { ProductId::of(PRODUCT) }
}

/// The ids of the keys.
pub(super) fn key_ids() -> impl Iterator<Item = KeyId> {
    KEYS.ids()
}

/// Says at every start whom the firmware trusts.
pub(super) fn announce() {
    #[cfg(feature = "defmt")]
    {
        if INSECURE {
            defmt::warn!("INSECURE firmware: unsigned adapters are accepted");
        }
        let keys = key_ids().count();
        if keys == 0 && !INSECURE {
            defmt::warn!("no key is built in: every adapter is refused");
        } else {
            defmt::info!("product {=str}, {=usize} keys", PRODUCT, keys);
        }
    }
}

/// One or two keys, at compile time.
const fn parse(text: &[u8]) -> Keys {
    const DIGITS: usize = 64;
    match text.len() {
        DIGITS => Keys::one(key(text, 0)),
        len if len == 2 * DIGITS + 1 && text[DIGITS] == b',' => {
            Keys::two(key(text, 0), key(text, DIGITS + 1))
        }
        _ => panic!(
            "RANKPATCH_KEYS: expected one or two keys of 64 hexadecimal digits, with a comma between them"
        ),
    }
}

const fn key(text: &[u8], start: usize) -> PublicKey {
    let mut key = [0; 32];
    let mut at = 0;
    while at < key.len() {
        key[at] = digit(text[start + 2 * at]) << 4 | digit(text[start + 2 * at + 1]);
        at += 1;
    }
    key
}

const fn digit(character: u8) -> u8 {
    match character {
        b'0'..=b'9' => character - b'0',
        b'a'..=b'f' => character - b'a' + 10,
        _ => panic!("RANKPATCH_KEYS: expected the digits 0 to 9 and a to f"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::format;
    use std::vec::Vec;

    #[test]
    fn keys_are_read_from_text() {
        let first: PublicKey = core::array::from_fn(|i| i as u8 * 7);
        let second: PublicKey = core::array::from_fn(|i| 255 - i as u8);
        let hex = |key: &PublicKey| key.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat();
        let ids: Vec<_> = parse(hex(&first).as_bytes()).ids().collect();
        assert_eq!(ids, [KeyId::of(&first)]);
        let ids: Vec<_> = parse(format!("{},{}", hex(&first), hex(&second)).as_bytes()).ids().collect();
        assert_eq!(ids, [KeyId::of(&first), KeyId::of(&second)]);
    }
}
