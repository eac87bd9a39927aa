//! Decides whether an API server is asked through the proxy of the environment: `HTTPS_PROXY` unless `NO_PROXY` names
//! the server, each in either case. A server on this machine is never asked through one, and a proxy without a scheme speaks
//! http.
//!
//! The rules are those of Go's `httpproxy`, which all of Kubernetes follows; `NO_PROXY` is separated by commas: `*`, an
//! address, a CIDR, a domain with all below it, or `.domain` for what is below it alone; a port is not looked at.

use std::net::IpAddr;

use ipnet::IpNet;

/// Returns the URL of the proxy for `host`, an address or a name.
pub(super) fn of_environment(host: &str) -> Option<String> {
    let variable = |names: [&str; 2]| {
        names.into_iter().find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    };
    let proxy = variable(["HTTPS_PROXY", "https_proxy"])?;
    let exceptions = variable(["NO_PROXY", "no_proxy"]).unwrap_or_default();
    let proxy = if proxy.contains("://") { proxy } else { format!("http://{proxy}") };
    (!is_excepted(&exceptions, host)).then_some(proxy)
}

fn is_excepted(exceptions: &str, host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let address: Option<IpAddr> = host.parse().ok();
    if host == "localhost" || address.is_some_and(|address| address.is_loopback()) {
        return true;
    }
    exceptions.split(',').map(str::trim).filter(|exception| !exception.is_empty()).any(|exception| {
        if exception == "*" {
            return true;
        }
        if let Ok(network) = exception.parse::<IpNet>() {
            return address.is_some_and(|address| network.contains(&address));
        }
        if let Some(address) = address {
            return exception.parse() == Ok(address)
                || exception.rsplit_once(':').is_some_and(|(exception, _)| {
                    exception.trim_start_matches('[').trim_end_matches(']').parse() == Ok(address)
                });
        }
        let name = exception.rsplit_once(':').map_or(exception, |(name, _)| name);
        let below = name.trim_start_matches('*').trim_start_matches('.');
        let is_below = host.strip_suffix(below).is_some_and(|rest| rest.ends_with('.'));
        is_below || (host == below && below == name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exceptions_name_hosts_domains_addresses_and_networks() {
        for (exceptions, host, excepted) in [
            ("", "api.example.org", false),
            ("", "127.0.0.1", true),
            ("", "[::1]", true),
            ("", "localhost", true),
            ("*", "api.example.org", true),
            ("example.org", "api.example.org", true),
            ("example.org", "example.org", true),
            (".example.org", "example.org", false),
            ("*.example.org", "api.example.org", true),
            ("example.org", "badexample.org", false),
            ("other, api.example.org:6443,", "api.example.org", true),
            ("10.0.0.0/8", "10.1.2.3", true),
            ("10.0.0.0/8", "11.1.2.3", false),
            ("10.1.2.3", "10.1.2.3", true),
            ("10.1.2.3:443", "10.1.2.3", true),
            ("fd00::/8", "[fd00::1]", true),
            ("example.org", "10.1.2.3", false),
        ] {
            assert_eq!(is_excepted(exceptions, host), excepted, "{exceptions:?} {host}");
        }
    }
}
