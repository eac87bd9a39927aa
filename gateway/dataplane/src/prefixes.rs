//! Longest-prefix match from addresses to values, built once and read for every packet.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::net::IpAddr;

use ipnet::IpNet;

/// One map per prefix length in use, longest first: a look-up costs as many steps as there are distinct lengths,
/// however many prefixes there are.
#[derive(Clone, Debug, Default)]
pub(crate) struct Prefixes<T> {
    v4: Vec<(u8, Map<u32, T>)>,
    v6: Vec<(u8, Map<u128, T>)>,
}

type Map<K, T> = HashMap<K, T, BuildHasherDefault<Multiply>>;

impl<T: Copy> Prefixes<T> {
    /// Builds the table; of equal prefixes the first one counts.
    pub(crate) fn new(prefixes: impl IntoIterator<Item = (IpNet, T)>) -> Self {
        let mut table = Self { v4: Vec::new(), v6: Vec::new() };
        for (prefix, value) in prefixes {
            let length = prefix.prefix_len();
            match prefix {
                IpNet::V4(net) => {
                    map_of(&mut table.v4, length).entry(u32::from(net.network())).or_insert(value);
                }
                IpNet::V6(net) => {
                    map_of(&mut table.v6, length).entry(u128::from(net.network())).or_insert(value);
                }
            }
        }
        table.v4.sort_by_key(|(length, _)| std::cmp::Reverse(*length));
        table.v6.sort_by_key(|(length, _)| std::cmp::Reverse(*length));
        table
    }

    /// Returns the value of the longest prefix that holds `address`.
    pub(crate) fn find(&self, address: IpAddr) -> Option<T> {
        match address {
            IpAddr::V4(address) => {
                let bits = u32::from(address);
                self.v4.iter().find_map(|(length, map)| {
                    map.get(&(bits & u32::MAX.checked_shl(32 - u32::from(*length)).unwrap_or(0))).copied()
                })
            }
            IpAddr::V6(address) => {
                let bits = u128::from(address);
                self.v6.iter().find_map(|(length, map)| {
                    map.get(&(bits & u128::MAX.checked_shl(128 - u32::from(*length)).unwrap_or(0))).copied()
                })
            }
        }
    }
}

fn map_of<K, T>(maps: &mut Vec<(u8, Map<K, T>)>, length: u8) -> &mut Map<K, T> {
    let at = maps.iter().position(|(known, _)| *known == length).unwrap_or_else(|| {
        maps.push((length, Map::default()));
        maps.len() - 1
    });
    &mut maps[at].1
}

/// Multiplication by a constant: addresses are few and come from checked records, so speed is what counts.
#[derive(Clone, Copy, Debug, Default)]
struct Multiply(u64);

impl Hasher for Multiply {
    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 32)
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_ne_bytes(word));
        }
    }

    fn write_u32(&mut self, value: u32) {
        self.write_u64(u64::from(value));
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0.rotate_left(5) ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Prefixes<u8> {
        let prefixes = [
            ("10.0.0.0/8", 1),
            ("10.2.0.0/16", 2),
            ("10.2.3.0/24", 3),
            ("10.2.3.4/32", 4),
            ("fd00::/16", 6),
            ("0.0.0.0/0", 0),
        ];
        Prefixes::new(prefixes.map(|(prefix, value)| (prefix.parse().expect("a prefix"), value)))
    }

    #[test]
    fn the_longest_prefix_wins() {
        for (address, expected) in
            [("10.9.9.9", 1), ("10.2.9.9", 2), ("10.2.3.9", 3), ("10.2.3.4", 4), ("8.8.8.8", 0), ("fd00::1", 6)]
        {
            assert_eq!(table().find(address.parse().expect("an address")), Some(expected), "{address}");
        }
    }

    #[test]
    fn an_address_outside_all_prefixes_has_no_value() {
        assert_eq!(table().find("fe80::1".parse().expect("an address")), None);
    }
}
