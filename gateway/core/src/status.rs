//! Decides what is said about a cable: connected, connecting or error, and why.
//!
//! Driver and echoes are merged as Submariner does (chapters 4.8 and 4.10): echoes that fail outweigh a driver that is
//! content, echoes that come back outweigh one that is not. Messages stay the same while their cause does, so that a
//! record is written only when something has happened.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use culvert_model::{CableReport, Endpoint};

use crate::cables::{Choice, ChosenCable, Refusal};
use crate::health::{HealthState, RoundTrips};

/// How long a new cable may take to its first handshake: six tries of WireGuard (5 s apart, paper section 6.1).
const FIRST_HANDSHAKE: Duration = Duration::from_secs(30);
/// Silence that means failure: three keepalives of 10 s.
const SILENCE: Duration = Duration::from_secs(30);
/// WireGuard takes no packet of an older session (REJECT_AFTER_TIME, paper section 6.1).
const SESSION: Duration = Duration::from_secs(180);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    Connected,
    Connecting,
    Error,
}

/// What is known of a cable.
#[derive(Clone, Copy, Debug)]
pub struct Evidence<'a> {
    /// How long the cable has been wanted.
    pub age: Duration,
    /// From the data plane, for a WireGuard cable.
    pub report: Option<&'a CableReport>,
    /// `None` where health is not checked.
    pub health: Option<(&'a HealthState, &'a RoundTrips)>,
}

/// What the Gateway record says about a connection.
#[derive(Clone, Debug, PartialEq)]
pub struct ConnectionStatus {
    pub status: Status,
    /// Empty when there is nothing to say.
    pub message: String,
    /// Where packets to the peer go; `None` when nowhere yet.
    pub using_ip: Option<IpAddr>,
    /// Whether that is another address than the peer's own.
    pub using_nat: bool,
    pub round_trips: Option<RoundTrips>,
}

/// Returns what is said about the cable that was chosen.
pub fn connection_status(choice: &Choice, evidence: &Evidence<'_>) -> ConnectionStatus {
    let (driver, using_ip) = match &choice.cable {
        ChosenCable::Refused(refusal) => (refused(refusal), None),
        ChosenCable::WireGuard(cable) => {
            let remote = evidence.report.and_then(|report| report.remote).or(cable.candidates.first().copied());
            (wireguard(&choice.endpoint, remote, evidence), remote.map(|remote| remote.ip()))
        }
        ChosenCable::Vxlan(cable) => ((Status::Connected, String::new()), Some(IpAddr::V4(cable.remote))),
    };
    let (status, mut message) = match &choice.cable {
        ChosenCable::Refused(_) => driver,
        ChosenCable::WireGuard(_) | ChosenCable::Vxlan(_) => merge(driver, evidence.health.map(|(state, _)| state)),
    };
    for refused in &choice.refused_subnets {
        if !message.is_empty() {
            message.push_str("; ");
        }
        message.push_str(&refused.to_string());
    }
    ConnectionStatus {
        status,
        message,
        using_ip,
        using_nat: using_ip.is_some_and(|address| !choice.endpoint.private.contains(address)),
        round_trips: evidence.health.map(|(_, round_trips)| round_trips.clone()).filter(|trips| trips.received() > 0),
    }
}

fn refused(refusal: &Refusal) -> (Status, String) {
    (Status::Error, refusal.to_string())
}

fn wireguard(endpoint: &Endpoint, remote: Option<SocketAddr>, evidence: &Evidence<'_>) -> (Status, String) {
    let (handshake, received) =
        evidence.report.map_or((None, None), |report| (report.last_handshake, report.last_received));
    let way_out = || match remote {
        Some(remote) => format!(
            "check that UDP from here reaches {remote}, that the gateway of {} runs, and that both have the same PSK",
            endpoint.cluster
        ),
        None => format!("no address of endpoint {} can be reached: wait for its packets", endpoint.cable_name),
    };
    match handshake {
        None if evidence.age < FIRST_HANDSHAKE => (Status::Connecting, "waiting for the first handshake".to_owned()),
        None => (Status::Error, format!("no handshake yet: {}", way_out())),
        Some(age) if age > SESSION => (Status::Error, format!("the handshake is not renewed: {}", way_out())),
        Some(_) if received.is_some_and(|age| age > SILENCE) => {
            (Status::Error, format!("nothing has come for more than {} s: {}", SILENCE.as_secs(), way_out()))
        }
        Some(_) => (Status::Connected, String::new()),
    }
}

fn merge(driver: (Status, String), health: Option<&HealthState>) -> (Status, String) {
    match (driver, health) {
        (_, Some(HealthState::Up)) => (Status::Connected, String::new()),
        ((Status::Connected, _), Some(HealthState::Down(message))) => (Status::Error, message.clone()),
        ((Status::Connected, _), Some(HealthState::Unknown)) => {
            (Status::Connected, "waiting for the first answer to an echo request".to_owned())
        }
        (driver @ (Status::Connecting | Status::Error, _), Some(HealthState::Down(_) | HealthState::Unknown)) => driver,
        (driver, None) => driver,
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use culvert_model::{PublicKey, WireGuardCable};

    use super::*;
    use crate::cables::{RefusedSubnet, VxlanCable};
    use crate::testing::{address, cluster, endpoint, net};

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    fn over_wireguard() -> Choice {
        let candidates = vec!["192.168.2.10:4500".parse().unwrap()];
        let cable = WireGuardCable { public_key: PublicKey([2; 32]), candidates, subnets: vec![net("10.2.0.0/16")] };
        Choice { endpoint: endpoint("west", 2), cable: ChosenCable::WireGuard(cable), refused_subnets: Vec::new() }
    }

    fn over_vxlan() -> Choice {
        let cable = VxlanCable {
            remote: Ipv4Addr::new(198, 51, 100, 2),
            private: Ipv4Addr::new(192, 168, 2, 10),
            subnets: vec![net("10.2.0.0/16")],
            culvert: true,
        };
        Choice { cable: ChosenCable::Vxlan(cable), ..over_wireguard() }
    }

    fn report(handshake: Option<u64>, received: Option<u64>) -> CableReport {
        CableReport {
            last_handshake: handshake.map(seconds),
            last_received: received.map(seconds),
            ..CableReport::default()
        }
    }

    fn status(
        choice: &Choice,
        age: u64,
        report: Option<&CableReport>,
        health: Option<HealthState>,
    ) -> (Status, String) {
        let round_trips = RoundTrips::default();
        let health = health.as_ref().map(|state| (state, &round_trips));
        let status = connection_status(choice, &Evidence { age: seconds(age), report, health });
        (status.status, status.message)
    }

    #[test]
    fn wireguard_alone_is_judged_by_handshake_and_silence() {
        for (age, handshake, received, expected) in [
            (0, None, None, Status::Connecting),
            (29, None, None, Status::Connecting),
            (30, None, None, Status::Error),
            (0, Some(0), None, Status::Connected),
            (500, Some(170), Some(9), Status::Connected),
            (500, Some(100), Some(31), Status::Error),
            (500, Some(181), Some(1), Status::Error),
        ] {
            let found = status(&over_wireguard(), age, Some(&report(handshake, received)), None);
            assert_eq!(found.0, expected, "{age} {handshake:?} {received:?}: {}", found.1);
            assert_eq!(found.1.is_empty(), expected == Status::Connected);
        }
    }

    #[test]
    fn an_error_names_where_the_peer_was_sought() {
        let (_, message) = status(&over_wireguard(), 60, Some(&report(None, None)), None);
        assert!(message.contains("192.168.2.10:4500") && message.contains("west"), "{message}");
    }

    #[test]
    fn echoes_outweigh_the_driver() {
        let down = || HealthState::Down("no answer".to_owned());
        let good = report(Some(5), Some(1));
        let bad = report(Some(500), Some(300));
        let wireguard = over_wireguard();

        assert_eq!(status(&wireguard, 60, Some(&good), Some(HealthState::Up)).0, Status::Connected);
        assert_eq!(status(&wireguard, 60, Some(&good), Some(down())), (Status::Error, "no answer".to_owned()));
        assert_eq!(status(&wireguard, 60, Some(&good), Some(HealthState::Unknown)).0, Status::Connected);
        assert_eq!(status(&wireguard, 60, Some(&bad), Some(HealthState::Up)).0, Status::Connected);
        assert_ne!(status(&wireguard, 60, Some(&bad), Some(down())).1, "no answer");
        assert_eq!(status(&wireguard, 1, Some(&report(None, None)), Some(down())).0, Status::Connecting);
        assert_eq!(status(&over_vxlan(), 60, None, None).0, Status::Connected);
        assert_eq!(status(&over_vxlan(), 60, None, Some(down())), (Status::Error, "no answer".to_owned()));
    }

    #[test]
    fn a_refused_cable_says_why_whatever_else_is_known() {
        let refusal = Refusal::VxlanNotAllowed { cluster: cluster("west") };
        let choice = Choice { cable: ChosenCable::Refused(refusal.clone()), ..over_wireguard() };
        let found = status(&choice, 60, Some(&report(Some(1), Some(1))), Some(HealthState::Up));
        assert_eq!(found, (Status::Error, refusal.to_string()));
    }

    #[test]
    fn refused_subnets_are_named_on_a_cable_that_works() {
        let refused_subnets = vec![RefusedSubnet::NotOverVxlan { subnet: net("fd00:2::/48") }];
        let choice = Choice { refused_subnets, ..over_vxlan() };
        let (status, message) = status(&choice, 60, None, Some(HealthState::Up));
        assert_eq!(status, Status::Connected);
        assert!(message.contains("fd00:2::/48"));
    }

    #[test]
    fn nat_is_used_where_the_address_is_not_the_peers_own() {
        let evidence = Evidence { age: seconds(60), report: None, health: None };
        let direct = connection_status(&over_wireguard(), &evidence);
        let moved = CableReport { remote: Some("203.0.113.7:61000".parse().unwrap()), ..report(Some(1), Some(1)) };
        let behind_nat = connection_status(&over_wireguard(), &Evidence { report: Some(&moved), ..evidence });

        assert_eq!((direct.using_ip, direct.using_nat), (Some(address("192.168.2.10")), false));
        assert_eq!((behind_nat.using_ip, behind_nat.using_nat), (Some(address("203.0.113.7")), true));
    }
}
