//! Globalnet: global addresses for clusters whose own addresses are others' too (Submariner chapter 8).

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod snapshot;
