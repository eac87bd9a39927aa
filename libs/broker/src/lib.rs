//! Decides what this cluster sends to, takes from and deletes at the broker, and does it.
//!
//! [`sync`] holds the rules as a pure function of both stores' content, [`absence`] when a record's absence at the
//! broker is believed, and [`Syncer`] reads, plans and writes. The rules are Submariner's (chapters 3.4 to 3.6), with
//! one addition: nothing that another cluster writes can speak for a third one or take traffic from this one.

pub mod absence;
mod accept;
mod shell;
mod side;
pub mod sync;

pub use accept::{Reason, Refusal};
pub use shell::{Failure, SyncError, SyncReport, Syncer};
pub use side::{Found, Side};
