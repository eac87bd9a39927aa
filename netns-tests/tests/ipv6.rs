//! IPv6 between pods, beside IPv4 and over the same cables: from worker to worker by both overlays, sources kept.

#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use culvert_netns_tests::{Deployment, Lab, Node, Role, Settings, Topology, set_flag, wait_for};

const READY: Duration = Duration::from_secs(30);
const PATIENCE: Duration = Duration::from_secs(10);
const PORT: u16 = 7000;
const CLUSTERS: [(&str, u16); 2] = [("east", 1), ("west", 2)];
const NODES: [(&str, u16); 2] = [("gw", 1), ("worker", 2)];

fn pod_cidr(cluster: u16) -> String {
    format!("fd00:0:{cluster:x}::/48")
}

fn pod_address(cluster: u16, node: u16, host: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0, cluster, node, 0, 0, 0, host)
}

fn node_address(cluster: u16, node: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 1, cluster, 0, 0, 0, 0, node)
}

/// Gives every node and pod of the lab IPv6 as a container network does it, masquerading included.
fn add_ipv6(lab: &Lab) {
    for (cluster, number) in CLUSTERS {
        for (name, place) in NODES {
            let node = lab.node(cluster, name);
            let (_, other) = NODES.into_iter().find(|(other, _)| *other != name).unwrap();
            let lines = format!(
                "addr add {}/64 dev eth0 nodad\naddr add {}/64 dev cni0 nodad\nroute add {}/64 via {}\n",
                node_address(number, place),
                pod_address(number, place, 1),
                pod_address(number, other, 0),
                node_address(number, other),
            );
            node.namespace.ip(&lines).unwrap();
            let cidr = pod_cidr(number);
            let masquerade = format!(
                "table ip6 nat-cni {{ chain postrouting {{ type nat hook postrouting priority srcnat; \
                 ip6 saddr {cidr} ip6 daddr != {cidr} ip6 daddr != ff00::/8 masquerade; }}; }}"
            );
            node.namespace.nft(&masquerade).unwrap();
            let lines = format!(
                "addr add {}/64 dev eth0 nodad\nroute add default via {}\n",
                pod_address(number, place, 2),
                pod_address(number, place, 1)
            );
            node.pod.ip(&lines).unwrap();
        }
    }
}

/// Sends `payload` from pod to pod and back; returns the source that the far pod saw.
fn exchange(from: &Node, to: &Node, address: Ipv6Addr, payload: &[u8]) -> Result<IpAddr> {
    let listener = to.pod.enter(|| Ok(TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT))?))?;
    std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            from.pod.enter(|| {
                let to = SocketAddr::from((address, PORT));
                let mut stream = TcpStream::connect_timeout(&to, PATIENCE).context("no connection")?;
                stream.set_read_timeout(Some(PATIENCE))?;
                let mut sending = stream.try_clone()?;
                let sender = scope.spawn(move || sending.write_all(payload));
                let mut back = vec![0; payload.len()];
                stream.read_exact(&mut back).context("nothing comes back")?;
                sender.join().expect("the sender does not panic")?;
                anyhow::ensure!(back == payload, "other bytes come back");
                Ok(())
            })
        });
        listener.set_nonblocking(true)?;
        let accepted = || match listener.accept() {
            Ok(accepted) => Ok(Some(accepted)),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error.into()),
        };
        let served = wait_for("a connection", PATIENCE, accepted).and_then(|(mut stream, peer)| {
            stream.set_nonblocking(false)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            let mut bytes = vec![0; payload.len()];
            stream.read_exact(&mut bytes).context("nothing comes")?;
            stream.write_all(&bytes)?;
            Ok(peer.ip())
        });
        client.join().expect("the client does not panic")?;
        served
    })
}

#[test]
fn pods_of_all_nodes_reach_each_other_over_ipv6_under_their_own_addresses() {
    let lab = Lab::build(&Topology::east_west()).unwrap();
    add_ipv6(&lab);
    let mut deployment = Deployment::new(lab, Settings::default()).unwrap();
    for (cluster, number) in CLUSTERS {
        let cidrs = format!("{},{}", deployment.lab.cluster(cluster).plan.pod_cidr, pod_cidr(number));
        let both = |command: &mut Command| set_flag(command, "--cluster-cidr", &cidrs);
        for (node, role) in [("gw", Role::RouteAgent), ("worker", Role::RouteAgent), ("gw", Role::Gateway)] {
            deployment.start_with(cluster, node, role, both).unwrap();
        }
    }
    deployment.wait_connected(&["east", "west"]).unwrap();

    for ((here, here_number), (there, there_number)) in [(CLUSTERS[0], CLUSTERS[1]), (CLUSTERS[1], CLUSTERS[0])] {
        for ((from, from_place), (to, to_place)) in NODES.iter().flat_map(|from| NODES.map(|to| (*from, to))) {
            let (from, to) = (deployment.lab.node(here, from), deployment.lab.node(there, to));
            let address = pod_address(there_number, to_place, 2);
            let what = format!("{} to {} over IPv6", from.name, to.name);
            let answered = || from.pod.run(&format!("ping -6 -n -c 1 -W 1 {address}")).map(Some);
            deployment.explain(wait_for(&what, READY, answered)).unwrap();
            // Large enough for packets of every size that the path takes.
            let seen = exchange(from, to, address, &[7; 500_000]).with_context(|| what.clone());
            assert_eq!(deployment.explain(seen).unwrap(), pod_address(here_number, from_place, 2), "{what}");
        }
    }
}
