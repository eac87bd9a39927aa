//! What in a kernel is Culvert's: link names, table numbers, protocol numbers, priorities and marks.
//!
//! Ownership is written in the kernel itself, so that a daemon finds after a restart what it made, and leaves alone what
//! somebody else made. The table in ARCHITECTURE.md repeats these numbers; a test compares the two.

use std::collections::BTreeSet;

use crate::TableId;

/// The TUN device of the WireGuard cables; it lives and dies with the gateway process.
pub const WIREGUARD_LINK: &str = "culvert-wg";
/// The VXLAN device of the cables to gateways on trusted links.
pub const VXLAN_LINK: &str = "culvert-vx";
/// The VXLAN device from the nodes of a cluster to its gateway.
pub const OVERLAY_LINK: &str = "culvert-ov";

/// Routing table of the cables, filled by the gateway.
pub const CABLE_TABLE: TableId = TableId(7201);
/// Routing table of the overlay and of the `unreachable` routes, filled by the route agent.
pub const NODE_TABLE: TableId = TableId(7202);
/// Routing table of the node addresses of this cluster for what comes by a cable, filled by the route agent.
pub const NODES_TABLE: TableId = TableId(7203);
/// The kernel's table of its own addresses: only what stands there may be the source of its answers.
pub const LOCAL_TABLE: TableId = TableId(255);
/// The kernel's main routing table.
pub const MAIN_TABLE: TableId = TableId(254);

/// Rule priority: the gateway's own outer packets are routed by the main table, whatever subnets a peer announces.
pub const OUTER_RULE: u32 = 140;
/// Rule priority: look into [`CABLE_TABLE`].
pub const CABLE_RULE: u32 = 141;
/// Rule priority: look into [`NODE_TABLE`].
pub const NODE_RULE: u32 = 142;

/// Rule priority: what comes by a cable for a node of this cluster looks into [`NODES_TABLE`].
pub const NODES_RULE: u32 = 143;

/// The nftables table of services that are served to what comes by a cable. Globalnet makes it, though not by a
/// [`Owner`]'s plan: it has elements by the thousand, which change one by one.
pub const SERVICES_NFT: &str = "culvert_services";

/// Mark on the outer packets of WireGuard cables.
pub const OUTER_MARK: u32 = 0x00c1_0000;

/// Metric of a route that carries traffic.
pub const ROUTE_METRIC: u32 = 100;
/// Metric of the `unreachable` route of a remote subnet, above every route that carries traffic.
pub const UNREACHABLE_METRIC: u32 = 4_278_198_272;

/// VXLAN network identifier of the cables between gateways (Submariner chapter 4.9).
pub const CABLE_VNI: u32 = 1000;
/// VXLAN network identifier of the overlay inside a cluster.
pub const OVERLAY_VNI: u32 = 100;

/// A component's mark on what it makes in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Routing protocol number of its routes and rules (`proto` in `ip route`).
    pub protocol: u8,
    /// Links that it makes or adopts; neighbour, forwarding and address entries on them are its own.
    pub links: BTreeSet<String>,
    /// Its nftables tables, all of family `inet`.
    pub nft_tables: BTreeSet<String>,
}

impl Owner {
    /// The gateway: cable routes and the VXLAN cable device.
    pub fn gateway() -> Self {
        Self::new(201, &[VXLAN_LINK], "culvert_gateway")
    }

    /// The route agent: the overlay device, its routes, and the rules against masquerading.
    pub fn route_agent() -> Self {
        Self::new(202, &[OVERLAY_LINK], "culvert_route_agent")
    }

    /// Globalnet: the routes of global addresses to the gateway itself, and their translation.
    pub fn globalnet() -> Self {
        Self::new(203, &[], "culvert_globalnet")
    }

    fn new(protocol: u8, links: &[&str], nft_table: &str) -> Self {
        Self {
            protocol,
            links: links.iter().map(|&link| link.to_owned()).collect(),
            nft_tables: BTreeSet::from([nft_table.to_owned()]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the values of the ownership table in ARCHITECTURE.md with who makes them.
    fn documented() -> BTreeSet<(String, String)> {
        let text = include_str!("../../../ARCHITECTURE.md");
        let (_, table) = text.split_once("| what | value | made by |").unwrap();
        let (table, _) = table.split_once("\n\n").unwrap();
        let cells = |line: &str| line.split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
        table
            .lines()
            .map(cells)
            .filter(|cells| cells.len() > 2 && cells[1] != "---")
            .map(|cells| (cells[1].replace('`', ""), cells[2].replace('`', "")))
            .collect()
    }

    #[test]
    fn the_table_in_the_architecture_says_the_same() {
        let documented = documented();
        let names: BTreeSet<&str> = documented.iter().map(|(what, _)| what.as_str()).collect();

        let mut expected: Vec<String> =
            [WIREGUARD_LINK, VXLAN_LINK, OVERLAY_LINK].map(|link| format!("link {link}")).into();
        expected.extend([CABLE_TABLE, NODE_TABLE, NODES_TABLE].map(|table| format!("table {}", table.0)));
        expected.extend([OUTER_RULE, CABLE_RULE, NODE_RULE, NODES_RULE].map(|rule| format!("rule {rule}")));
        expected.extend([ROUTE_METRIC, UNREACHABLE_METRIC].map(|metric| format!("metric {metric}")));
        expected.push(format!("mark {OUTER_MARK:#010x}"));
        for owner in [Owner::gateway(), Owner::route_agent(), Owner::globalnet()] {
            expected.push(format!("protocol {}", owner.protocol));
            expected.extend(owner.nft_tables.iter().map(|table| format!("nft table inet {table}")));
        }

        expected.push(format!("nft table inet {SERVICES_NFT}"));

        assert_eq!(names, expected.iter().map(String::as_str).collect());
        let vnis = [(VXLAN_LINK, CABLE_VNI), (OVERLAY_LINK, OVERLAY_VNI)];
        for (link, vni) in vnis {
            let what = format!("link {link}");
            assert!(
                documented.iter().any(|(name, text)| *name == what && text.contains(&format!("VNI {vni}"))),
                "{link}"
            );
        }
    }
}
