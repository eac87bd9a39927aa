//! Finds the public address by the resolvers that the configuration names, and looks again every minute.

use std::io::{self, Read};
use std::net::IpAddr;
use std::time::Duration;

use culvert_api::Service;
use culvert_gateway_core::public_ip::{Resolver, first_ipv4, lowest};
use culvert_model::Addresses;
use culvert_runtime::proxy;
use culvert_runtime::reconcile::Wake;
use culvert_runtime::task::{Ended, Task};
use culvert_runtime::{Records, StoreError};
use tokio::sync::watch;

/// Between two looks (Submariner chapter 4.5).
const INTERVAL: Duration = Duration::from_secs(60);
/// After a look at which no resolver worked.
const RETRY: Duration = Duration::from_secs(5);
/// For one HTTP request.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Of an HTTP answer, more is not read.
const MAX_BODY: u64 = 4096;

/// Why a resolver gives no address.
#[derive(Debug, thiserror::Error)]
enum LookUpError {
    #[error("public IP resolver {resolver} does not answer")]
    Unanswered { resolver: Resolver, source: io::Error },
    #[error("public IP resolver {resolver} answers without an address")]
    NoAddress { resolver: Resolver },
    #[error("public IP resolver {resolver} cannot read the Service")]
    Unread { resolver: Resolver, source: StoreError },
    #[error("public IP resolver {resolver} finds no such Service in the namespace of this cluster's records")]
    NoService { resolver: Resolver },
    #[error(
        "public IP resolver {resolver} finds no address at the Service yet: see that it is of type LoadBalancer, and \
         that something in this cluster gives such Services addresses"
    )]
    NoIngress { resolver: Resolver },
}

/// Where a load balancer is, as its Service says.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Ingress {
    Addresses(Addresses),
    Host(String),
}

/// What the look-ups have come to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Outcome {
    /// What was found last; kept while nothing better is known.
    found: Addresses,
    /// Why nothing was found when it was last looked for.
    complaint: Option<String>,
}

/// The running look-ups; they end with it.
pub(crate) struct PublicIp {
    outcome: watch::Receiver<Outcome>,
    task: Option<Task>,
}

impl PublicIp {
    /// Looks for the address now, and then every minute; `wake` rings whenever the outcome changes. `records` have the
    /// Services of load balancers beside them.
    pub(crate) fn start(resolvers: Vec<Resolver>, records: Records, wake: Wake) -> Self {
        let (sender, outcome) = watch::channel(Outcome { found: literal(&resolvers), complaint: None });
        let task = (!resolvers.is_empty())
            .then(|| Task::spawn("the public-IP look-up", wake.clone(), run(resolvers, records, sender, wake)));
        Self { outcome, task }
    }

    pub(crate) fn found(&self) -> Addresses {
        self.outcome.borrow().found
    }

    /// Returns why no resolver gives an address, if none does.
    pub(crate) fn complaint(&self) -> Option<String> {
        self.outcome.borrow().complaint.clone()
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
        Some(Resolver::Dns(_) | Resolver::Api(_) | Resolver::LoadBalancer(_)) | None => Addresses::default(),
    }
}

async fn run(resolvers: Vec<Resolver>, records: Records, outcome: watch::Sender<Outcome>, wake: Wake) {
    loop {
        let next = match resolve(&resolvers, &records).await {
            Ok(found) => Outcome { found, complaint: None },
            Err(errors) => {
                let errors: Vec<String> =
                    errors.into_iter().map(|error| format!("{:#}", anyhow::Error::from(error))).collect();
                Outcome {
                    found: outcome.borrow().found,
                    complaint: Some(format!("{}: check --public-ip", errors.join("; "))),
                }
            }
        };
        let failing = next.complaint.is_some();
        if outcome.send_if_modified(|current| std::mem::replace(current, next.clone()) != next) {
            wake.wake();
        }
        tokio::time::sleep(if failing { RETRY } else { INTERVAL }).await;
    }
}

/// Returns what the first resolver that works gives.
///
/// # Errors
///
/// No resolver works: what each has to say.
async fn resolve(resolvers: &[Resolver], records: &Records) -> Result<Addresses, Vec<LookUpError>> {
    let mut errors = Vec::new();
    for resolver in resolvers {
        let unanswered = |source| LookUpError::Unanswered { resolver: resolver.clone(), source };
        let found = match resolver {
            Resolver::Literal(address) => Ok(Addresses::from(IpAddr::V4(*address))),
            Resolver::Dns(name) => look_up(name).await.map_err(unanswered),
            Resolver::Api(url) => ask(format!("https://{url}"), TIMEOUT).await.map_err(unanswered),
            Resolver::LoadBalancer(service) => match find_ingress(service, resolver, records).await {
                Ok(Ingress::Addresses(addresses)) => Ok(addresses),
                Ok(Ingress::Host(name)) => look_up(&name).await.map_err(unanswered),
                Err(error) => Err(error),
            },
        };
        match found {
            Ok(addresses) if addresses != Addresses::default() => return Ok(addresses),
            Ok(_) => errors.push(LookUpError::NoAddress { resolver: resolver.clone() }),
            Err(error) => errors.push(error),
        }
    }
    Err(errors)
}

/// Reads where the load balancer of a Service is.
async fn find_ingress(service: &str, resolver: &Resolver, records: &Records) -> Result<Ingress, LookUpError> {
    let resolver = resolver.clone();
    match records.find::<Service>(service).await {
        Ok(Some(service)) => ingress(&service).ok_or(LookUpError::NoIngress { resolver }),
        Ok(None) => Err(LookUpError::NoService { resolver }),
        Err(source) => Err(LookUpError::Unread { resolver, source }),
    }
}

/// Returns the first address of each family that a Service has been given, or else the first host name.
fn ingress(service: &Service) -> Option<Ingress> {
    let given = service.status.as_ref()?.load_balancer.as_ref()?.ingress.as_deref()?;
    let mut addresses = Addresses::default();
    for address in given.iter().rev().filter_map(|one| one.ip.as_deref()?.parse().ok()) {
        addresses.set(address);
    }
    if addresses != Addresses::default() {
        return Some(Ingress::Addresses(addresses));
    }
    given.iter().find_map(|one| one.hostname.clone().filter(|name| !name.is_empty())).map(Ingress::Host)
}

async fn look_up(name: &str) -> io::Result<Addresses> {
    let answer = tokio::net::lookup_host((name, 0)).await?;
    Ok(lowest(answer.map(|address| address.ip())))
}

/// Asks a service that answers with the address it is asked from.
async fn ask(url: String, timeout: Duration) -> io::Result<Addresses> {
    let asked = tokio::task::spawn_blocking(move || {
        let agent: ureq::Agent =
            ureq::Agent::config_builder().timeout_global(Some(timeout)).proxy(proxy_for(&url)?).build().into();
        let answer = agent.get(url).call().map_err(io::Error::other)?;
        let mut body = Vec::new();
        answer.into_body().into_reader().take(MAX_BODY).read_to_end(&mut body)?;
        Ok(first_ipv4(&String::from_utf8_lossy(&body)).map(IpAddr::V4).into_iter().collect())
    });
    asked.await.map_err(io::Error::other)?
}

/// Returns the proxy of the environment for a URL, by the same rules as for API servers.
fn proxy_for(url: &str) -> io::Result<Option<ureq::Proxy>> {
    let authority = url.split_once("://").map_or(url, |(_, rest)| rest).split('/').next().unwrap_or_default();
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
    let proxy = proxy::of_environment(host).map(|proxy| ureq::Proxy::new(&proxy));
    proxy.transpose().map_err(|_| io::Error::other("HTTPS_PROXY is no URL of a proxy: write it as http://HOST:PORT"))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;
    use std::net::{Ipv4Addr, TcpListener};

    use super::*;

    const LITERAL: Resolver = Resolver::Literal(Ipv4Addr::new(198, 51, 100, 7));
    /// For one request; nothing on loopback takes that long unless it never ends.
    const PATIENCE: Duration = Duration::from_millis(500);

    /// Returns a store without any record.
    fn nothing() -> Records {
        Records::open("/nonexistent")
    }

    /// Serves one request with these bytes and returns the URL; `None` never answers.
    fn server(answer: Option<&'static [u8]>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 1024];
            assert_ne!(stream.read(&mut request).unwrap(), 0);
            match answer {
                Some(answer) => stream.write_all(answer).unwrap(),
                // Until the client has had enough.
                None => assert_eq!(stream.read(&mut request).unwrap(), 0),
            }
        });
        format!("http://{address}/ip")
    }

    #[tokio::test]
    async fn the_first_resolver_that_works_counts() {
        let nobody = Resolver::Dns("no-such-host.invalid".to_owned());
        let local = Resolver::Dns("127.0.0.1".to_owned());
        assert!(resolve(&[], &nothing()).await.unwrap_err().is_empty());
        let found = resolve(&[nobody, local, LITERAL], &nothing()).await.expect("an address");
        assert_eq!(found.v4, Some(Ipv4Addr::LOCALHOST));
    }

    #[tokio::test]
    async fn a_service_that_does_not_answer_is_passed_over() {
        let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let api = Resolver::Api(format!("{closed}/ip"));
        assert_eq!(
            resolve(&[api, LITERAL], &nothing()).await.expect("an address").v4,
            Some(Ipv4Addr::new(198, 51, 100, 7))
        );
    }

    #[tokio::test]
    async fn every_resolver_is_named_when_none_works() {
        let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let resolvers = [Resolver::Dns("no-such-host.invalid".to_owned()), Resolver::Api(format!("{closed}/ip"))];
        let errors = resolve(&resolvers, &nothing()).await.unwrap_err();
        for (error, resolver) in errors.iter().zip(&resolvers) {
            assert!(error.to_string().contains(&resolver.to_string()), "{error}");
        }
        assert_eq!(errors.len(), resolvers.len());
    }

    #[tokio::test]
    async fn a_load_balancer_is_where_its_service_says() {
        let store = tempfile::tempdir().unwrap();
        let records = Records::open(store.path());
        let resolvers = [Resolver::LoadBalancer("gateways".to_owned())];
        fs::create_dir(store.path().join("services")).unwrap();
        let write = |status: &str| {
            let frame = "apiVersion: v1\nkind: Service\nmetadata: {name: gateways}\nspec: {type: LoadBalancer}\n";
            fs::write(store.path().join("services/gateways.yaml"), format!("{frame}status: {status}\n")).unwrap();
        };
        let error =
            async || format!("{:#}", anyhow::Error::from(resolve(&resolvers, &records).await.unwrap_err().remove(0)));

        assert!(error().await.contains("lb:gateways finds no such Service"), "{}", error().await);
        write("{loadBalancer: {}}");
        assert!(error().await.contains("no address at the Service yet"), "{}", error().await);
        let found = async || resolve(&resolvers, &records).await.unwrap();
        write("{loadBalancer: {ingress: [{ip: 203.0.113.9}, {ip: 203.0.113.8}, {ip: '2001:db8::1'}]}}");
        let both = [IpAddr::from([203, 0, 113, 9]), "2001:db8::1".parse().unwrap()];
        assert_eq!(found().await, both.into_iter().collect());
        write("{loadBalancer: {ingress: [{hostname: 127.0.0.1}]}}");
        assert_eq!(found().await.v4, Some(Ipv4Addr::LOCALHOST));
        write("{loadBalancer: {ingress: [{hostname: no-such-host.invalid}]}}");
        assert!(error().await.contains("lb:gateways does not answer"), "{}", error().await);
        write("[]");
        assert!(error().await.contains("cannot read the Service: "), "{}", error().await);
    }

    #[tokio::test]
    async fn a_failure_is_complained_about_until_it_ends() {
        let public =
            PublicIp::start(vec![Resolver::Dns("no-such-host.invalid".to_owned())], nothing(), Wake::default());
        let mut outcome = public.outcome.clone();
        outcome.wait_for(|outcome| outcome.complaint.is_some()).await.unwrap();
        let complaint = public.complaint().expect("a complaint");
        assert!(complaint.contains("dns:no-such-host.invalid") && complaint.contains("--public-ip"), "{complaint}");
        assert_eq!(PublicIp::start(vec![LITERAL], nothing(), Wake::default()).complaint(), None);
    }

    #[tokio::test]
    async fn a_service_is_believed_whatever_stands_around_the_address() {
        let plain = b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n203.0.113.9".as_slice();
        let binary = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n\xff\xfe{\"ip\": \"203.0.113.9\"}\n";
        for answer in [plain, binary] {
            let found = ask(server(Some(answer)), PATIENCE).await.expect("an answer");
            assert_eq!(found, Addresses::from(IpAddr::V4(Ipv4Addr::new(203, 0, 113, 9))));
        }
    }

    #[tokio::test]
    async fn a_service_that_says_nothing_of_use_gives_nothing() {
        let garbage = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello".as_slice();
        assert_eq!(ask(server(Some(garbage)), PATIENCE).await.expect("an answer"), Addresses::default());
        for (answer, said) in [
            (Some(b"HTTP/1.1 500 Oh no\r\nContent-Length: 11\r\n\r\n203.0.113.9".as_slice()), "500"),
            (Some(b"203.0.113.9\n"), ""),
            (Some(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n203.0.113"), ""),
            (None, "timeout"),
        ] {
            let error = ask(server(answer), PATIENCE).await.expect_err("no address").to_string();
            assert!(error.contains(said), "{said}: {error}");
        }
    }
}
