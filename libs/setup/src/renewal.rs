//! Decides when a member's token at the broker is renewed, when that is tried again, and what is to be said meanwhile.
//!
//! Everything is read from the token as it lies before the gateway, so that nothing has to be kept: a restart, another
//! gateway's renewal and a `join` that is run again all show in it. A token without an expiry, or that is none of an API
//! server, is nobody's concern here.

use std::time::Duration;

use jiff::Timestamp;

use crate::secret::SecretBytes;
use crate::token::{Renewal, TokenClaims};

/// Between two looks at the token: whoever runs `join` again wants to see that it helped.
const LOOK: Duration = Duration::from_secs(10);
/// How long a new token may take from a Secret to the files of a pod: kubelet looks every minute.
const ARRIVAL: Duration = Duration::from_secs(60);
/// After a first failure; then twice as long each time.
const FIRST_RETRY: Duration = Duration::from_secs(10);
const LONGEST_RETRY: Duration = Duration::from_secs(60 * 60);

/// What is to be done next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Look at the token again after this time.
    Wait(Duration),
    /// Ask for a token of the same account that lives as long as the broker says, or else for `lifetime`.
    Renew { claims: TokenClaims, lifetime: Duration },
}

/// What came of the renewals so far. `random` spreads them over time: see [`TokenClaims::renewal`].
#[derive(Clone, Debug)]
pub struct Renewals {
    random: u64,
    failures: u32,
    /// Nothing is tried before.
    rests_until: Option<Timestamp>,
    /// Why the last attempt failed.
    cause: Option<String>,
}

impl Renewals {
    /// Begins without a failure.
    pub fn new(random: u64) -> Self {
        Self { random, failures: 0, rests_until: None, cause: None }
    }

    /// Decides what to do about the token as it is.
    pub fn poll(&self, token: &SecretBytes, now: Timestamp) -> Step {
        let Ok(claims) = TokenClaims::of(token) else { return Step::Wait(LOOK) };
        match claims.renewal(now, self.random) {
            Renewal::Never | Renewal::Expired { .. } => Step::Wait(LOOK),
            Renewal::At(due) => Step::Wait(until(due, now)),
            Renewal::Due { lifetime } => match self.rests_until.filter(|&until| until > now) {
                Some(rest) => Step::Wait(until(rest, now)),
                None => Step::Renew { claims, lifetime },
            },
        }
    }

    /// Takes that there is a new token, which may take a while to come to where the old one is.
    pub fn handle_renewed(&mut self, now: Timestamp) {
        *self = Self { rests_until: Some(now + ARRIVAL), ..Self::new(self.random) };
    }

    /// Takes that an attempt failed, and why: the next comes after 10 s, then twice as long each time, up to an hour or a
    /// thirtieth of the token's `lifetime`.
    pub fn handle_failed(&mut self, cause: String, lifetime: Duration, now: Timestamp) {
        let longest = (lifetime / 30).clamp(FIRST_RETRY, LONGEST_RETRY);
        let pause = FIRST_RETRY.saturating_mul(2_u32.saturating_pow(self.failures)).min(longest);
        self.failures = self.failures.saturating_add(1);
        self.rests_until = Some(now + pause);
        self.cause = Some(cause);
    }

    /// Returns what is wrong with the token as it is, and the way out.
    pub fn complaint(&self, token: &SecretBytes, now: Timestamp) -> Option<String> {
        let claims = TokenClaims::of(token).ok()?;
        let time = |time: Timestamp| time.strftime("%Y-%m-%d %H:%M:%S UTC");
        match (claims.renewal(now, self.random), &self.cause) {
            (Renewal::Expired { since }, _) => Some(format!(
                "the broker token has expired at {}: run `culvert join` again; cables stay as they are meanwhile",
                time(since)
            )),
            (Renewal::Due { .. }, Some(cause)) => claims.validity.map(|validity| {
                format!(
                    "the broker token expires at {} and cannot be renewed: {cause}; if that lasts, run `culvert join` \
                     again before",
                    time(validity.expires)
                )
            }),
            (Renewal::Due { .. } | Renewal::At(_) | Renewal::Never, _) => None,
        }
    }
}

/// Tells whether `other` is a newer token than that with `claims`, of the same account, and not due itself.
pub fn is_renewed(other: &SecretBytes, claims: &TokenClaims, now: Timestamp) -> bool {
    TokenClaims::of(other)
        .is_ok_and(|other| other.succeeds(claims) && matches!(other.renewal(now, 0), Renewal::At(_) | Renewal::Never))
}

fn until(time: Timestamp, now: Timestamp) -> Duration {
    time.duration_since(now).max(jiff::SignedDuration::ZERO).unsigned_abs().min(LOOK)
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;

    use super::*;

    const DAY: i64 = 24 * 60 * 60;

    fn token(issued: i64, expires: i64) -> SecretBytes {
        let claims = format!(r#"{{"sub":"system:serviceaccount:n:cluster-east","iat":{issued},"exp":{expires}}}"#);
        format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims)).into_bytes().into()
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn is_due(step: &Step) -> bool {
        matches!(step, Step::Renew { .. })
    }

    #[test]
    fn a_token_is_looked_at_all_the_time_and_renewed_at_a_third() {
        let (renewals, month) = (Renewals::new(0), token(0, 30 * DAY));
        assert_eq!(renewals.poll(&month, at(DAY)), Step::Wait(LOOK));
        assert_eq!(renewals.poll(&month, at(10 * DAY - 5)), Step::Wait(Duration::from_secs(5)));
        let due = renewals.poll(&month, at(10 * DAY));
        let Step::Renew { claims, lifetime } = due else { panic!("{due:?}") };
        assert_eq!((claims.subject.as_str(), lifetime.as_secs()), ("system:serviceaccount:n:cluster-east", 2_592_000));
        assert_eq!(Renewals::new(1000).poll(&month, at(10 * DAY)), Step::Wait(LOOK));
        assert!(is_due(&Renewals::new(1000).poll(&month, at(11 * DAY))));
        assert_eq!(renewals.complaint(&month, at(10 * DAY)), None);
    }

    #[test]
    fn what_never_expires_or_is_no_token_of_an_api_server_is_left_alone() {
        let renewals = Renewals::new(0);
        let claims = URL_SAFE_NO_PAD.encode(r#"{"sub":"system:serviceaccount:n:cluster-east"}"#);
        for text in ["opaque", &format!("e30.{claims}.c2ln")] {
            let token = text.as_bytes().to_vec().into();
            assert_eq!(renewals.poll(&token, at(100 * DAY)), Step::Wait(LOOK), "{text}");
            assert_eq!(renewals.complaint(&token, at(100 * DAY)), None, "{text}");
        }
    }

    #[test]
    fn a_failure_is_tried_again_after_a_while_and_said_until_it_is_over() {
        let (mut renewals, token) = (Renewals::new(0), token(0, 30 * DAY));
        let mut now = at(10 * DAY);
        for pause in [10, 20, 40, 80, 160, 320, 640, 1280, 2560, 3600, 3600] {
            assert!(is_due(&renewals.poll(&token, now)));
            renewals.handle_failed("the server is away".to_owned(), Duration::from_secs(2_592_000), now);
            now += Duration::from_secs(pause - 1);
            assert_eq!(renewals.poll(&token, now), Step::Wait(Duration::from_secs(1)), "after {pause} s");
            now += Duration::from_secs(1);
        }
        let complaint = renewals.complaint(&token, now).unwrap();
        let expected = "the broker token expires at 1970-01-31 00:00:00 UTC and cannot be renewed: the server is away";
        assert!(complaint.starts_with(expected) && complaint.contains("`culvert join`"), "{complaint}");

        renewals.handle_renewed(now);

        assert_eq!(renewals.complaint(&token, now), None);
        assert_eq!(renewals.poll(&token, now), Step::Wait(LOOK), "the new one is on its way");
        assert!(is_due(&renewals.poll(&token, now + ARRIVAL)), "it did not come");
    }

    #[test]
    fn a_short_lived_token_is_tried_more_often() {
        let (mut renewals, token) = (Renewals::new(0), token(0, 600));
        for now in [200, 300, 400] {
            renewals.handle_failed("away".to_owned(), Duration::from_secs(600), at(now));
        }
        assert_eq!(renewals.poll(&token, at(419)), Step::Wait(Duration::from_secs(1)));
        assert!(is_due(&renewals.poll(&token, at(420))));
    }

    #[test]
    fn an_expired_token_is_said_and_only_a_join_helps() {
        let (mut renewals, old) = (Renewals::new(0), token(0, 600));
        renewals.handle_failed("away".to_owned(), Duration::from_secs(600), at(599));
        assert_eq!(renewals.poll(&old, at(600)), Step::Wait(LOOK));
        let complaint = renewals.complaint(&old, at(700)).unwrap();
        assert!(complaint.starts_with("the broker token has expired at 1970-01-01 00:10:00 UTC: run `culvert join`"));
        let repaired = token(700, 1300);
        assert_eq!(renewals.complaint(&repaired, at(700)), None);
    }

    #[test]
    fn a_token_that_somebody_else_has_renewed_is_not_renewed_again() {
        let claims = TokenClaims::of(&token(0, 600)).unwrap();
        assert!(is_renewed(&token(200, 800), &claims, at(250)));
        assert!(!is_renewed(&token(0, 600), &claims, at(250)), "the same");
        assert!(!is_renewed(&token(200, 800), &claims, at(500)), "due itself");
        assert!(!is_renewed(&b"opaque".to_vec().into(), &claims, at(250)));
    }
}
