//! Decides what an Endpoint record means, and how an endpoint is written.
//!
//! Both field generations (Submariner chapter 1): of an address the first list entry of its family counts, and the
//! scalar only for IPv4 without such an entry. Written are the list for both families and the scalar for IPv4.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::str::FromStr;

use culvert_model::{Addresses, Backend, ClusterId, PublicKey};
use ipnet::IpNet;

use crate::{Endpoint, EndpointSpec, Record, backend_config, object_name, ports};

/// Why an Endpoint record cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    #[error("Endpoint {record}: spec.cluster_id: {reason}")]
    ClusterId { record: String, reason: String },
    #[error("Endpoint {record}: spec.cable_name is empty: name the gateway `submariner-cable-<cluster>-<address>`")]
    CableName { record: String },
    #[error("Endpoint {record}: spec.subnets is empty: list the CIDRs behind the gateway")]
    NoSubnets { record: String },
    #[error("Endpoint {record}: spec.subnets: {value:?} is no CIDR: write it as `10.2.0.0/16` or `fd00:2::/48`")]
    Subnet { record: String, value: String },
    #[error("Endpoint {record}: spec.{field}: {value:?} is no IP address: correct it or leave it empty")]
    Address { record: String, field: &'static str, value: String },
    #[error("Endpoint {record}: spec.{field}: {value:?} is no IPv4 address: IPv6 ones belong into the list field")]
    ScalarFamily { record: String, field: &'static str, value: String },
    #[error("Endpoint {record}: spec.backend_config.{field}: {value:?} is no port: use {lowest} to 65535")]
    Port { record: String, field: &'static str, value: String, lowest: u16 },
    #[error("Endpoint {record}: spec.backend_config.publicKey: {reason}")]
    PublicKey { record: String, reason: String },
}

impl TryFrom<&Endpoint> for culvert_model::Endpoint {
    type Error = EndpointError;

    /// Checks an Endpoint record and gives its meaning.
    ///
    /// Without `udp-port` cables use 4500; without `natt-discovery-port`, or with 0, NAT discovery is off.
    ///
    /// # Errors
    ///
    /// [`EndpointError`] names the record, the first bad field, its value and the way out.
    fn try_from(endpoint: &Endpoint) -> Result<Self, Self::Error> {
        let record = endpoint.name();
        let spec = &endpoint.spec;
        let config = |key: &str| spec.backend_config.get(key).map(String::as_str).filter(|value| !value.is_empty());
        let cluster = ClusterId::from_str(&spec.cluster_id)
            .map_err(|error| EndpointError::ClusterId { record: record.to_owned(), reason: error.to_string() })?;
        if spec.cable_name.is_empty() {
            return Err(EndpointError::CableName { record: record.to_owned() });
        }
        let public_key = config(backend_config::PUBLIC_KEY)
            .map(PublicKey::from_str)
            .transpose()
            .map_err(|error| EndpointError::PublicKey { record: record.to_owned(), reason: error.to_string() })?;
        let port = |field: &'static str, lowest: u16| -> Result<Option<u16>, EndpointError> {
            let Some(value) = config(field) else { return Ok(None) };
            let port = value.parse().ok().filter(|port| *port >= lowest);
            port.map(Some).ok_or_else(|| EndpointError::Port {
                record: record.to_owned(),
                field,
                value: value.to_owned(),
                lowest,
            })
        };
        let created = endpoint.metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second());
        Ok(Self {
            cluster,
            cable_name: spec.cable_name.clone(),
            hostname: spec.hostname.clone(),
            subnets: subnets(record, &spec.subnets)?,
            private: addresses(record, ("privateIPs", &spec.private_ips), ("private_ip", &spec.private_ip))?,
            public: addresses(record, ("publicIPs", &spec.public_ips), ("public_ip", &spec.public_ip))?,
            health_check: addresses(
                record,
                ("healthCheckIPs", &spec.health_check_ips),
                ("healthCheckIP", &spec.health_check_ip),
            )?,
            nat_enabled: spec.nat_enabled,
            backend: Backend::from(spec.backend.as_str()),
            udp_port: port(backend_config::UDP_PORT, 1)?.unwrap_or(ports::CABLE),
            nat_discovery_port: port(backend_config::NAT_DISCOVERY_PORT, 0)?.filter(|port| *port != 0),
            public_key,
            using_load_balancer: config(backend_config::USING_LOAD_BALANCER) == Some("true"),
            culvert: config(backend_config::CULVERT) == Some("1"),
            created,
        })
    }
}

/// Returns the record of `endpoint`, in both field generations, with a name and no other metadata.
///
/// The name is `<cluster id>-<cable name>` made valid (Submariner chapter 3.4).
pub fn endpoint_record(endpoint: &culvert_model::Endpoint) -> Endpoint {
    let mut config = BTreeMap::from([(backend_config::UDP_PORT.to_owned(), endpoint.udp_port.to_string())]);
    let optional = [
        (backend_config::NAT_DISCOVERY_PORT, endpoint.nat_discovery_port.map(|port| port.to_string())),
        (backend_config::PUBLIC_KEY, endpoint.public_key.map(|key| key.to_string())),
        (backend_config::USING_LOAD_BALANCER, endpoint.using_load_balancer.then(|| "true".to_owned())),
        (backend_config::CULVERT, endpoint.culvert.then(|| "1".to_owned())),
    ];
    config.extend(optional.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))));
    let (private_ip, private_ips) = both_generations(&endpoint.private);
    let (public_ip, public_ips) = both_generations(&endpoint.public);
    let (health_check_ip, health_check_ips) = both_generations(&endpoint.health_check);
    let spec = EndpointSpec {
        cluster_id: endpoint.cluster.to_string(),
        cable_name: endpoint.cable_name.clone(),
        hostname: endpoint.hostname.clone(),
        subnets: endpoint.subnets.iter().map(IpNet::to_string).collect(),
        private_ip,
        public_ip,
        private_ips,
        public_ips,
        health_check_ip,
        health_check_ips,
        nat_enabled: endpoint.nat_enabled,
        backend: endpoint.backend.to_string(),
        backend_config: config,
    };
    Endpoint::new(&object_name(&format!("{}-{}", endpoint.cluster, endpoint.cable_name)), spec)
}

fn both_generations(addresses: &Addresses) -> (String, Vec<String>) {
    let scalar = addresses.v4.map(|address| address.to_string()).unwrap_or_default();
    (scalar, addresses.iter().map(|address| address.to_string()).collect())
}

fn subnets(record: &str, texts: &[String]) -> Result<Vec<IpNet>, EndpointError> {
    if texts.is_empty() {
        return Err(EndpointError::NoSubnets { record: record.to_owned() });
    }
    texts
        .iter()
        .map(|text| match text.parse::<IpNet>() {
            // Go's ParseCIDR drops host bits as well.
            Ok(subnet) => Ok(subnet.trunc()),
            Err(_) => Err(EndpointError::Subnet { record: record.to_owned(), value: text.clone() }),
        })
        .collect()
}

fn addresses(
    record: &str,
    (list_field, list): (&'static str, &[String]),
    (scalar_field, scalar): (&'static str, &str),
) -> Result<Addresses, EndpointError> {
    let parse = |field, text: &str| {
        text.parse::<IpAddr>().map_err(|_| EndpointError::Address {
            record: record.to_owned(),
            field,
            value: text.to_owned(),
        })
    };
    let entries = list.iter().filter(|text| !text.is_empty()).map(|text| parse(list_field, text));
    let mut addresses = entries.collect::<Result<Addresses, _>>()?;
    if !scalar.is_empty() {
        match parse(scalar_field, scalar)? {
            IpAddr::V4(address) => addresses.v4 = addresses.v4.or(Some(address)),
            IpAddr::V6(address) => {
                return Err(EndpointError::ScalarFamily {
                    record: record.to_owned(),
                    field: scalar_field,
                    value: address.to_string(),
                });
            }
        }
    }
    Ok(addresses)
}

#[cfg(test)]
mod tests;
