//! Decides how the gateway finds the address under which the Internet reaches it.
//!
//! The resolver list is Submariner's (chapter 4.5): comma-separated `method:value`, tried in order. No third party is
//! asked unless the list names it. A load balancer is found by its Service, in the namespace of the cluster's records.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use culvert_model::{Addresses, is_dns_label};

/// One way to find the public address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolver {
    /// `ipv4:1.2.3.4`
    Literal(Ipv4Addr),
    /// `dns:name`: look the name up and take [`lowest`] of the answer.
    Dns(String),
    /// `api:host/path`: get `https://host/path` and take [`first_ipv4`] of the body.
    Api(String),
    /// `lb:name`: take the first address at the Service `name`, or look its first host name up.
    LoadBalancer(String),
}

/// As it is written in a list.
impl fmt::Display for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Literal(address) => write!(f, "ipv4:{address}"),
            Self::Dns(name) => write!(f, "dns:{name}"),
            Self::Api(url) => write!(f, "api:{url}"),
            Self::LoadBalancer(service) => write!(f, "lb:{service}"),
        }
    }
}

/// A resolver list that cannot be used; the whole list is refused, as in Submariner.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResolverError {
    #[error(
        "public IP resolver {entry:?} is not method:value: write ipv4:ADDRESS, dns:NAME, api:HOST/PATH or lb:SERVICE"
    )]
    Form { entry: String },
    #[error("public IP resolver {entry:?} holds no IPv4 address: write it as in ipv4:198.51.100.7")]
    Address { entry: String },
    #[error("public IP resolver {entry:?} names no Service: write its name alone, a DNS label, as in lb:gateways")]
    Service { entry: String },
    #[error("public IP resolver {entry:?} has an unknown method: use ipv4:, dns:, api: or lb:")]
    Method { entry: String },
}

/// Reads a resolver list; an empty text is an empty list.
///
/// # Errors
///
/// [`ResolverError`] names the first entry that cannot be used.
pub fn parse_resolvers(list: &str) -> Result<Vec<Resolver>, ResolverError> {
    list.split(',').map(str::trim).filter(|entry| !entry.is_empty()).map(parse_resolver).collect()
}

fn parse_resolver(text: &str) -> Result<Resolver, ResolverError> {
    let entry = text.to_owned();
    let mut parts = text.split(':');
    let (Some(method), Some(value), None) = (parts.next(), parts.next(), parts.next()) else {
        return Err(ResolverError::Form { entry });
    };
    if value.is_empty() {
        return Err(ResolverError::Form { entry });
    }
    match method {
        "ipv4" => value.parse().map(Resolver::Literal).map_err(|_| ResolverError::Address { entry }),
        "dns" => Ok(Resolver::Dns(value.to_owned())),
        "api" => Ok(Resolver::Api(value.to_owned())),
        "lb" if is_dns_label(value) => Ok(Resolver::LoadBalancer(value.to_owned())),
        "lb" => Err(ResolverError::Service { entry }),
        _ => Err(ResolverError::Method { entry }),
    }
}

/// Tells whether a load balancer stands before the gateways: the list begins with one (Submariner chapter 4.6).
pub fn uses_load_balancer(resolvers: &[Resolver]) -> bool {
    matches!(resolvers.first(), Some(Resolver::LoadBalancer(_)))
}

/// Returns the lowest address of each family in a DNS answer, so that a rotated answer changes nothing.
pub fn lowest(answer: impl IntoIterator<Item = IpAddr>) -> Addresses {
    let mut sorted: Vec<IpAddr> = answer.into_iter().collect();
    sorted.sort_unstable();
    sorted.into_iter().collect()
}

/// Returns the first IPv4 address in the body of an answer, whatever text stands around it.
pub fn first_ipv4(body: &str) -> Option<Ipv4Addr> {
    body.split(|c: char| !c.is_ascii_digit() && c != '.').find_map(|word| word.trim_matches('.').parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::address;

    #[test]
    fn a_list_is_read_in_order() {
        let text = "ipv4:198.51.100.7,dns:gw.example.org,api:api.ipify.org/raw,lb:gateways";
        let list = parse_resolvers(&text.replace(',', " ,")).unwrap();

        let expected = [
            Resolver::Literal(Ipv4Addr::new(198, 51, 100, 7)),
            Resolver::Dns("gw.example.org".to_owned()),
            Resolver::Api("api.ipify.org/raw".to_owned()),
            Resolver::LoadBalancer("gateways".to_owned()),
        ];
        assert_eq!(list, expected);
        assert_eq!(list.iter().map(Resolver::to_string).collect::<Vec<_>>().join(","), text);
        assert_eq!(parse_resolvers(""), Ok(Vec::new()));
    }

    #[test]
    fn one_bad_entry_refuses_the_list_by_name() {
        let bad =
            ["198.51.100.7", "ipv4:", "ipv4:one", "ipv4:::1", "api:host:443/x", "lb:", "lb:other/gateways", "x:y"];
        for bad in bad {
            let error = parse_resolvers(&format!("ipv4:198.51.100.7,{bad}")).unwrap_err();
            assert!(error.to_string().contains(&format!("{bad:?}")), "{error}");
        }
        assert!(matches!(parse_resolvers("lb:Gateways"), Err(ResolverError::Service { .. })));
    }

    #[test]
    fn a_load_balancer_stands_before_the_gateways_if_it_is_asked_first() {
        for (list, expected) in [("lb:gateways,dns:x", true), ("dns:x,lb:gateways", false), ("", false)] {
            assert_eq!(uses_load_balancer(&parse_resolvers(list).unwrap()), expected, "{list}");
        }
    }

    #[test]
    fn the_lowest_of_each_family_counts() {
        let answer = ["203.0.113.9", "2001:db8::2", "203.0.113.10", "2001:db8::1"].map(address);
        assert_eq!(lowest(answer), [address("203.0.113.9"), address("2001:db8::1")].into_iter().collect());
    }

    #[test]
    fn an_address_is_found_in_any_body() {
        let found = Some(Ipv4Addr::new(203, 0, 113, 9));
        for body in ["203.0.113.9\n", "{\"ip\":\"203.0.113.9\"}", "Version 1.2. Your address is 203.0.113.9."] {
            assert_eq!(first_ipv4(body), found, "{body}");
        }
        for body in ["", "2001:db8::1", "1.2.3", "1.2.3.4.5", "300.1.1.1"] {
            assert_eq!(first_ipv4(body), None, "{body}");
        }
    }
}
