//! nftables tables as values, and their text for the `nft` program.
//!
//! A table is updated in one transaction that deletes and remakes sets and chains but never the table or its counters,
//! so that no packet sees a half and counters survive. Rules are lines of nft syntax: what a snapshot shows is what the
//! kernel is given.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// A table of family `inet`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Named counters; never reset by an update.
    pub counters: BTreeSet<String>,
    pub sets: BTreeMap<String, Set>,
    pub maps: BTreeMap<String, Map>,
    pub chains: BTreeMap<String, Chain>,
}

impl Table {
    /// Returns what stands for a table whose content is not known; no desired table equals it.
    pub fn unknown() -> Self {
        Self { counters: BTreeSet::from(["content not known".to_owned()]), ..Self::default() }
    }
}

impl fmt::Display for Table {
    /// Writes the body of the table's `table inet … { }` block.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for counter in &self.counters {
            writeln!(f, "  counter {counter} {{ }}")?;
        }
        for (name, set) in &self.sets {
            writeln!(f, "  set {name} {{")?;
            writeln!(f, "    type {};", set.key)?;
            if set.interval {
                writeln!(f, "    flags interval; auto-merge;")?;
            }
            if !set.elements.is_empty() {
                let elements: Vec<&str> = set.elements.iter().map(String::as_str).collect();
                writeln!(f, "    elements = {{ {} }}", elements.join(", "))?;
            }
            writeln!(f, "  }}")?;
        }
        for (name, map) in &self.maps {
            writeln!(f, "  map {name} {{")?;
            writeln!(f, "    type {} : {};", map.key, map.value)?;
            if !map.elements.is_empty() {
                let elements: Vec<String> =
                    map.elements.iter().map(|(key, value)| format!("{key} : {value}")).collect();
                writeln!(f, "    elements = {{ {} }}", elements.join(", "))?;
            }
            writeln!(f, "  }}")?;
        }
        for (name, chain) in &self.chains {
            writeln!(f, "  chain {name} {{")?;
            if let Some(Hook { kind, hook, priority }) = &chain.hook {
                writeln!(f, "    type {kind} hook {hook} priority {priority}; policy accept;")?;
            }
            for rule in &chain.rules {
                writeln!(f, "    {rule}")?;
            }
            writeln!(f, "  }}")?;
        }
        Ok(())
    }
}

/// A named set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    /// Key type, such as `ipv4_addr` or `ipv4_addr . ipv4_addr`.
    pub key: &'static str,
    /// Whether elements are prefixes or ranges (`flags interval`, merged where they touch).
    pub interval: bool,
    /// Elements in nft syntax.
    pub elements: BTreeSet<String>,
}

/// A named map without intervals.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Map {
    /// Key type, such as `ipv4_addr`.
    pub key: &'static str,
    /// Value type, such as `ipv4_addr` or `verdict`.
    pub value: &'static str,
    /// Values by key, in nft syntax. A chain that a verdict names need not be declared before.
    pub elements: BTreeMap<String, String>,
}

/// A chain; with a hook it is a base chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    pub hook: Option<Hook>,
    /// Rules in nft syntax, in order.
    pub rules: Vec<String>,
}

/// Where a base chain is hooked in. Its policy is `accept`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hook {
    /// `filter`, `nat` or `route`.
    pub kind: &'static str,
    /// `prerouting`, `input`, `forward`, `output` or `postrouting`.
    pub hook: &'static str,
    pub priority: i32,
}

/// Something with a name in a listed table: `set peers`, `chain input`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Object {
    /// One word, or two as in `ct helper`.
    kind: String,
    name: String,
}

/// Returns the block that declares `table` under `name`.
pub fn render(name: &str, table: &Table) -> String {
    format!("table inet {name} {{\n{table}}}\n")
}

/// Returns the script that turns the table `name`, listed by nft as `listing`, into `table` in one transaction.
///
/// `listing` is the output of `nft list table inet <name>`, empty for a table that is not there. Counters that are
/// wanted before and after keep their values.
pub fn render_update(name: &str, listing: &str, table: &Table) -> String {
    // A set or counter cannot be deleted while a rule refers to it, nor a chain while a rule or a map's element does.
    let mut script = format!("add table inet {name}\nflush table inet {name}\n");
    let (chains, others): (Vec<Object>, Vec<Object>) =
        objects(listing).into_iter().partition(|object| object.kind == "chain");
    for Object { kind, name: object } in others.into_iter().chain(chains) {
        if kind != "counter" || !table.counters.contains(&object) {
            script.push_str(&format!("delete {kind} inet {name} {object}\n"));
        }
    }
    script.push_str(&render(name, table));
    script
}

/// Returns the script that deletes the table `name`, whether it is there or not.
pub fn render_delete(name: &str) -> String {
    format!("add table inet {name}\ndelete table inet {name}\n")
}

/// Finds the named objects of a listed table: the lines of one tab that open a block.
fn objects(listing: &str) -> Vec<Object> {
    listing
        .lines()
        .filter_map(|line| line.strip_prefix('\t')?.strip_suffix(" {"))
        .filter(|header| !header.starts_with('\t'))
        .filter_map(|header| header.rsplit_once(' '))
        .map(|(kind, name)| Object { kind: kind.to_owned(), name: name.to_owned() })
        .collect()
}

/// Reads the named counters, as packets and bytes, out of the output of `nft list table inet <name>`.
///
/// Lines that are no counter's are passed over.
pub fn parse_counters(listing: &str) -> BTreeMap<String, (u64, u64)> {
    let mut counters = BTreeMap::new();
    let mut open: Option<&str> = None;
    for line in listing.lines() {
        if let Some(name) = line.strip_prefix("\tcounter ").and_then(|rest| rest.strip_suffix(" {")) {
            open = Some(name);
        } else if let Some(name) = open.take()
            && let ["packets", packets, "bytes", bytes] = line.split_whitespace().collect::<Vec<_>>()[..]
            && let (Ok(packets), Ok(bytes)) = (packets.parse(), bytes.parse())
        {
            counters.insert(name.to_owned(), (packets, bytes));
        }
    }
    counters
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Table {
        let mut table = Table::default();
        table.counters.insert("refused".to_owned());
        table.sets.insert(
            "peers".to_owned(),
            Set {
                key: "ipv4_addr",
                interval: true,
                elements: BTreeSet::from(["10.0.0.0/8".to_owned(), "192.168.1.1".to_owned()]),
            },
        );
        table.sets.insert(
            "pairs".to_owned(),
            Set { key: "ipv4_addr . ipv4_addr", interval: false, elements: BTreeSet::new() },
        );
        table.maps.insert(
            "senders".to_owned(),
            Map {
                key: "ipv4_addr",
                value: "verdict",
                elements: BTreeMap::from([("10.0.0.1".to_owned(), "goto helper".to_owned())]),
            },
        );
        table.chains.insert(
            "input".to_owned(),
            Chain {
                hook: Some(Hook { kind: "filter", hook: "input", priority: -5 }),
                rules: vec![
                    "ip saddr @peers udp dport 4800 accept".to_owned(),
                    "udp dport 4800 counter name refused drop".to_owned(),
                ],
            },
        );
        table.chains.insert("helper".to_owned(), Chain::default());
        table
    }

    #[test]
    fn a_table_renders_counters_then_sets_then_maps_then_chains() {
        insta::assert_snapshot!(render("culvert_test", &example()), @r"
        table inet culvert_test {
          counter refused { }
          set pairs {
            type ipv4_addr . ipv4_addr;
          }
          set peers {
            type ipv4_addr;
            flags interval; auto-merge;
            elements = { 10.0.0.0/8, 192.168.1.1 }
          }
          map senders {
            type ipv4_addr : verdict;
            elements = { 10.0.0.1 : goto helper }
          }
          chain helper {
          }
          chain input {
            type filter hook input priority -5; policy accept;
            ip saddr @peers udp dport 4800 accept
            udp dport 4800 counter name refused drop
          }
        }
        ");
    }

    #[test]
    fn an_update_deletes_all_but_the_counters_that_stay() {
        let listing = "table inet culvert_test {\n\tcounter refused {\n\t\tpackets 3 bytes 90\n\t}\n\n\tcounter old {\n\t\t\
                       packets 0 bytes 0\n\t}\n\n\tset peers {\n\t\ttype ipv4_addr\n\t\telements = { 1.2.3.4,\n\t\t\t     \
                       1.2.3.5 }\n\t}\n\n\tchain input {\n\t\tip saddr @peers accept\n\t}\n}\n";

        let script = render_update("culvert_test", listing, &Table { sets: BTreeMap::new(), ..example() });

        insta::assert_snapshot!(script, @r"
        add table inet culvert_test
        flush table inet culvert_test
        delete counter inet culvert_test old
        delete set inet culvert_test peers
        delete chain inet culvert_test input
        table inet culvert_test {
          counter refused { }
          map senders {
            type ipv4_addr : verdict;
            elements = { 10.0.0.1 : goto helper }
          }
          chain helper {
          }
          chain input {
            type filter hook input priority -5; policy accept;
            ip saddr @peers udp dport 4800 accept
            udp dport 4800 counter name refused drop
          }
        }
        ");
    }

    #[test]
    fn counters_are_read_from_a_listing() {
        let listing = "table inet t {\n\tcounter a {\n\t\tpackets 3 bytes 90\n\t}\n\n\tcounter b {\n\t\tpackets 0 bytes 0\n\t}\n\n\
                       \tchain c {\n\t\tcounter packets 7 bytes 700 drop\n\t}\n}\n";

        let counters = parse_counters(listing);

        assert_eq!(counters, BTreeMap::from([("a".to_owned(), (3, 90)), ("b".to_owned(), (0, 0))]));
    }

    #[test]
    fn an_unknown_table_differs_from_an_empty_one() {
        assert_ne!(Table::unknown(), Table::default());
    }
}
