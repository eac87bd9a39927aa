//! Decides which proxy the daemons of a cluster that joins are given: subctl's flags, as variables of their settings.
//!
//! What the variables mean, `culvert_runtime::proxy` says. A proxy that asks for a password is refused: settings are no
//! place for one.

use std::net::IpAddr;

use anyhow::{Result, bail};
use culvert_runtime::proxy::with_scheme;
use ipnet::IpNet;

/// A proxy between the gateways and what is outside their cluster.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct ProxyArgs {
    /// Proxy by which the gateways reach the broker and whom --public-ip asks; never this cluster's own API server. For
    /// this command itself, set HTTPS_PROXY and NO_PROXY.
    #[arg(long, value_name = "URL")]
    https_proxy: Option<String>,
    /// Set for the daemons as HTTP_PROXY; a broker is asked by https, which --https-proxy is for.
    #[arg(long, value_name = "URL")]
    http_proxy: Option<String>,
    /// Whom the daemons reach without the proxy: addresses, CIDRs, domains, separated by commas, or *.
    #[arg(long, value_name = "LIST")]
    no_proxy: Option<String>,
}

impl ProxyArgs {
    /// Checks the flags.
    ///
    /// # Errors
    ///
    /// Names the flag, and what to write instead; a password is not repeated.
    pub(crate) fn check(&self) -> Result<()> {
        for (flag, proxy) in [("--https-proxy", &self.https_proxy), ("--http-proxy", &self.http_proxy)] {
            if let Some(proxy) = given(proxy) {
                check_url(flag, proxy)?;
            }
        }
        for exception in self.exceptions() {
            if !is_exception(exception) {
                bail!("--no-proxy: {exception:?} is no address, CIDR or domain: write them separated by commas");
            }
        }
        Ok(())
    }

    /// Returns the daemons' variables.
    pub(crate) fn variables(&self) -> impl Iterator<Item = (&'static str, Option<String>)> {
        let url = |proxy: &Option<String>| given(proxy).map(with_scheme);
        let exceptions: Vec<&str> = self.exceptions().collect();
        // Beside others, not everybody understands it.
        let exceptions = if exceptions.contains(&"*") { "*".to_owned() } else { exceptions.join(",") };
        let exceptions = (!exceptions.is_empty()).then_some(exceptions);
        [("HTTPS_PROXY", url(&self.https_proxy)), ("HTTP_PROXY", url(&self.http_proxy)), ("NO_PROXY", exceptions)]
            .into_iter()
    }

    fn exceptions(&self) -> impl Iterator<Item = &str> {
        let list = self.no_proxy.as_deref().unwrap_or_default();
        list.split(',').map(str::trim).filter(|exception| !exception.is_empty())
    }
}

/// Returns a proxy, unless it is none: scripts pass a variable that may be empty.
fn given(proxy: &Option<String>) -> Option<&str> {
    proxy.as_deref().map(str::trim).filter(|proxy| !proxy.is_empty())
}

fn check_url(flag: &str, proxy: &str) -> Result<()> {
    if proxy.contains('@') {
        bail!(
            "{flag}: this proxy wants a user or password, which everybody who may read settings would see: have it \
             know the gateways by their addresses, and leave user and password out"
        );
    }
    let url = with_scheme(proxy);
    let host = match url.split_once("://") {
        Some(("http" | "https", host)) => host.strip_suffix('/').unwrap_or(host),
        _ => bail!("{flag}: {proxy:?} speaks neither http nor https: write it as http://HOST:PORT"),
    };
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !host.ends_with(']') => (name, port.parse::<u16>().is_ok_and(|port| port != 0)),
        _ => (host, true),
    };
    let inner = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
    let is_host = inner.map_or_else(|| is_name(name), |address| address.parse::<IpAddr>().is_ok());
    if !is_host || !port {
        bail!("{flag}: {proxy:?} is no proxy: write it as http://HOST:PORT");
    }
    Ok(())
}

/// Tells whether a text can stand in NO_PROXY; a domain may begin with a dot or `*.`, and may have a port.
fn is_exception(text: &str) -> bool {
    if text == "*" || text.parse::<IpNet>().is_ok() || text.parse::<IpAddr>().is_ok() {
        return true;
    }
    let name = match text.rsplit_once(':') {
        Some((name, port)) if port.parse::<u16>().is_ok() => name,
        Some(_) => return false,
        None => text,
    };
    let inner = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
    let domain = name.strip_prefix("*.").or_else(|| name.strip_prefix('.')).unwrap_or(name);
    inner.map_or_else(|| is_name(domain), |address| address.parse::<IpAddr>().is_ok())
}

/// Tells whether a text is a host's name or IPv4 address, in either case.
fn is_name(text: &str) -> bool {
    let label = |label: &str| {
        let inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        !label.is_empty() && label.bytes().all(inner)
    };
    text.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(https: &str, http: &str, exceptions: &str) -> ProxyArgs {
        let some = |text: &str| Some(text.to_owned());
        ProxyArgs { https_proxy: some(https), http_proxy: some(http), no_proxy: some(exceptions) }
    }

    fn variables(proxies: &ProxyArgs) -> Vec<(&'static str, String)> {
        proxies.variables().filter_map(|(name, value)| Some((name, value?))).collect()
    }

    #[test]
    fn a_proxy_is_given_to_the_daemons_and_what_is_empty_is_not() {
        let given = proxies("proxy.example.org:3128", "http://[fd00::1]:3128/", "10.0.0.0/8, .example.org,,api:6443,");
        given.check().unwrap();
        let expected = [
            ("HTTPS_PROXY", "http://proxy.example.org:3128"),
            ("HTTP_PROXY", "http://[fd00::1]:3128/"),
            ("NO_PROXY", "10.0.0.0/8,.example.org,api:6443"),
        ];
        assert_eq!(variables(&given), expected.map(|(name, value)| (name, value.to_owned())));
        let empty = proxies("", " ", ",");
        empty.check().unwrap();
        assert_eq!((variables(&empty), variables(&ProxyArgs::default())), (vec![], vec![]));
        assert_eq!(variables(&proxies("", "", "10.1.2.3,*")), [("NO_PROXY", "*".to_owned())]);
    }

    #[test]
    fn a_password_is_refused_and_not_repeated() {
        for proxy in ["http://user:geheim@proxy:3128", "geheim@proxy"] {
            for (given, flag) in
                [(proxies(proxy, "", ""), "--https-proxy: "), (proxies("", proxy, ""), "--http-proxy: ")]
            {
                let error = given.check().unwrap_err().to_string();
                assert!(error.starts_with(flag) && error.contains("who may read settings"), "{error}");
                assert!(!error.contains("geheim"), "{error}");
            }
        }
    }

    #[test]
    fn what_is_no_proxy_or_exception_is_named() {
        for proxy in ["socks5://proxy:1080", "http://", "proxy:port", "proxy:0", "http://proxy/path", "a proxy", "[::1"]
        {
            let error = proxies(proxy, "", "").check().unwrap_err().to_string();
            assert!(error.starts_with("--https-proxy: ") && error.ends_with("http://HOST:PORT"), "{error}");
        }
        for exception in ["10.0.0.0/8 10.1.2.3", "http://api", "api:port", "*example.org", "[::1"] {
            let error = proxies("", "", &format!("localhost,{exception}")).check().unwrap_err().to_string();
            assert!(error.contains(&format!("{exception:?}")), "{error}");
        }
        for exception in ["*", "fd00::/8", "fd00::1", "[fd00::1]:6443", "*.example.org", "API.example.org:443"] {
            proxies("http://proxy", "", exception).check().unwrap();
        }
    }
}
