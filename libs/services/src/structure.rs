//! The table that the elements are in: maps, and chains by the number of slots.
//!
//! A packet's own address, protocol and port lead to a chain, which draws a slot and finds in one more map who holds it.
//! So a change of a service is a change of elements, however many services there are; the text here goes to the kernel
//! at the start and when a new number of slots or a new timeout comes up.
//!
//! A client with affinity is held to an id, not to an address: whether the id is still somebody's is found out by the
//! packet itself, in the very moment that it is to be used. Between two lookups the id stands in the packet's
//! *priority*. Unlike a mark it decides about no route, packets come in without one (`veth` and routers clear it), and
//! the chains named `…_after` clear it again.

use std::collections::BTreeSet;
use std::fmt::Write;

use culvert_model::IpFamily;

/// Ids of backends in the kernel begin here: a packet's priority (as a class of traffic control: 7201:0) while its
/// backend is being looked up.
pub const IDS: u32 = 0x7201_0000;
/// Clients of either family that are held to a backend at one time, over all services of a table; any more are placed
/// by chance.
const MOST_CLIENTS: u32 = 65_536;
/// Chains without affinity are made this many at a time, so that a service that grows seldom needs a new one.
const BLOCK: u32 = 16;

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
    fn definition(self, words: &Words) -> String {
        // The limit of the generator plays no part in the type.
        let slot = "numgen random mod 4294967295";
        let Words { key, client, backend, .. } = words;
        match self {
            Self::Services => format!("typeof {key} : verdict"),
            Self::Slots => format!("typeof {key} . {slot} : {backend}"),
            Self::Ids => format!("typeof {key} . {slot} : meta priority"),
            Self::ById => format!("typeof {key} . meta priority : {backend}"),
            Self::Learned => {
                format!("typeof {client} : meta priority; flags dynamic,timeout; size {MOST_CLIENTS}")
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

    fn rules(self, words: &Words) -> Vec<String> {
        let Words { protocol, key, client, family, .. } = words;
        match self {
            Self::Pick { slots } => {
                vec![format!("dnat {protocol} to {key} . numgen random mod {slots} map @slots{family}")]
            }
            Self::Stick { slots, seconds } => {
                let learn = format!("update @learned{family} {{ {client} timeout {seconds}s : meta priority }}");
                let go = format!("dnat {protocol} to {key} . meta priority map @by_id{family}");
                vec![
                    // A rule ends where a map has no answer: at a client that is new, or an id that is nobody's any more.
                    format!("meta priority set {client} map @learned{family} {learn} {go}"),
                    format!("delete @learned{family} {{ {client} : meta priority }}"),
                    format!("meta priority set {key} . numgen random mod {slots} map @ids{family}"),
                    learn,
                    go,
                ]
            }
        }
    }
}

/// How nft calls the parts of a packet in one family.
struct Words {
    family: IpFamily,
    protocol: &'static str,
    /// What is looked up of a packet to a service.
    key: String,
    /// The same with who sent it, or its hash.
    client: String,
    backend: String,
}

impl Words {
    fn of(family: IpFamily) -> Self {
        let protocol = match family {
            IpFamily::V4 => "ip",
            IpFamily::V6 => "ip6",
        };
        let key = format!("{protocol} daddr . meta l4proto . th dport");
        let client = format!("{protocol} saddr . {key}");
        // nft 1.0.6 updates maps by keys of 16 bytes at most. Two clients of the same hash, among thousands of millions,
        // may lose their backends to one another.
        let client = match family {
            IpFamily::V4 => client,
            IpFamily::V6 => format!("jhash {client} mod 4294967295 seed {IDS:#x}"),
        };
        Self {
            family,
            protocol,
            client,
            key,
            // A value of `th dport` is a type that nft 1.0.6 does not take back from the kernel.
            backend: format!("{protocol} daddr . tcp dport"),
        }
    }
}

impl Table {
    /// Returns the script that makes the table without elements, and its base chains anew; maps that are there, and
    /// what is in them, stay.
    pub fn script(&self) -> String {
        let name = &self.name;
        let mut script = format!("table inet {name} {{\n");
        for family in IpFamily::ALL {
            for map in [Map::Services, Map::Slots, Map::Learned, Map::Ids, Map::ById] {
                let _ = writeln!(script, "  map {} {{ {}; }}", map.name(family), map.definition(&Words::of(family)));
            }
        }
        script.push_str("}\n");
        for (hook, guard) in [("prerouting", Some(&self.prerouting)), ("output", self.output.as_ref())] {
            let after = format!("{hook}_after");
            let Some(guard) = guard else {
                // Adding it first makes deleting it succeed.
                for chain in [hook, &after] {
                    let _ = writeln!(script, "add chain inet {name} {chain}\ndelete chain inet {name} {chain}");
                }
                continue;
            };
            for (chain, kind, priority) in [(hook, "nat", -110), (&after, "filter", -105)] {
                let _ = writeln!(
                    script,
                    "add chain inet {name} {chain} {{ type {kind} hook {hook} priority {priority}; policy accept; }}"
                );
            }
            let look = IpFamily::ALL.map(|family| {
                let services = Map::Services.name(family);
                format!("{guard} {} vmap @{services}", Words::of(family).key).trim_start().to_owned()
            });
            refill(&mut script, name, hook, &look);
            let clear = format!("meta priority & 0xffff0000 == {IDS:#010x} meta priority set 0");
            refill(&mut script, name, &after, &[clear]);
        }
        script
    }

    /// Returns the script that makes these chains, or fills them anew, in a table that is there.
    pub fn chains(&self, targets: &BTreeSet<(IpFamily, Target)>) -> String {
        let mut script = String::new();
        for (family, target) in targets {
            let chain = target.chain(*family);
            let _ = writeln!(script, "add chain inet {} {chain}", self.name);
            refill(&mut script, &self.name, &chain, &target.rules(&Words::of(*family)));
        }
        script
    }
}

fn refill(script: &mut String, table: &str, chain: &str, rules: &[String]) {
    let _ = writeln!(script, "flush chain inet {table} {chain}");
    for rule in rules {
        let _ = writeln!(script, "add rule inet {table} {chain} {rule}");
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
          map slots4 { typeof ip daddr . meta l4proto . th dport . numgen random mod 4294967295 : ip daddr . tcp dport; }
          map learned4 { typeof ip saddr . ip daddr . meta l4proto . th dport : meta priority; flags dynamic,timeout; size 65536; }
          map ids4 { typeof ip daddr . meta l4proto . th dport . numgen random mod 4294967295 : meta priority; }
          map by_id4 { typeof ip daddr . meta l4proto . th dport . meta priority : ip daddr . tcp dport; }
          map services6 { typeof ip6 daddr . meta l4proto . th dport : verdict; }
          map slots6 { typeof ip6 daddr . meta l4proto . th dport . numgen random mod 4294967295 : ip6 daddr . tcp dport; }
          map learned6 { typeof jhash ip6 saddr . ip6 daddr . meta l4proto . th dport mod 4294967295 seed 0x72010000 : meta priority; flags dynamic,timeout; size 65536; }
          map ids6 { typeof ip6 daddr . meta l4proto . th dport . numgen random mod 4294967295 : meta priority; }
          map by_id6 { typeof ip6 daddr . meta l4proto . th dport . meta priority : ip6 daddr . tcp dport; }
        }
        add chain inet culvert_test prerouting { type nat hook prerouting priority -110; policy accept; }
        add chain inet culvert_test prerouting_after { type filter hook prerouting priority -105; policy accept; }
        flush chain inet culvert_test prerouting
        add rule inet culvert_test prerouting iifname { "culvert-wg", "culvert-vx" } ip daddr . meta l4proto . th dport vmap @services4
        add rule inet culvert_test prerouting iifname { "culvert-wg", "culvert-vx" } ip6 daddr . meta l4proto . th dport vmap @services6
        flush chain inet culvert_test prerouting_after
        add rule inet culvert_test prerouting_after meta priority & 0xffff0000 == 0x72010000 meta priority set 0
        add chain inet culvert_test output
        delete chain inet culvert_test output
        add chain inet culvert_test output_after
        delete chain inet culvert_test output_after
        "#);
    }

    #[test]
    fn host_processes_have_base_chains_of_their_own() {
        let script = Table { output: Some(String::new()), ..table() }.script();
        let (_, output) = script.split_once("meta priority set 0\n").unwrap();
        insta::assert_snapshot!(output, @r#"
        add chain inet culvert_test output { type nat hook output priority -110; policy accept; }
        add chain inet culvert_test output_after { type filter hook output priority -105; policy accept; }
        flush chain inet culvert_test output
        add rule inet culvert_test output ip daddr . meta l4proto . th dport vmap @services4
        add rule inet culvert_test output ip6 daddr . meta l4proto . th dport vmap @services6
        flush chain inet culvert_test output_after
        add rule inet culvert_test output_after meta priority & 0xffff0000 == 0x72010000 meta priority set 0
        "#);
    }

    #[test]
    fn chains_draw_a_slot_and_hold_clients() {
        let stick = Target::Stick { slots: 3, seconds: 10_800 };
        let targets = [(IpFamily::V4, Target::Pick { slots: 3 }), (IpFamily::V4, stick), (IpFamily::V6, stick)].into();
        insta::assert_snapshot!(table().chains(&targets), @r#"
        add chain inet culvert_test pick4_3
        flush chain inet culvert_test pick4_3
        add rule inet culvert_test pick4_3 dnat ip to ip daddr . meta l4proto . th dport . numgen random mod 3 map @slots4
        add chain inet culvert_test stick4_3_10800
        flush chain inet culvert_test stick4_3_10800
        add rule inet culvert_test stick4_3_10800 meta priority set ip saddr . ip daddr . meta l4proto . th dport map @learned4 update @learned4 { ip saddr . ip daddr . meta l4proto . th dport timeout 10800s : meta priority } dnat ip to ip daddr . meta l4proto . th dport . meta priority map @by_id4
        add rule inet culvert_test stick4_3_10800 delete @learned4 { ip saddr . ip daddr . meta l4proto . th dport : meta priority }
        add rule inet culvert_test stick4_3_10800 meta priority set ip daddr . meta l4proto . th dport . numgen random mod 3 map @ids4
        add rule inet culvert_test stick4_3_10800 update @learned4 { ip saddr . ip daddr . meta l4proto . th dport timeout 10800s : meta priority }
        add rule inet culvert_test stick4_3_10800 dnat ip to ip daddr . meta l4proto . th dport . meta priority map @by_id4
        add chain inet culvert_test stick6_3_10800
        flush chain inet culvert_test stick6_3_10800
        add rule inet culvert_test stick6_3_10800 meta priority set jhash ip6 saddr . ip6 daddr . meta l4proto . th dport mod 4294967295 seed 0x72010000 map @learned6 update @learned6 { jhash ip6 saddr . ip6 daddr . meta l4proto . th dport mod 4294967295 seed 0x72010000 timeout 10800s : meta priority } dnat ip6 to ip6 daddr . meta l4proto . th dport . meta priority map @by_id6
        add rule inet culvert_test stick6_3_10800 delete @learned6 { jhash ip6 saddr . ip6 daddr . meta l4proto . th dport mod 4294967295 seed 0x72010000 : meta priority }
        add rule inet culvert_test stick6_3_10800 meta priority set ip6 daddr . meta l4proto . th dport . numgen random mod 3 map @ids6
        add rule inet culvert_test stick6_3_10800 update @learned6 { jhash ip6 saddr . ip6 daddr . meta l4proto . th dport mod 4294967295 seed 0x72010000 timeout 10800s : meta priority }
        add rule inet culvert_test stick6_3_10800 dnat ip6 to ip6 daddr . meta l4proto . th dport . meta priority map @by_id6
        "#);
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
