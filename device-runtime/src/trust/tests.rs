//! The device's verifier against the host's, `ed25519-dalek` with `verify_strict`, where implementations are known to
//! differ; and what a header must say to be admitted.

extern crate std;
use std::vec::Vec;

use curve25519_dalek::constants::{ED25519_BASEPOINT_POINT, EIGHT_TORSION};
use curve25519_dalek::scalar::Scalar;
use ed25519_dalek::{Signer as _, SigningKey, VerifyingKey};
use rankpatch_format::header::MAX_STEP_LIMIT;
use sha2::{Digest as _, Sha512};

use super::*;

const MESSAGE: &[u8] = b"RPA: what is signed, of no particular length";

/// The order of the base point, little-endian.
const L: [u8; 32] = [
    0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14, 0, 0, 0,
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
];

/// Every encoding of a point whose order divides 8: the eight canonical ones, and those with y + p or a sign of zero.
const SMALL_ORDER: [&str; 14] = [
    "0100000000000000000000000000000000000000000000000000000000000000",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "0000000000000000000000000000000000000000000000000000000000000080",
    "0000000000000000000000000000000000000000000000000000000000000000",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
    "0100000000000000000000000000000000000000000000000000000000000080",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
];

fn bytes32(hex: &str) -> [u8; 32] {
    core::array::from_fn(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap())
}

fn signing_key(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&core::array::from_fn(|i| seed.wrapping_add(i as u8 * 7)))
}

/// What both say; fails if they differ.
fn accepted(key: &PublicKey, message: &[u8], signature: &Signature) -> bool {
    let device = Keys::one(*key).verify(KeyId::of(key), message, signature);
    assert!(matches!(device, Ok(()) | Err(TrustError::BadSignature)));
    let host = VerifyingKey::from_bytes(key).is_ok_and(|key| {
        key.verify_strict(message, &ed25519_dalek::Signature::from_bytes(signature)).is_ok()
    });
    assert_eq!(device.is_ok(), host, "key {key:02x?}, signature {signature:02x?}");
    host
}

fn join(r: &[u8], s: &[u8]) -> Signature {
    let mut signature = [0; 64];
    signature[..32].copy_from_slice(r);
    signature[32..].copy_from_slice(s);
    signature
}

#[test]
fn genuine_signatures_are_accepted_and_every_flipped_bit_is_refused() {
    for seed in 0..8 {
        let key = signing_key(seed);
        let public = key.verifying_key().to_bytes();
        let message: Vec<u8> = MESSAGE.iter().copied().cycle().take(usize::from(seed) * 61).collect();
        let signature = key.sign(&message).to_bytes();
        assert!(accepted(&public, &message, &signature));
        assert!(!accepted(&signing_key(seed + 1).verifying_key().to_bytes(), &message, &signature));
    }
    let key = signing_key(3);
    let public = key.verifying_key().to_bytes();
    let signature = key.sign(MESSAGE).to_bytes();
    for bit in 0..512 {
        let mut flipped = signature;
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(!accepted(&public, MESSAGE, &flipped), "bit {bit} of the signature");
    }
    for bit in 0..MESSAGE.len() * 8 {
        let mut flipped = MESSAGE.to_vec();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(!accepted(&public, &flipped, &signature), "bit {bit} of the message");
    }
}

#[test]
fn s_beyond_the_order_is_refused() {
    let key = signing_key(5);
    let public = key.verifying_key().to_bytes();
    let signature = key.sign(MESSAGE).to_bytes();
    let (r, s) = signature.split_at(32);
    assert!(accepted(&public, MESSAGE, &join(r, s)));
    // S + L, S + 2 L, ... as long as they fit: the same number modulo L, so the equation alone would accept them.
    let mut more: [u8; 32] = s.try_into().unwrap();
    for multiple in 1..16 {
        let mut carry = 0u16;
        for (to, l) in more.iter_mut().zip(L) {
            carry += u16::from(*to) + u16::from(l);
            *to = carry as u8;
            carry >>= 8;
        }
        if carry != 0 {
            break;
        }
        assert!(!accepted(&public, MESSAGE, &join(r, &more)), "S + {multiple} L");
    }
    assert!(!accepted(&public, MESSAGE, &join(r, &L)));
    assert!(!accepted(&public, MESSAGE, &join(r, &[0xff; 32])));
}

#[test]
fn small_orders_are_refused_as_key_and_as_r() {
    let key = signing_key(6);
    let public = key.verifying_key().to_bytes();
    let signature = key.sign(MESSAGE).to_bytes();
    for hex in SMALL_ORDER {
        let point = bytes32(hex);
        // With such a key, R = point and S = 0 would fit many messages.
        for r in SMALL_ORDER {
            for message in [MESSAGE, b"", b"another"] {
                assert!(!accepted(&point, message, &join(&bytes32(r), &[0; 32])), "key {hex}, R {r}");
            }
        }
        assert!(!accepted(&point, MESSAGE, &signature));
        assert!(!accepted(&public, MESSAGE, &join(&point, &signature[32..])), "R {hex}");
        assert!(!accepted(&public, MESSAGE, &join(&point, &[0; 32])), "R {hex}, S 0");
    }
}

#[test]
fn constant_signatures_are_refused() {
    for seed in 0..4 {
        let public = signing_key(seed).verifying_key().to_bytes();
        for byte in [0, 0xff, 0x80, 1] {
            assert!(!accepted(&public, MESSAGE, &[byte; 64]), "{byte:#x}");
        }
    }
    for key in [[0; 32], [0xff; 32], [2; 32]] {
        assert!(!accepted(&key, MESSAGE, &[0; 64]));
    }
}

/// Where the two differ, and nowhere else: a key or R with a part of small order, which only the key's owner can make. The device
/// multiplies by the cofactor, which takes that part away; `verify_strict` accepts when the parts happen to cancel out.
#[test]
fn the_one_difference_is_a_part_of_small_order() {
    let (secret, nonce) = (Scalar::from(0x5eed_0001_u64), Scalar::from(0x0ddb_a115_u64));
    let mut refused = 0;
    for (key_part, r_part) in [(0, 0), (1, 0), (0, 1), (4, 0), (2, 6), (3, 5)] {
        let key = ED25519_BASEPOINT_POINT * secret + EIGHT_TORSION[key_part];
        let r = ED25519_BASEPOINT_POINT * nonce + EIGHT_TORSION[r_part];
        let (key, r) = (key.compress().to_bytes(), r.compress().to_bytes());
        for message in 0..24_u8 {
            let digest = Sha512::new().chain_update(r).chain_update(key).chain_update([message]);
            let hash = Scalar::from_bytes_mod_order_wide(&digest.finalize().into());
            let signature = join(&r, (nonce + hash * secret).as_bytes());
            let device = Keys::one(key).verify(KeyId::of(&key), &[message], &signature);
            let host = VerifyingKey::from_bytes(&key).unwrap();
            let host = host.verify_strict(&[message], &ed25519_dalek::Signature::from_bytes(&signature));
            let cancels = (r_part + usize::from(hash.as_bytes()[0]) * key_part).is_multiple_of(8);
            assert_eq!(device, Ok(()), "parts {key_part} and {r_part}, message {message}");
            assert_eq!(host.is_ok(), cancels, "parts {key_part} and {r_part}, message {message}");
            refused += usize::from(!cancels);
        }
    }
    assert!(refused > 60, "{refused}");
}

#[test]
fn test_vectors_of_rfc_8032_are_accepted() {
    let vectors = [
        (
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
            "",
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
        ),
        (
            "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
            "72",
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
        ),
    ];
    for (key, message, signature) in vectors {
        let message: Vec<u8> = (0..message.len() / 2)
            .map(|i| u8::from_str_radix(&message[2 * i..2 * i + 2], 16).unwrap())
            .collect();
        let signature = join(&bytes32(&signature[..64]), &bytes32(&signature[64..]));
        assert!(accepted(&bytes32(key), &message, &signature));
    }
}

#[test]
fn a_key_is_found_by_its_id() {
    let (first, second, third) = (signing_key(1), signing_key(2), signing_key(3));
    let public = |key: &SigningKey| key.verifying_key().to_bytes();
    let keys = Keys::two(public(&first), public(&second));
    for key in [&first, &second] {
        let signature = key.sign(MESSAGE).to_bytes();
        assert_eq!(keys.verify(KeyId::of(&public(key)), MESSAGE, &signature), Ok(()));
    }
    let found = KeyId::of(&public(&third));
    let signature = third.sign(MESSAGE).to_bytes();
    assert_eq!(keys.verify(found, MESSAGE, &signature), Err(TrustError::UnknownKey { found }));
    assert_eq!(Keys::none().verify(found, MESSAGE, &signature), Err(TrustError::UnknownKey { found }));
    assert_eq!(keys.verify(KeyId::UNSIGNED, MESSAGE, &[0; 64]), Err(TrustError::Unsigned));
    let other = first.sign(MESSAGE).to_bytes();
    assert_eq!(keys.verify(KeyId::of(&public(&second)), MESSAGE, &other), Err(TrustError::BadSignature));
    assert_eq!(keys.ids().collect::<Vec<_>>(), [KeyId::of(&public(&first)), KeyId::of(&public(&second))]);
}

#[test]
fn headers_are_admitted_by_product_base_and_sequence() {
    let device = Identity { product: ProductId::of("lamp"), base_id: BaseId([7; 16]) };
    let header = Header {
        file_bytes: 500,
        sequence: 10,
        step_limit: 5,
        key_id: KeyId([1; 8]),
        base_id: device.base_id,
        product: device.product,
    };
    for floor in 5..10 {
        assert_eq!(device.admit(&header, floor), Ok(()), "{floor}");
    }
    assert_eq!(device.admit(&header, 4), Err(TrustError::TooFar { expected: 9, found: 10 }));
    assert_eq!(device.admit(&header, 10), Err(TrustError::Stale { expected: 11, found: 10 }));
    let last = Header { sequence: u32::MAX, step_limit: MAX_STEP_LIMIT, ..header };
    assert_eq!(device.admit(&last, u32::MAX - 1), Ok(()));
    assert_eq!(device.admit(&last, u32::MAX - MAX_STEP_LIMIT), Ok(()));
    let (expected, found) = (u32::MAX - 1, u32::MAX);
    assert_eq!(
        device.admit(&last, u32::MAX - MAX_STEP_LIMIT - 1),
        Err(TrustError::TooFar { expected, found })
    );
    assert_eq!(device.admit(&last, u32::MAX), Err(TrustError::Stale { expected: u32::MAX, found }));
    let product = ProductId::of("kettle");
    let wrong = TrustError::WrongProduct { expected: device.product, found: product };
    assert_eq!(device.admit(&Header { product, ..header }, 9), Err(wrong));
    let nobodys = Header { product: ProductId::NONE, ..header };
    assert!(
        matches!(device.admit(&nobodys, 9), Err(TrustError::WrongProduct { .. })),
        "signed for no product"
    );
    assert_eq!(device.admit(&Header { key_id: KeyId::UNSIGNED, ..nobodys }, 9), Ok(()));
    let base_id = BaseId([8; 16]);
    let wrong = TrustError::WrongBase { expected: device.base_id, found: base_id };
    assert_eq!(device.admit(&Header { base_id, ..header }, 9), Err(wrong));
}
