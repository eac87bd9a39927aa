//! Decides when a record's absence at the broker is believed.
//!
//! A broker that was wiped or restored from an old backup has lost the other clusters' records together with ours, and
//! taking their absence for departure would cut every cable. Our own Cluster record is the canary: while the broker is
//! without it although it had it before, absences mean nothing; once it is back, the others get a while to come back.
//!
//! ```text
//!                canary missing             canary there
//!     Whole ------------------------> Lost -------------> Healing
//!       ^                              ^                  |     |
//!       |                              +-- missing again -+     |
//!       +------------------ there for 30 s --------------------+
//! ```

use std::time::{Duration, Instant};

/// How long the broker must hold our own record again before absences of others are believed.
pub const HEALING: Duration = Duration::from_secs(30);

/// What we believe of the broker's completeness.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Absences {
    /// Absences are departures.
    #[default]
    Whole,
    /// The broker has lost our record.
    Lost,
    /// Our record is there again since then.
    Healing { since: Instant },
}

/// What one look at both stores says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// The broker has our own Cluster record.
    pub own_there: bool,
    /// We hold copies of other clusters' records, so that the broker once had ours: each cluster sends its own first.
    /// This takes the place of a memory that a restart would lose.
    pub copies_here: bool,
}

impl Absences {
    /// Takes a look at both stores.
    pub fn handle_look(&mut self, look: Look, now: Instant) {
        *self = match (*self, look.own_there) {
            (Self::Whole, true) => Self::Whole,
            (Self::Whole, false) if look.copies_here => Self::Lost,
            (Self::Whole, false) => Self::Whole,
            (Self::Lost | Self::Healing { .. }, false) => Self::Lost,
            (Self::Lost, true) => Self::Healing { since: now },
            (Self::Healing { since }, true) if now.duration_since(since) >= HEALING => Self::Whole,
            (Self::Healing { since }, true) => Self::Healing { since },
        };
    }

    /// Tells whether a record that the broker lacks has been taken back by its cluster.
    pub fn count(self) -> bool {
        self == Self::Whole
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const THERE: Look = Look { own_there: true, copies_here: true };
    const MISSING: Look = Look { own_there: false, copies_here: true };

    #[test]
    fn a_fresh_cluster_believes_absences() {
        let mut absences = Absences::default();
        absences.handle_look(Look { own_there: false, copies_here: false }, Instant::now());
        assert!(absences.count());
    }

    #[test]
    fn a_restart_before_a_wiped_broker_believes_none() {
        let mut absences = Absences::default();
        absences.handle_look(MISSING, Instant::now());
        assert!(!absences.count());
    }

    #[test]
    fn a_wiped_broker_is_believed_half_a_minute_after_it_is_whole() {
        let start = Instant::now();
        let mut absences = Absences::default();
        for (second, look, believed) in
            [(0, THERE, true), (1, MISSING, false), (2, THERE, false), (31, THERE, false), (32, THERE, true)]
        {
            absences.handle_look(look, start + Duration::from_secs(second));
            assert_eq!(absences.count(), believed, "second {second}");
        }
    }

    #[test]
    fn a_broker_wiped_again_starts_over() {
        let start = Instant::now();
        let mut absences = Absences::default();
        for (second, look) in [(0, MISSING), (1, THERE), (30, MISSING), (31, THERE), (60, THERE)] {
            absences.handle_look(look, start + Duration::from_secs(second));
        }
        assert!(!absences.count());
        absences.handle_look(THERE, start + Duration::from_secs(61));
        assert!(absences.count());
    }

    #[test]
    fn a_wiped_broker_stays_lost_when_the_copies_go() {
        let mut absences = Absences::Lost;
        absences.handle_look(Look { own_there: false, copies_here: false }, Instant::now());
        assert_eq!(absences, Absences::Lost);
    }
}
