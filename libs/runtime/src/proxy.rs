//! Decides whether a server is asked through the proxy of the environment: `HTTPS_PROXY` unless `NO_PROXY` names
//! the server, each in either case. A server on this machine is never asked through one, and a proxy without a scheme speaks
//! http.
//!
//! The rules are those of Go's `httpproxy`, which all of Kubernetes follows; `NO_PROXY` is separated by commas: `*`, an
//! address, a CIDR, a domain with all below it, or `.domain` for what is below it alone; a port is not looked at. The client
//! reads the list first and is stricter: one with an empty entry, or with `*` beside others, is an error that names it.

use std::net::IpAddr;

use ipnet::IpNet;
use kube::config::{Config, KubeConfigOptions, Kubeconfig, KubeconfigError};

/// Returns how the server of a kubeconfig is asked: through the proxy that the kubeconfig itself names, or else the one
/// that the environment has for that server.
///
/// # Errors
///
/// The kubeconfig has no such context, or files of it cannot be used; `HTTPS_PROXY` or `NO_PROXY` is not understood.
pub async fn config_of(kubeconfig: Kubeconfig, options: &KubeConfigOptions) -> Result<Config, KubeconfigError> {
    let own = of_kubeconfig(&kubeconfig, options);
    let mut config = Config::from_custom_kubeconfig(kubeconfig, options).await?;
    // By then the client has held NO_PROXY against the proxy's own name instead of the server's.
    let proxy = own.or_else(|| of_environment(config.cluster_url.host().unwrap_or_default()));
    config.proxy_url = proxy.and_then(|proxy| proxy.parse().ok());
    Ok(config)
}

fn of_kubeconfig(kubeconfig: &Kubeconfig, options: &KubeConfigOptions) -> Option<String> {
    let context = options.context.as_ref().or(kubeconfig.current_context.as_ref());
    let context = kubeconfig.contexts.iter().find(|named| Some(&named.name) == context);
    let context = context.and_then(|named| named.context.as_ref());
    let cluster = options.cluster.as_ref().or(context.map(|context| &context.cluster))?;
    let cluster = kubeconfig.clusters.iter().find(|named| named.name == *cluster)?.cluster.as_ref()?;
    cluster.proxy_url.clone().filter(|proxy| !proxy.is_empty())
}

/// Returns the URL of the proxy for `host`, an address or a name.
pub fn of_environment(host: &str) -> Option<String> {
    let variable = |names: [&str; 2]| {
        names.into_iter().find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    };
    let proxy = variable(["HTTPS_PROXY", "https_proxy"])?;
    let exceptions = variable(["NO_PROXY", "no_proxy"]).unwrap_or_default();
    (!is_excepted(&exceptions, host)).then(|| with_scheme(&proxy))
}

/// Returns the URL of a proxy, which speaks http if it does not say what it speaks.
pub fn with_scheme(proxy: &str) -> String {
    if proxy.contains("://") { proxy.to_owned() } else { format!("http://{proxy}") }
}

fn is_excepted(exceptions: &str, host: &str) -> bool {
    let (host, exceptions) = (host.to_ascii_lowercase(), exceptions.to_ascii_lowercase());
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
    use std::process::Command;

    use serde_json::json;

    use super::*;

    const PROXY: &str = "HTTPS_PROXY=http://proxy:3128";
    /// The proxy of the kubeconfig.
    const OWN: &str = "OWN_PROXY";

    #[tokio::test]
    #[ignore = "the environment is its argument: the next test runs it"]
    async fn print_the_proxy() {
        let cluster = json!({"server": "https://192.0.2.1:6443", "proxy-url": std::env::var(OWN).ok()});
        let kubeconfig = json!({
            "clusters": [{"name": "c", "cluster": cluster}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": ""}}],
            "current-context": "c",
        });
        let kubeconfig = serde_json::from_value(kubeconfig).unwrap();
        let config = config_of(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
        println!("<{}>", config.proxy_url.map(|proxy| proxy.to_string()).unwrap_or_default());
    }

    #[test]
    fn the_proxy_is_the_kubeconfigs_own_or_that_of_the_environment_for_this_server() {
        for (variables, expected) in [
            (&[PROXY][..], "http://proxy:3128/"),
            (&["https_proxy=proxy:3128"], "http://proxy:3128/"),
            (&[PROXY, "NO_PROXY=192.0.2.0/24"], ""),
            // Whom the list names is the server, not the proxy.
            (&[PROXY, "NO_PROXY=proxy:3128,proxy"], "http://proxy:3128/"),
            (&[PROXY, "OWN_PROXY=http://own:1", "NO_PROXY=192.0.2.0/24,own:1"], "http://own:1/"),
            (&["HTTP_PROXY=http://proxy:3128", "ALL_PROXY=http://proxy:3128"], ""),
        ] {
            let mut child = Command::new(std::env::current_exe().unwrap());
            child.args(["--exact", "proxy::tests::print_the_proxy", "--ignored", "--nocapture"]);
            for name in ["HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy", OWN] {
                child.env_remove(name);
            }
            child.envs(variables.iter().filter_map(|variable| variable.split_once('=')));
            let output = child.output().unwrap();
            let printed = String::from_utf8_lossy(&output.stdout);
            assert!(printed.contains(&format!("<{expected}>")), "{variables:?}: {printed}");
        }
    }

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
            ("API.example.org", "api.Example.org", true),
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
