//! Where packets go: a client's namespace, the servers', and the table in the router between them.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::thread;
use std::time::Duration;

use culvert_kernel::{forget_flows_past, forget_flows_to};
use culvert_model::{Frontend, IpFamily, Protocol};
use culvert_services::Services;

use crate::rooms::{Room, SERVER_PORT, ask_tcp, ask_udp};
use crate::support::{in_namespace, run, run_with};
use crate::{TABLE, backend, converge, frontend, open, service};

const SERVERS: u8 = 4;

struct World {
    clients: Room,
    /// Servers live as long as their namespace.
    _servers: Room,
}

/// Where all clients are.
fn clients() -> std::collections::BTreeSet<ipnet::IpNet> {
    ["10.2.0.0/16", "fd02::/16"].map(|subnet| subnet.parse().unwrap()).into()
}

fn client(family: IpFamily, number: u8) -> IpAddr {
    match family {
        IpFamily::V4 => Ipv4Addr::new(10, 2, 0, number).into(),
        IpFamily::V6 => Ipv6Addr::new(0xfd02, 0, 0, 0, 0, 0, 0, number.into()).into(),
    }
}

fn server(family: IpFamily, number: u8) -> IpAddr {
    match family {
        IpFamily::V4 => Ipv4Addr::new(10, 1, 0, number).into(),
        IpFamily::V6 => Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 0, number.into()).into(),
    }
}

fn at(family: IpFamily, protocol: Protocol) -> Frontend {
    frontend(if family == IpFamily::V4 { "242.0.0.1" } else { "fd00:242::1" }, protocol, 80)
}

fn address(frontend: Frontend) -> SocketAddr {
    SocketAddr::new(frontend.address, frontend.port)
}

impl World {
    fn new() -> Self {
        for path in ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"] {
            run(&format!("sysctl -qw {path}=1"));
        }
        run("ip link set lo up");
        let (clients, servers) = (Room::behind("clients"), Room::behind("servers"));
        for (room, link, network, last) in [(&clients, "clients", 2, 20), (&servers, "servers", 1, SERVERS)] {
            run(&format!("ip address add 10.{network}.0.254/24 dev {link}"));
            run(&format!("ip address add fd0{network}::fe/64 dev {link} nodad"));
            room.enter(|| {
                for number in 1..=last {
                    run(&format!("ip address add 10.{network}.0.{number}/24 dev eth0"));
                    run(&format!("ip address add fd0{network}::{number:x}/64 dev eth0 nodad"));
                }
                run(&format!("ip route add default via 10.{network}.0.254"));
                run(&format!("ip -6 route add default via fd0{network}::fe"));
            });
        }
        for family in IpFamily::ALL {
            (1..=SERVERS).for_each(|number| servers.serve(server(family, number)));
        }
        Self { clients, _servers: servers }
    }

    /// Begins a flow and returns which server answers it.
    fn ask(&self, from: IpAddr, to: Frontend) -> IpAddr {
        let from = SocketAddr::new(from, 0);
        match to.protocol {
            Protocol::Udp => ask_udp(&self.clients.udp(from, address(to))),
            Protocol::Tcp | Protocol::Sctp => ask_tcp(&mut self.clients.tcp(address(to))),
        }
    }

    /// Returns which server each of 20 clients comes to.
    fn homes(&self, family: IpFamily, to: Frontend) -> BTreeMap<IpAddr, IpAddr> {
        let clients = (1..=20).map(|number| client(family, number));
        clients.map(|client| (client, self.ask(client, to))).collect()
    }
}

#[test]
fn flows_are_spread_by_weight() {
    in_namespace(|| async {
        let world = World::new();
        let mut table = open().await;
        for family in IpFamily::ALL {
            for (protocol, affinity) in [(Protocol::Udp, None), (Protocol::Tcp, None)] {
                let to = at(family, protocol);
                let mut weighted = service([1, 2].map(|number| server(family, number)), affinity);
                weighted.backends.insert(backend(server(family, 3)), 2);
                converge(&mut table, &Services::from([(to, weighted)])).await;
                let mut flows = BTreeMap::new();
                for _ in 0..200 {
                    *flows.entry(world.ask(client(family, 1), to)).or_insert(0) += 1;
                }
                let [one, two, three] = [1, 2, 3].map(|number| flows[&server(family, number)]);
                // Chances of one in a hundred million to be out of these.
                assert!((18..90).contains(&one) && (18..90).contains(&two) && (60..140).contains(&three), "{flows:?}");
            }
        }
    });
}

#[test]
fn clients_stay_with_their_backend_while_others_come_and_go() {
    in_namespace(|| async {
        let world = World::new();
        // Nobody behind us may see an id in a packet's priority.
        let watch = "table inet watch { counter left { }\nchain seen { type filter hook prerouting priority 0;\n\
                     meta priority != 0 counter name left\n}\n}";
        run_with("nft -f -", watch);
        for family in IpFamily::ALL {
            let mut table = open().await;
            let to = at(family, Protocol::Udp);
            let of = |numbers: &[u8]| {
                Services::from([(to, service(numbers.iter().map(|&number| server(family, number)), Some(600)))])
            };
            converge(&mut table, &of(&[1, 2, 3])).await;
            let first = world.homes(family, to);
            assert!(first.values().collect::<std::collections::BTreeSet<_>>().len() > 1);
            assert_eq!(world.homes(family, to), first);

            converge(&mut table, &of(&[1, 2, 3, 4])).await;
            assert_eq!(world.homes(family, to), first);

            // Another process, that finds the first backend gone.
            let mut table = open().await;
            converge(&mut table, &of(&[2, 3, 4])).await;
            let second = world.homes(family, to);
            let gone = server(family, 1);
            assert!(!second.values().any(|home| *home == gone));
            for (client, home) in first.iter().filter(|(_, home)| **home != gone) {
                assert_eq!(second[client], *home);
            }
            assert_eq!(world.homes(family, to), second);

            // Who had to move stays where he is when the first one comes back, and after damage.
            converge(&mut table, &of(&[1, 2, 3, 4])).await;
            assert_eq!(world.homes(family, to), second);
            run(&format!("nft flush map inet {TABLE} by_id{family}"));
            converge(&mut table, &of(&[1, 2, 3, 4])).await;
            assert_eq!(world.homes(family, to), second);
        }
        assert!(run("nft list counter inet watch left").contains("packets 0 "));
    });
}

#[test]
fn a_client_that_was_away_for_its_time_is_placed_anew() {
    in_namespace(|| async {
        let world = World::new();
        let mut table = open().await;
        let to = at(IpFamily::V4, Protocol::Udp);
        let three = [1, 2, 3].map(|number| server(IpFamily::V4, number));
        converge(&mut table, &Services::from([(to, service(three, Some(1)))])).await;
        let first = world.homes(IpFamily::V4, to);
        thread::sleep(Duration::from_secs(2));
        // By chance all 20 come to where they were: one in three thousand million.
        assert_ne!(world.homes(IpFamily::V4, to), first);
    });
}

#[test]
fn connections_live_through_every_change() {
    in_namespace(|| async {
        let world = World::new();
        for family in IpFamily::ALL {
            let mut table = open().await;
            let to = at(family, Protocol::Tcp);
            for affinity in [None, Some(600)] {
                let of = |numbers: &[u8], affinity| {
                    Services::from([(to, service(numbers.iter().map(|&number| server(family, number)), affinity))])
                };
                converge(&mut table, &of(&[1, 2], affinity)).await;
                let mut connection = world.clients.tcp(address(to));
                let home = ask_tcp(&mut connection);
                for others in [&[3_u8, 4][..], &[1, 2, 3, 4], &[]] {
                    converge(&mut table, &of(others, affinity)).await;
                    assert_eq!(ask_tcp(&mut connection), home);
                }
                table = open().await;
                converge(&mut table, &of(&[3], None)).await;
                assert_eq!(ask_tcp(&mut connection), home);
                assert_eq!(world.ask(client(family, 1), to), server(family, 3));
            }
        }
    });
}

#[test]
fn flows_to_a_backend_that_is_gone_are_forgotten_and_no_others() {
    in_namespace(|| async {
        let world = World::new();
        let family = IpFamily::V4;
        let (to, other) = (at(family, Protocol::Udp), frontend("242.0.0.2", Protocol::Udp, 80));
        let [one, two] = [1, 2].map(|number| server(family, number));
        let of = |backends: &[IpAddr]| {
            Services::from([(to, service(backends.to_vec(), None)), (other, service([one], None))])
        };
        let mut table = open().await;
        converge(&mut table, &of(&[one])).await;
        let from = |port| SocketAddr::new(client(family, 1), port);
        let flow = world.clients.udp(from(4000), address(to));
        let by_other = world.clients.udp(from(4001), address(other));
        let direct = world.clients.udp(from(4002), SocketAddr::new(one, SERVER_PORT));
        assert_eq!([&flow, &by_other, &direct].map(ask_udp), [one; 3]);

        let report = converge(&mut table, &of(&[two])).await;
        assert_eq!(report.gone, [(to, backend(one))]);
        assert_eq!(ask_udp(&flow), one);
        let flows = || run("conntrack --dump").lines().filter(|line| line.contains("dport=")).count();
        let before = flows();
        forget_flows_to(&report.gone.iter().copied().collect(), &clients()).await.unwrap();
        assert_eq!(flows(), before - 1);
        assert_eq!([&flow, &by_other, &direct].map(ask_udp), [two, one, one]);
    });
}

#[test]
fn flows_that_began_before_there_was_a_backend_are_forgotten() {
    in_namespace(|| async {
        let world = World::new();
        let family = IpFamily::V4;
        let to = at(family, Protocol::Udp);
        let mut table = open().await;
        converge(&mut table, &Services::from([(to, service([], None))])).await;
        // The client has tried already, from the port that it will have again.
        run(
            "conntrack --create --timeout 300 --orig-src 10.2.0.1 --orig-dst 242.0.0.1 --protonum udp --sport 4000 --dport 80",
        );
        let stale = || run("conntrack --dump").contains("src=242.0.0.1");
        assert!(stale());

        let report = converge(&mut table, &Services::from([(to, service([server(family, 2)], None))])).await;
        assert_eq!(report.begun, [to]);
        forget_flows_past(&report.begun.iter().copied().collect(), &clients()).await.unwrap();
        assert!(!stale());
        let flow = world.clients.udp(SocketAddr::new(client(family, 1), 4000), address(to));
        assert_eq!(ask_udp(&flow), server(family, 2));
        forget_flows_past(&report.begun.iter().copied().collect(), &clients()).await.unwrap();
        assert_eq!(ask_udp(&flow), server(family, 2));
    });
}

#[test]
fn packets_to_a_service_without_backends_are_left_alone() {
    in_namespace(|| async {
        let world = World::new();
        let family = IpFamily::V4;
        // Somebody else serves the same address, later in the chain.
        let later = "table ip later { chain c { type nat hook prerouting priority -100;\n\
                     ip daddr 242.0.0.1 udp dport 80 dnat to 10.1.0.4:8080\n}\n}";
        run_with("nft -f -", later);
        let to = at(family, Protocol::Udp);
        let mut table = open().await;
        converge(&mut table, &Services::from([(to, service([], None))])).await;
        assert_eq!(world.ask(client(family, 1), to), server(family, 4));
        converge(&mut table, &Services::from([(to, service([server(family, 1)], None))])).await;
        assert_eq!(world.ask(client(family, 1), to), server(family, 1));
    });
}
