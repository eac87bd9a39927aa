//! Finds the public address by the resolvers that the configuration names, and looks again every minute.

use std::io::Read;
use std::net::IpAddr;
use std::time::Duration;

use culvert_gateway_core::public_ip::{Resolver, first_ipv4, lowest};
use culvert_model::Addresses;
use culvert_runtime::reconcile::Wake;
use culvert_runtime::task::{Ended, Task};
use tokio::sync::watch;

/// Between two looks (Submariner chapter 4.5).
const INTERVAL: Duration = Duration::from_secs(60);
/// After a look at which no resolver worked.
const RETRY: Duration = Duration::from_secs(5);
/// For one HTTP request.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Of an HTTP answer, more is not read.
const MAX_BODY: u64 = 4096;

/// The running look-ups; they end with it.
pub(crate) struct PublicIp {
    found: watch::Receiver<Addresses>,
    task: Option<Task>,
}

impl PublicIp {
    /// Looks for the address now, and then every minute; `wake` rings whenever it changes.
    pub(crate) fn start(resolvers: Vec<Resolver>, wake: Wake) -> Self {
        let (sender, found) = watch::channel(literal(&resolvers));
        let task = (!resolvers.is_empty())
            .then(|| Task::spawn("the public-IP look-up", wake.clone(), run(resolvers, sender, wake)));
        Self { found, task }
    }

    pub(crate) fn found(&self) -> Addresses {
        *self.found.borrow()
    }

    /// Makes sure that it still runs.
    pub(crate) fn check(&self) -> Result<(), Ended> {
        self.task.as_ref().map_or(Ok(()), Task::check)
    }
}

/// Returns the address of a list that begins with a literal one: it is known without any look-up.
fn literal(resolvers: &[Resolver]) -> Addresses {
    match resolvers.first() {
        Some(Resolver::Literal(address)) => Addresses::from(IpAddr::V4(*address)),
        Some(Resolver::Dns(_) | Resolver::Api(_)) | None => Addresses::default(),
    }
}

async fn run(resolvers: Vec<Resolver>, found: watch::Sender<Addresses>, wake: Wake) {
    let mut failing = false;
    loop {
        let addresses = resolve(&resolvers).await;
        match (&addresses, failing) {
            (None, false) => tracing::warn!(?resolvers, "No resolver gives a public address"),
            (Some(addresses), true) => tracing::info!(?addresses, "Public address is found again"),
            (None, true) | (Some(_), false) => {}
        }
        failing = addresses.is_none();
        // An address that was found once is kept while nothing better is known.
        if let Some(addresses) = addresses
            && found.send_if_modified(|current| std::mem::replace(current, addresses) != addresses)
        {
            wake.wake();
        }
        tokio::time::sleep(if failing { RETRY } else { INTERVAL }).await;
    }
}

/// Returns what the first resolver that works gives.
async fn resolve(resolvers: &[Resolver]) -> Option<Addresses> {
    for resolver in resolvers {
        let found = match resolver {
            Resolver::Literal(address) => Some(Addresses::from(IpAddr::V4(*address))),
            Resolver::Dns(name) => match tokio::net::lookup_host((name.as_str(), 0)).await {
                Ok(answer) => Some(lowest(answer.map(|address| address.ip()))),
                Err(error) => {
                    tracing::debug!(name, %error, "Public address look-up failed");
                    None
                }
            },
            Resolver::Api(url) => ask(url.clone()).await,
        };
        if let Some(addresses) = found.filter(|addresses| *addresses != Addresses::default()) {
            return Some(addresses);
        }
    }
    None
}

/// Asks a service that answers with the address it is asked from.
async fn ask(url: String) -> Option<Addresses> {
    let asked = tokio::task::spawn_blocking(move || {
        let agent: ureq::Agent = ureq::Agent::config_builder().timeout_global(Some(TIMEOUT)).build().into();
        let answer = agent.get(format!("https://{url}")).call();
        let body = answer.map_err(std::io::Error::other).and_then(|answer| {
            let mut body = String::new();
            answer.into_body().into_reader().take(MAX_BODY).read_to_string(&mut body)?;
            Ok(body)
        });
        match body {
            Ok(body) => first_ipv4(&body),
            Err(error) => {
                tracing::debug!(url, %error, "Public address look-up failed");
                None
            }
        }
    });
    asked.await.ok().flatten().map(|address| Addresses::from(IpAddr::V4(address)))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[tokio::test]
    async fn the_first_resolver_that_works_counts() {
        let nobody = Resolver::Dns("no-such-host.invalid".to_owned());
        let local = Resolver::Dns("127.0.0.1".to_owned());
        let literal = Resolver::Literal(Ipv4Addr::new(198, 51, 100, 7));
        assert_eq!(resolve(&[]).await, None);
        assert_eq!(resolve(std::slice::from_ref(&nobody)).await, None);
        let found = resolve(&[nobody, local, literal]).await.expect("an address");
        assert_eq!(found.v4, Some(Ipv4Addr::LOCALHOST));
    }

    #[tokio::test]
    async fn a_service_that_does_not_answer_is_passed_over() {
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let api = Resolver::Api(format!("{closed}/ip"));
        let literal = Resolver::Literal(Ipv4Addr::new(198, 51, 100, 7));
        assert_eq!(resolve(&[api, literal]).await.expect("an address").v4, Some(Ipv4Addr::new(198, 51, 100, 7)));
    }
}
