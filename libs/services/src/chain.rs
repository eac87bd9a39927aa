//! Chains that services go to, as the steps of nftables' machine in the kernel.
//!
//! Not as text: a client is held to an id, and whether the id is still somebody's is found out by the packet itself, in
//! the very moment that it is to be used. So the answer of one map is part of the key to the next. `nft` has no word for
//! that, and 1.0.6 ends when it is to list it, which would take the list from everyone on the node: so the id passes
//! through the packet's priority, which has a name, decides about no route, and is 0 at these hooks anyway. And `nft`
//! 1.0.6 makes another rule than it was told out of `dnat` to addresses and ports of several protocols.

use std::fmt;

use culvert_model::IpFamily;

use crate::structure::{Map, Target};

/// A rule; one that finds nothing in a map ends, and the next one is tried.
pub type Rule = Vec<Step>;

/// What is done with the words (of 32 bits) that a rule has to itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Ends the rule unless the packet is of this family.
    Family(IpFamily),
    /// Loads the source address into these words.
    Source { family: IpFamily, to: u32 },
    /// Loads the destination address.
    Destination { family: IpFamily, to: u32 },
    /// Loads the transport protocol.
    Protocol { to: u32 },
    /// Loads the destination port.
    Port { to: u32 },
    /// Draws a number.
    Draw { below: u32, to: u32 },
    /// Looks a key up, and ends the rule if it is not there.
    Find { map: Map, family: IpFamily, key: u32, to: u32 },
    /// Writes a word to the packet's priority and reads it back: the word is the same, but `nft` has a name for it.
    Name { word: u32 },
    /// Clears the packet's priority, by way of a word.
    Clear { word: u32 },
    /// Holds a client to an id, or goes on doing so; ends the rule if there is no room.
    Hold { family: IpFamily, client: u32, id: u32, seconds: u32 },
    /// Holds a client no longer.
    Release { family: IpFamily, client: u32, id: u32 },
    /// Sends the packet to an address and port.
    Go { family: IpFamily, address: u32, port: u32 },
}

/// Where a rule has what.
struct Words {
    source: u32,
    destination: u32,
    protocol: u32,
    port: u32,
    /// A slot, and then an id.
    number: u32,
    backend: u32,
    backend_port: u32,
}

impl Words {
    /// Lays the words out so that each key is one piece: source, destination, protocol and port are a client's,
    /// destination to number are a slot's or an id's.
    fn of(family: IpFamily) -> Self {
        let address = match family {
            IpFamily::V4 => 1,
            IpFamily::V6 => 4,
        };
        let protocol = 2 * address;
        let backend = protocol + 3;
        Self {
            source: 0,
            destination: address,
            protocol,
            port: protocol + 1,
            number: protocol + 2,
            backend,
            backend_port: backend + address,
        }
    }
}

impl Target {
    /// Returns the rules of the chain.
    pub fn rules(self, family: IpFamily) -> Vec<Rule> {
        let words = Words::of(family);
        let service = [
            Step::Family(family),
            Step::Destination { family, to: words.destination },
            Step::Protocol { to: words.protocol },
            Step::Port { to: words.port },
        ];
        let client = [&service[..], &[Step::Source { family, to: words.source }]].concat();
        let find = |map, key, to| Step::Find { map, family, key, to };
        let learned = find(Map::Learned, words.source, words.number);
        let by_id = find(Map::ById, words.destination, words.backend);
        let go = Step::Go { family, address: words.backend, port: words.backend_port };
        match self {
            Self::Pick { slots } => {
                let draw = Step::Draw { below: slots, to: words.number };
                let slot = find(Map::Slots, words.destination, words.backend);
                vec![[&service[..], &[draw, slot, go]].concat()]
            }
            Self::Stick { slots, seconds } => {
                let draw = Step::Draw { below: slots, to: words.number };
                let id = find(Map::Ids, words.destination, words.number);
                let hold = Step::Hold { family, client: words.source, id: words.number, seconds };
                let release = Step::Release { family, client: words.source, id: words.number };
                let (name, clear) = (Step::Name { word: words.number }, Step::Clear { word: words.number });
                vec![
                    [&client[..], &[learned, name, hold, by_id, clear, go]].concat(),
                    // Still here: the client is new, or its id is nobody's any more.
                    [&client[..], &[learned, name, release]].concat(),
                    [&client[..], &[draw, id, name, by_id, hold, clear, go]].concat(),
                    // Still here: as many clients are held as can be.
                    [&service[..], &[draw, id, name, by_id, clear, go]].concat(),
                ]
            }
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Family(family) => write!(f, "is IPv{family}"),
            Self::Source { to, .. } => write!(f, "{to} = source"),
            Self::Destination { to, .. } => write!(f, "{to} = destination"),
            Self::Protocol { to } => write!(f, "{to} = protocol"),
            Self::Port { to } => write!(f, "{to} = port"),
            Self::Draw { below, to } => write!(f, "{to} = random below {below}"),
            Self::Find { map, family, key, to } => write!(f, "{to} = {}[{key}]", map.name(*family)),
            Self::Name { word } => write!(f, "name {word}"),
            Self::Clear { word } => write!(f, "clear by {word}"),
            Self::Hold { family, client, id, seconds } => {
                write!(f, "{}[{client}] = {id} for {seconds} s", Map::Learned.name(*family))
            }
            Self::Release { family, client, .. } => write!(f, "delete {}[{client}]", Map::Learned.name(*family)),
            Self::Go { address, port, .. } => write!(f, "go to {address} port {port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(target: Target, family: IpFamily) -> String {
        let rule = |rule: Rule| rule.iter().map(Step::to_string).collect::<Vec<_>>().join("; ");
        target.rules(family).into_iter().map(rule).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn a_flow_goes_to_who_holds_the_slot_that_is_drawn() {
        insta::assert_snapshot!(text(Target::Pick { slots: 3 }, IpFamily::V4), @"is IPv4; 1 = destination; 2 = protocol; 3 = port; 4 = random below 3; 5 = slots4[1]; go to 5 port 6");
    }

    #[test]
    fn a_client_goes_where_it_was_if_that_is_still_there() {
        insta::assert_snapshot!(text(Target::Stick { slots: 3, seconds: 10_800 }, IpFamily::V6), @r"
        is IPv6; 4 = destination; 8 = protocol; 9 = port; 0 = source; 10 = learned6[0]; name 10; learned6[0] = 10 for 10800 s; 11 = by_id6[4]; clear by 10; go to 11 port 15
        is IPv6; 4 = destination; 8 = protocol; 9 = port; 0 = source; 10 = learned6[0]; name 10; delete learned6[0]
        is IPv6; 4 = destination; 8 = protocol; 9 = port; 0 = source; 10 = random below 3; 10 = ids6[4]; name 10; 11 = by_id6[4]; learned6[0] = 10 for 10800 s; clear by 10; go to 11 port 15
        is IPv6; 4 = destination; 8 = protocol; 9 = port; 10 = random below 3; 10 = ids6[4]; name 10; 11 = by_id6[4]; clear by 10; go to 11 port 15
        ");
    }

    #[test]
    fn every_rule_has_room_in_the_kernel() {
        assert_eq!(Words::of(IpFamily::V6).backend_port, 15);
    }
}
