//! Decides when a member's token is renewed, from what the token itself says.
//!
//! A token of the API server is a JSON Web Token (RFC 7519): its claims say when it was issued and when it expires. The
//! signature is the server's matter. Tokens in Submariner's Secrets have no expiry and need no renewal.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use serde::Deserialize;

use crate::secret::SecretBytes;

/// When a token is valid, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenClaims {
    /// The account's user name, `system:serviceaccount:<namespace>:<name>`.
    pub subject: String,
    /// `None` if it never expires.
    pub validity: Option<Validity>,
}

/// From when and until when a token holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    pub issued: Timestamp,
    pub expires: Timestamp,
}

/// What is to be done with a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// It never expires.
    Never,
    /// Not before this time.
    At(Timestamp),
    /// Ask for one that lives as long, now.
    Due { lifetime: Duration },
    /// Too late: only a join helps.
    Expired { since: Timestamp },
}

/// Why a token tells nothing.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the broker token is no token of an API server ({reason}): run `culvert join` again")]
pub struct TokenError {
    reason: &'static str,
}

impl TokenClaims {
    /// Reads a token's claims.
    ///
    /// # Errors
    ///
    /// [`TokenError`] if it is no JSON Web Token, is not of an account, or does not say when it was issued.
    pub fn of(token: &SecretBytes) -> Result<Self, TokenError> {
        #[derive(Deserialize)]
        struct Claims {
            sub: String,
            iat: Option<i64>,
            exp: Option<i64>,
        }
        let error = |reason| TokenError { reason };
        let text = std::str::from_utf8(token.expose()).map_err(|_| error("not text"))?.trim();
        let claims = text.split('.').nth(1).ok_or(error("not three parts"))?;
        let claims = URL_SAFE_NO_PAD.decode(claims).map_err(|_| error("not base64"))?;
        let claims: Claims = serde_json::from_slice(&claims).map_err(|_| error("no claims"))?;
        let time = |second| Timestamp::from_second(second).map_err(|_| error("a time out of range"));
        let validity = match (claims.iat, claims.exp) {
            (_, None) => None,
            (Some(issued), Some(expires)) => Some(Validity { issued: time(issued)?, expires: time(expires)? }),
            (None, Some(_)) => return Err(error("no time of issue")),
        };
        let claims = Self { subject: claims.sub, validity };
        if claims.account().is_none() {
            return Err(error("not an account's"));
        }
        Ok(claims)
    }

    /// Tells whether a token with these claims was issued after `other`, to the same account.
    pub(crate) fn succeeds(&self, other: &Self) -> bool {
        let issued = |claims: &Self| claims.validity.map(|validity| validity.issued);
        self.subject == other.subject && issued(self) > issued(other)
    }

    /// Returns the namespace and the name of the account.
    pub(crate) fn account(&self) -> Option<(&str, &str)> {
        self.subject.strip_prefix("system:serviceaccount:")?.split_once(':')
    }

    /// Decides at `now`: a token is renewed at a third of its life, so that weeks are left if that fails.
    ///
    /// `random` puts it off by up to a thirtieth, so that clusters that joined together do not ask together.
    pub fn renewal(&self, now: Timestamp, random: u64) -> Renewal {
        let Some(Validity { issued, expires }) = self.validity else { return Renewal::Never };
        if now >= expires {
            return Renewal::Expired { since: expires };
        }
        let lifetime = expires.duration_since(issued).max(jiff::SignedDuration::ZERO).unsigned_abs();
        let thousandths = u32::try_from(random % 1001).expect("1000 is in range");
        let due = expires - lifetime * 2 / 3 + lifetime / 30 * thousandths / 1000;
        if now < due { Renewal::At(due) } else { Renewal::Due { lifetime } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(claims: &str) -> SecretBytes {
        format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims)).into_bytes().into()
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_token_is_renewed_at_a_third_of_its_life() {
        let claims = TokenClaims::of(&token(r#"{"sub":"system:serviceaccount:n:a","iat":3000,"exp":6000}"#)).unwrap();
        let lifetime = Duration::from_secs(3000);
        for (now, expected) in [
            (3000, Renewal::At(at(4000))),
            (3999, Renewal::At(at(4000))),
            (4000, Renewal::Due { lifetime }),
            (5999, Renewal::Due { lifetime }),
            (6000, Renewal::Expired { since: at(6000) }),
        ] {
            assert_eq!(claims.renewal(at(now), 0), expected, "at {now}");
        }
        assert_eq!(claims.renewal(at(3000), 500), Renewal::At(at(4050)));
        assert_eq!(claims.renewal(at(4099), 1000), Renewal::At(at(4100)));
    }

    #[test]
    fn a_token_of_a_secret_never_expires() {
        let claims = TokenClaims::of(&token(r#"{"sub":"system:serviceaccount:ns:cluster-east"}"#)).unwrap();
        assert_eq!(claims.subject, "system:serviceaccount:ns:cluster-east");
        assert_eq!(claims.renewal(at(1 << 37), 0), Renewal::Never);
    }

    #[test]
    fn other_text_is_refused_with_a_way_out() {
        let stranger = String::from_utf8(token(r#"{"sub":"admin"}"#).expose().to_vec()).unwrap();
        for text in ["", "a.b", "a.!.c", "e30.e30.x", "\u{fffd}", &stranger] {
            let error = TokenClaims::of(&text.as_bytes().to_vec().into()).unwrap_err();
            assert!(error.to_string().contains("culvert join"), "{text:?}");
        }
        let backwards =
            TokenClaims::of(&token(r#"{"sub":"system:serviceaccount:n:a","iat":9000,"exp":6000}"#)).unwrap();
        assert_eq!(backwards.renewal(at(5000), 1000), Renewal::At(at(6000)));
    }
}
