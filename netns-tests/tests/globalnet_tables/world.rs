//! A gateway's node in a network namespace of this thread: its links are TUN devices whose other ends the test holds, so
//! that it sees each packet that leaves and nothing else happens.
//!
//! Rules and routes are typed as gateway and route agent would set them; addresses and services are put by what
//! Globalnet puts them with.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use culvert_globalnet_core::{REFUSED, desired, from_cable, served};
use culvert_kernel::{Kernel, ServiceTable, forget_flows_to, nft_counters};
use culvert_model::IpFamily;
use culvert_netns_tests::{run, run_with_input};
use culvert_netstate::own::{self, Owner};
use culvert_services::Table;
use nix::sched::{CloneFlags, unshare};
use tokio::runtime::Runtime;
use tun_rs::{DeviceBuilder, Layer, SyncDevice};

use crate::objects::Objects;
use crate::packets::Packet;

const PATIENCE: Duration = Duration::from_millis(500);
/// Longer than any packet here.
const BUFFER: usize = 2048;

/// This cluster's global CIDRs.
const CIDRS: [&str; 2] = ["242.0.0.0/16", "fd00:242::/112"];

/// The links of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Link {
    Wireguard,
    Vxlan,
    /// To the pods of this node.
    Pods,
    /// To the other nodes and their pods, as far as packets from cables go.
    Overlay,
    /// Where the default route leads.
    Uplink,
}

impl Link {
    const ALL: [Self; 5] = [Self::Wireguard, Self::Vxlan, Self::Pods, Self::Overlay, Self::Uplink];

    fn name(self) -> &'static str {
        match self {
            Self::Wireguard => "culvert-wg",
            Self::Vxlan => "culvert-vx",
            Self::Pods => "cni0",
            Self::Overlay => "culvert-ov",
            Self::Uplink => "eth0",
        }
    }
}

/// Routes of the node; the remote clusters' global CIDRs are on the cables.
const ROUTES: &str = "
    addr add 192.168.20.11/24 dev eth0
    addr add fd00:20::11/64 dev eth0 nodad
    addr add 10.244.1.254/24 dev cni0
    addr add fd00:244::fe/64 dev cni0 nodad
    route add default dev eth0
    -6 route add default dev eth0
    rule add pref 141 lookup 7201
    -6 rule add pref 141 lookup 7201
    route add 242.1.0.0/16 dev culvert-wg table 7201
    -6 route add fd00:242:0:1::/112 dev culvert-wg table 7201
    route add 242.2.0.0/16 dev culvert-vx table 7201
    -6 route add fd00:242:0:2::/112 dev culvert-vx table 7201
    rule add pref 143 iif culvert-wg lookup 7203
    rule add pref 143 iif culvert-vx lookup 7203
    -6 rule add pref 143 iif culvert-wg lookup 7203
    -6 rule add pref 143 iif culvert-vx lookup 7203
    route add 192.168.20.0/24 dev culvert-ov table 7203
    -6 route add fd00:20::1:0/112 dev culvert-ov table 7203
";

/// What else translates on nodes: masquerades of container networks, kube-proxy's marks, and what it drops.
const OTHERS: &str = r#"
table inet others {
    chain cni {
        type nat hook postrouting priority srcnat
        ip saddr 10.244.0.0/16 ip daddr != 10.244.0.0/16 masquerade fully-random
        ip6 saddr fd00:244::/64 ip6 daddr != fd00:244::/64 masquerade fully-random
        ip saddr != 10.244.0.0/16 ip daddr 10.244.0.0/16 masquerade fully-random
        ip6 saddr != fd00:244::/64 ip6 daddr fd00:244::/64 masquerade fully-random
    }
    chain services {
        ip saddr != 10.244.0.0/16 ip daddr 10.96.0.0/12 meta mark set meta mark or 0x4000
        ip daddr 10.96.0.7 tcp dport 80 dnat ip to 10.244.1.1:8080
    }
    chain prerouting {
        type nat hook prerouting priority dstnat
        jump services
    }
    chain output {
        type nat hook output priority -100
        jump services
    }
    chain postrouting {
        type nat hook postrouting priority srcnat
        meta mark and 0x4000 != 0x4000 return
        meta mark set meta mark xor 0x4000
        masquerade fully-random
    }
    chain forward {
        type filter hook forward priority filter
        ct state invalid drop
    }
}
"#;

/// A remote cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Remote {
    pub(crate) cable: Link,
    /// Of an address in its global CIDRs.
    pub(crate) number: u16,
}

impl Remote {
    pub(crate) fn address(self, family: IpFamily) -> IpAddr {
        let cluster = if self.cable == Link::Wireguard { 1 } else { 2 };
        let [high, low] = self.number.to_be_bytes();
        match family {
            IpFamily::V4 => [242, cluster, high, low].into(),
            IpFamily::V6 => [0xfd00, 0x242, 0, cluster.into(), 0, 0, 0, self.number].into(),
        }
    }
}

pub(crate) struct World {
    links: BTreeMap<Link, SyncDevice>,
    runtime: Runtime,
    kernel: Kernel,
    services: ServiceTable,
}

/// Runs `test` in a thread with a new network namespace, which goes when it ends. Needs root.
pub(crate) fn in_namespace<T: Send + 'static>(test: impl FnOnce() -> T + Send + 'static) -> T {
    let run = move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("root makes network namespaces: run the tests as root");
        test()
    };
    match thread::spawn(run).join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

impl World {
    /// Makes the node in the namespace of this thread, alone or with what else translates.
    pub(crate) fn new(has_others: bool) -> Self {
        let sysctl = |path: &str, value: &str| fs::write(format!("/proc/sys/net/{path}"), value).unwrap();
        sysctl("ipv4/ip_forward", "1");
        sysctl("ipv6/conf/all/forwarding", "1");
        // The kernel sends errors at a rate; here are more. What is limited over IPv6 is "too big" alone.
        sysctl("ipv4/icmp_ratemask", "0");
        sysctl("ipv6/icmp/ratemask", "2");
        sysctl("ipv4/conf/all/rp_filter", "0");
        sysctl("ipv4/conf/default/rp_filter", "2");
        // Without link-local addresses nothing is sent by itself.
        sysctl("ipv6/conf/default/addr_gen_mode", "1");
        ip("link set lo up");
        let open = |link: Link| {
            let device = DeviceBuilder::new().name(link.name()).layer(Layer::L3).mtu(1420).build_sync().unwrap();
            device.set_nonblocking(true).unwrap();
            (link, device)
        };
        let links = Link::ALL.map(open).into();
        sysctl("ipv4/conf/culvert-wg/rp_filter", "0");
        sysctl("ipv4/conf/culvert-vx/rp_filter", "0");
        ROUTES.lines().map(str::trim).filter(|line| !line.is_empty()).for_each(ip);
        if has_others {
            run_with_input(Command::new("nft").args(["-f", "-"]), OTHERS).unwrap();
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let table = Table { name: own::SERVICES_NFT.to_owned(), prerouting: from_cable(), output: None };
        let (kernel, services) = runtime.block_on(async {
            (Kernel::open(Owner::globalnet()).await.unwrap(), ServiceTable::open(table).await.unwrap())
        });
        Self { links, runtime, kernel, services }
    }

    /// Makes the kernel as Globalnet makes it when it finds these objects.
    pub(crate) fn converge(&mut self, objects: &Objects) {
        let addresses = objects.addresses(CIDRS);
        let (services, endpoints) = objects.cluster();
        self.runtime.block_on(async {
            let report = self.kernel.converge(&desired(&addresses)).await.unwrap();
            assert!(report.failed.is_empty(), "{report:?}");
            let report = self.services.converge(&served(&addresses, &services, &endpoints)).await.unwrap();
            // Whoever comes by a cable, by either family.
            let clients = ["242.0.0.0/8", "fd00::/8"].map(|subnet| subnet.parse().unwrap()).into();
            forget_flows_to(&report.gone.into_iter().collect(), &clients).await.unwrap();
        });
    }

    /// Forgets all flows.
    pub(crate) fn forget(&self) {
        run(Command::new("conntrack").arg("--flush")).unwrap();
    }

    /// Returns how many packets the table has refused.
    pub(crate) fn refused(&self) -> u64 {
        // Before the first time there is no table.
        let counters = self.runtime.block_on(nft_counters("culvert_globalnet")).unwrap();
        counters.get(REFUSED).map_or(0, |(packets, _)| *packets)
    }

    /// Has a packet come by a link, and returns the one that leaves then.
    ///
    /// # Panics
    ///
    /// If none leaves soon, or more than one.
    pub(crate) fn pass(&self, link: Link, packet: &Packet) -> (Link, Packet) {
        self.links[&link].send(&packet.bytes()).unwrap();
        let start = Instant::now();
        loop {
            match &self.read()[..] {
                [] if start.elapsed() < PATIENCE => thread::sleep(Duration::from_millis(1)),
                [] => panic!("{packet:?} by {link:?} is lost"),
                [one] => return one.clone(),
                more => panic!("{packet:?} by {link:?} has become {more:?}"),
            }
        }
    }

    /// Returns all that has left and was not read.
    fn read(&self) -> Vec<(Link, Packet)> {
        let mut read = Vec::new();
        for (link, device) in &self.links {
            let mut buffer = [0; BUFFER];
            loop {
                match device.recv(&mut buffer) {
                    Ok(_) if is_multicast(&buffer) => {}
                    Ok(length) => read.push((*link, Packet::parse(&buffer[..length]))),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => panic!("{link:?}: {error}"),
                }
            }
        }
        read
    }
}

/// Tells what the kernel says of itself to its neighbours over IPv6.
fn is_multicast(packet: &[u8]) -> bool {
    packet[0] >> 4 == 6 && packet[24] == 0xff
}

fn ip(line: &str) {
    run(Command::new("ip").args(line.split_whitespace())).unwrap();
}
