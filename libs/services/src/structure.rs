//! The table that the elements are in: maps, and chains by the number of slots.
//!
//! A packet's own address, protocol and port lead to a chain, which draws a slot and finds in one more map who holds it.
//! So a change of a service is a change of elements, however many services there are. Maps and base chains are text for
//! the `nft` program, and go to the kernel at the start; chains are made when a new number of slots or a new timeout
//! comes up.

use std::fmt::Write;

use culvert_model::IpFamily;

/// Clients of either family that are held to a backend at one time, over all services of a table; any more are placed
/// by chance.
const MOST_CLIENTS: u32 = 65_536;
/// Chains without affinity are made this many at a time, so that a service that grows seldom needs a new one.
const BLOCK: u32 = 16;
/// Before kube-proxy's -100.
const PRIORITY: i32 = -110;

/// What a user of the renderer has in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Name of the table, which is of family `inet`.
    pub name: String,
    /// Which packets from outside are looked at, as the beginning of a rule: `iifname { "culvert-wg", "culvert-vx" }`.
    pub prerouting: String,
    /// Which packets of the host's own processes are looked at; `None`: none, an empty text: all.
    pub output: Option<String>,
}

/// A map; there is one for each family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Map {
    /// Which chain a service goes to.
    Services,
    /// Who holds a slot.
    Slots,
    /// Whose is a slot, by id.
    Ids,
    /// Who has an id.
    ById,
    /// Which id a client is held to; filled by packets alone.
    Learned,
}

impl Map {
    /// Those whose elements are put by us.
    pub const PUT: [Self; 4] = [Self::Services, Self::Slots, Self::Ids, Self::ById];

    /// Returns the name in the kernel.
    pub fn name(self, family: IpFamily) -> String {
        let name = match self {
            Self::Services => "services",
            Self::Slots => "slots",
            Self::Ids => "ids",
            Self::ById => "by_id",
            Self::Learned => "learned",
        };
        format!("{name}{family}")
    }

    /// Returns the types of key and value, and what else nft has to know.
    fn definition(self, family: IpFamily) -> String {
        let protocol = protocol(family);
        let key = key(family);
        let backend = format!("{protocol} daddr . th dport");
        // The limit of the generator plays no part in the type.
        let (slot, id) = ("numgen random mod 4294967295", "meta priority");
        match self {
            Self::Services => format!("typeof {key} : verdict"),
            Self::Slots => format!("typeof {key} . {slot} : {backend}"),
            Self::Ids => format!("typeof {key} . {slot} : {id}"),
            Self::ById => format!("typeof {key} . {id} : {backend}"),
            Self::Learned => {
                format!("typeof {protocol} saddr . {key} : {id}; flags dynamic,timeout; size {MOST_CLIENTS}")
            }
        }
    }
}

/// Which chain a service goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// Each flow to the backend of a slot drawn among so many.
    Pick { slots: u32 },
    /// A client stays with the backend that it had, for so many seconds since its last flow.
    Stick { slots: u32, seconds: u32 },
}

impl Target {
    /// Returns the name of the chain.
    pub fn chain(self, family: IpFamily) -> String {
        match self {
            Self::Pick { slots } => format!("pick{family}_{slots}"),
            Self::Stick { slots, seconds } => format!("stick{family}_{slots}_{seconds}"),
        }
    }

    /// Returns which chain has this name; `None` if it is none of these.
    pub fn of_chain(name: &str) -> Option<(IpFamily, Self)> {
        let family_of = |text: &str| IpFamily::ALL.into_iter().find(|family| family.to_string() == text);
        let mut parts = name.split('_');
        let kind = parts.next()?;
        let slots = parts.next()?.parse().ok().filter(|&slots| slots > 0)?;
        let (family, target) = if let Some(family) = kind.strip_prefix("pick") {
            (family_of(family)?, Self::Pick { slots })
        } else {
            let seconds = parts.next()?.parse().ok()?;
            (family_of(kind.strip_prefix("stick")?)?, Self::Stick { slots, seconds })
        };
        // Names that only nearly are ours are somebody else's.
        (target.chain(family) == name).then_some((family, target))
    }

    /// Returns the chains that are made together with this one.
    pub fn neighbours(self) -> Vec<Self> {
        match self {
            Self::Pick { slots } => {
                let first = slots.saturating_sub(1) / BLOCK * BLOCK;
                (1..=BLOCK).map(|next| Self::Pick { slots: first.saturating_add(next) }).collect()
            }
            Self::Stick { .. } => vec![self],
        }
    }
}

/// Returns how nft calls the family's protocol.
fn protocol(family: IpFamily) -> &'static str {
    match family {
        IpFamily::V4 => "ip",
        IpFamily::V6 => "ip6",
    }
}

/// Returns how nft calls what is looked up of a packet to a service.
fn key(family: IpFamily) -> String {
    format!("{} daddr . meta l4proto . th dport", protocol(family))
}

impl Table {
    /// Returns the script that makes the table without elements, and its base chains anew; maps that are there, and
    /// what is in them, stay.
    pub fn script(&self) -> String {
        let name = &self.name;
        let mut script = format!("table inet {name} {{\n");
        for family in IpFamily::ALL {
            for map in [Map::Services, Map::Slots, Map::Learned, Map::Ids, Map::ById] {
                let _ = writeln!(script, "  map {} {{ {}; }}", map.name(family), map.definition(family));
            }
        }
        script.push_str("}\n");
        for (hook, guard) in [("prerouting", Some(&self.prerouting)), ("output", self.output.as_ref())] {
            let Some(guard) = guard else {
                // Adding it first makes deleting it succeed.
                let _ = writeln!(script, "add chain inet {name} {hook}\ndelete chain inet {name} {hook}");
                continue;
            };
            let kind = format!("type nat hook {hook} priority {PRIORITY}; policy accept;");
            let _ = writeln!(script, "add chain inet {name} {hook} {{ {kind} }}\nflush chain inet {name} {hook}");
            for family in IpFamily::ALL {
                let look = format!("{guard} {} vmap @{}", key(family), Map::Services.name(family));
                let _ = writeln!(script, "add rule inet {name} {hook} {}", look.trim_start());
            }
        }
        script
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        Table {
            name: "culvert_test".to_owned(),
            prerouting: r#"iifname { "culvert-wg", "culvert-vx" }"#.to_owned(),
            output: None,
        }
    }

    #[test]
    fn a_table_is_maps_and_base_chains() {
        insta::assert_snapshot!(table().script(), @r#"
        table inet culvert_test {
          map services4 { typeof ip daddr . meta l4proto . th dport : verdict; }
          map slots4 { typeof ip daddr . meta l4proto . th dport . numgen random mod 4294967295 : ip daddr . th dport; }
          map learned4 { typeof ip saddr . ip daddr . meta l4proto . th dport : meta priority; flags dynamic,timeout; size 65536; }
          map ids4 { typeof ip daddr . meta l4proto . th dport . numgen random mod 4294967295 : meta priority; }
          map by_id4 { typeof ip daddr . meta l4proto . th dport . meta priority : ip daddr . th dport; }
          map services6 { typeof ip6 daddr . meta l4proto . th dport : verdict; }
          map slots6 { typeof ip6 daddr . meta l4proto . th dport . numgen random mod 4294967295 : ip6 daddr . th dport; }
          map learned6 { typeof ip6 saddr . ip6 daddr . meta l4proto . th dport : meta priority; flags dynamic,timeout; size 65536; }
          map ids6 { typeof ip6 daddr . meta l4proto . th dport . numgen random mod 4294967295 : meta priority; }
          map by_id6 { typeof ip6 daddr . meta l4proto . th dport . meta priority : ip6 daddr . th dport; }
        }
        add chain inet culvert_test prerouting { type nat hook prerouting priority -110; policy accept; }
        flush chain inet culvert_test prerouting
        add rule inet culvert_test prerouting iifname { "culvert-wg", "culvert-vx" } ip daddr . meta l4proto . th dport vmap @services4
        add rule inet culvert_test prerouting iifname { "culvert-wg", "culvert-vx" } ip6 daddr . meta l4proto . th dport vmap @services6
        add chain inet culvert_test output
        delete chain inet culvert_test output
        "#);
    }

    #[test]
    fn host_processes_have_a_base_chain_of_their_own() {
        let script = Table { output: Some(String::new()), ..table() }.script();
        let (_, output) = script.split_once("@services6\n").unwrap();
        insta::assert_snapshot!(output, @r"
        add chain inet culvert_test output { type nat hook output priority -110; policy accept; }
        flush chain inet culvert_test output
        add rule inet culvert_test output ip daddr . meta l4proto . th dport vmap @services4
        add rule inet culvert_test output ip6 daddr . meta l4proto . th dport vmap @services6
        ");
    }

    #[test]
    fn a_chain_is_known_by_its_name() {
        for target in [Target::Pick { slots: 12 }, Target::Stick { slots: 3, seconds: 60 }] {
            for family in IpFamily::ALL {
                assert_eq!(Target::of_chain(&target.chain(family)), Some((family, target)));
            }
        }
        for name in ["prerouting", "pick4_0", "pick4_03", "pick5_3", "pick4_3_1", "stick4_3", "stick4_3_60_1"] {
            assert_eq!(Target::of_chain(name), None, "{name}");
        }
    }

    #[test]
    fn chains_come_in_blocks() {
        let block = |slots| Target::Pick { slots }.neighbours();
        assert_eq!(block(1), block(16));
        assert_eq!(block(17).first(), Some(&Target::Pick { slots: 17 }));
        assert!(block(1000).contains(&Target::Pick { slots: 1000 }));
    }
}
