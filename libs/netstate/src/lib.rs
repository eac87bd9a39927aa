//! Kernel network state as values, and the steps from one state to another.
//!
//! [`diff`] compares what was observed with what is desired and gives a [`Plan`]; `libs/kernel` observes and applies.
//! Uninstalling is the diff against the empty [`State`], restarting the diff against whatever is found.
//!
//! Laws, held by property tests against [`fake::FakeKernel`]: applying the plan gives the desired state, a second diff
//! is empty, nothing that another owner made is touched, one failed step is made up for by the next pass, and at no step
//! does a route stand without its `unreachable` companion if it has one before and after. States are ordered, so the
//! order of input never matters.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod fake;
pub mod nft;
pub mod own;

mod plan;
mod state;

pub use plan::{Plan, Step, diff};
pub use state::{Fdb, Link, LinkKind, Neighbour, Route, RouteKey, RouteTarget, Rule, RuleSelector, State, TableId};
