//! WireGuard public keys as they stand in records.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// A Curve25519 public key (WireGuard paper, section 5.4); base64 as text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey(pub [u8; 32]);

/// Text that is no public key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublicKeyError {
    #[error("public key {0:?} is not the base64 of 32 bytes: take it from the peer's `publicKey` as it stands")]
    Format(String),
    #[error("public key {0} is a point of low order that no private key yields: the record is forged or damaged")]
    LowOrder(PublicKey),
}

/// The encodings of the points of low order on Curve25519 (RFC 7748 section 6.1 asks to reject what they yield).
const LOW_ORDER: [[u8; 32]; 7] = [
    [0; 32],
    {
        let mut one = [0; 32];
        one[0] = 1;
        one
    },
    [
        0xe0, 0xeb, 0x7a, 0x7c, 0x3b, 0x41, 0xb8, 0xae, 0x16, 0x56, 0xe3, 0xfa, 0xf1, 0x9f, 0xc4, 0x6a, 0xda, 0x09,
        0x8d, 0xeb, 0x9c, 0x32, 0xb1, 0xfd, 0x86, 0x62, 0x05, 0x16, 0x5f, 0x49, 0xb8, 0x00,
    ],
    [
        0x5f, 0x9c, 0x95, 0xbc, 0xa3, 0x50, 0x8c, 0x24, 0xb1, 0xd0, 0xb1, 0x55, 0x9c, 0x83, 0xef, 0x5b, 0x04, 0x44,
        0x5c, 0xc4, 0x58, 0x1c, 0x8e, 0x86, 0xd8, 0x22, 0x4e, 0xdd, 0xd0, 0x9f, 0x11, 0x57,
    ],
    near_prime(0xec),
    near_prime(0xed),
    near_prime(0xee),
];

/// Returns the little-endian encoding of 2^255 - 1 with its lowest byte replaced, so p - 1, p or p + 1.
const fn near_prime(lowest: u8) -> [u8; 32] {
    let mut bytes = [0xff; 32];
    bytes[0] = lowest;
    bytes[31] = 0x7f;
    bytes
}

impl FromStr for PublicKey {
    type Err = PublicKeyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes = STANDARD
            .decode(text)
            .ok()
            .and_then(|bytes| <[u8; 32]>::try_from(bytes).ok())
            .ok_or_else(|| PublicKeyError::Format(text.to_owned()))?;
        let mut canonical = bytes;
        // RFC 7748 section 5: the highest bit is ignored.
        canonical[31] &= 0x7f;
        if LOW_ORDER.contains(&canonical) {
            return Err(PublicKeyError::LowOrder(Self(bytes)));
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_its_text() {
        let key = PublicKey([7; 32]);
        assert_eq!(key.to_string().parse(), Ok(key));
    }

    #[test]
    fn wrong_lengths_and_alphabets_are_refused() {
        for text in ["", "AAAA", "not base64!", &STANDARD.encode([7; 31]), &STANDARD.encode([7; 33])] {
            assert!(matches!(text.parse::<PublicKey>(), Err(PublicKeyError::Format(_))), "{text}");
        }
    }

    #[test]
    fn points_of_low_order_are_refused() {
        for bytes in LOW_ORDER {
            let text = STANDARD.encode(bytes);
            assert!(matches!(text.parse::<PublicKey>(), Err(PublicKeyError::LowOrder(_))), "{text}");
        }
    }
}
