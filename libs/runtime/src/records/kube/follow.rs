//! Keeps what is seen of a kind up to date: lists it, watches it, and begins anew after any failure.
//!
//! A watch ends by itself after a minute and goes on where it was, so that a server that is gone without a word is
//! noticed. After a failure everything is listed again: the server may have been restored from an older state, or the way
//! to it may have changed. Failures are tried again after 250 ms, doubling to 15 s, each time by chance half as long or
//! half as much again, lest all nodes come back in the same moment. Once one kind can be followed after a long outage,
//! the others are tried at once: decisions rest on several. What failed sooner than those 15 s has not succeeded: a
//! server that lets a kind be listed but not watched is not to be asked for listings without end.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use ::kube::runtime::watcher::{self, watcher};
use culvert_api::Resource;
use futures_util::StreamExt as _;
use jiff::Timestamp;
use tokio::time::Instant;

use super::access::{self, Link};
use super::answer::{Asked, Failure};
use super::cache::Cache;
use crate::reconcile::Backoff;

/// In seconds.
const WATCH: u32 = 60;
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// For each page of a listing: as JSON trees a hundred pods take some megabytes, for as long as they are read.
const PAGE: u32 = 100;

/// Follows a kind in a namespace, or in all, until dropped.
pub(super) async fn run(link: Arc<Link>, resource: Resource, namespace: Option<String>, cache: Arc<Cache>) {
    let config = || match namespace {
        Some(_) => watcher::Config::default().timeout(WATCH),
        None => watcher::Config::default().timeout(WATCH).page_size(PAGE),
    };
    let mut backoff = Backoff::default();
    let mut revived = link.revived.subscribe();
    loop {
        let began = Instant::now();
        let failure = match link.client().await {
            Ok(client) => {
                let mut events = pin!(watcher(access::api(client, resource, namespace.as_deref()), config()));
                loop {
                    match events.next().await {
                        Some(Ok(event)) => {
                            if let Some(outage) = cache.handle(event) {
                                let since = outage.since;
                                tracing::info!(server = %link.peer.server, resource = resource.plural, %since,
                                    "Records can be followed again");
                                if Timestamp::now().duration_since(since).unsigned_abs() > LONGEST_PAUSE {
                                    link.revived.send_replace(());
                                }
                            }
                        }
                        Some(Err(error)) => break Failure::from(error),
                        None => break Failure::Silent("the watch has ended".to_owned()),
                    }
                }
            }
            Err(cause) => Failure::Silent(cause),
        };
        if !failure.is_too_old() {
            let asked = Asked::all("watch", resource, namespace.as_deref());
            let error = failure.explained(&asked, &link.peer).to_string();
            if cache.fail(error.clone(), Timestamp::now()) {
                tracing::warn!(server = %link.peer.server, resource = resource.plural, error,
                    "Records cannot be followed and count as they were seen last");
            }
        }
        if began.elapsed() > LONGEST_PAUSE || revived.has_changed().is_ok_and(|changed| changed) {
            revived.mark_unchanged();
            backoff.succeeded();
        }
        let pause = backoff.failed().min(LONGEST_PAUSE);
        let pause = tokio::time::sleep(spread(pause, RandomState::new().build_hasher().finish()));
        tokio::select! {
            () = pause => {}
            Ok(()) = revived.changed() => backoff.succeeded(),
        }
    }
}

/// Returns between half and one and a half of `pause`.
fn spread(pause: Duration, random: u64) -> Duration {
    let thousandths = u32::try_from(random % 1001).expect("1000 is in range");
    pause * (500 + thousandths) / 1000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_are_spread_around_their_length() {
        let pause = Duration::from_secs(10);
        assert_eq!(spread(pause, 0), Duration::from_secs(5));
        assert_eq!(spread(pause, 500), pause);
        assert_eq!(spread(pause, 1000), Duration::from_secs(15));
        assert_eq!(spread(pause, 1001), Duration::from_secs(5));
    }
}
