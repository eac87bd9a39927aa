//! Looks for anything of Culvert's in a network namespace, by the numbers and names in ARCHITECTURE.md.
//!
//! It asks the system's own tools, not Culvert's code: whoever forgot to remove something would forget to look for it.

use anyhow::Result;

use crate::namespace::Namespace;

const TABLES: [&str; 3] = ["7201", "7202", "7203"];
const PROTOCOLS: [&str; 3] = ["201", "202", "203"];
const RULES: [&str; 4] = ["140:", "141:", "142:", "143:"];

/// Returns every link, route, rule and nftables table of ours that is there, in the words of `ip` and `nft`.
pub fn leftovers(namespace: &Namespace) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let mut look = |command_line: &str, ours: &dyn Fn(&str) -> bool| -> Result<()> {
        let output = namespace.run(command_line)?;
        let lines = output.lines().filter(|line| ours(line));
        found.extend(lines.map(|line| format!("{}: {}", namespace.name(), line.trim())));
        Ok(())
    };
    look("ip -oneline link show", &|line| {
        line.split_whitespace().nth(1).is_some_and(|name| name.starts_with("culvert-"))
    })?;
    for family in ["-4", "-6"] {
        look(&format!("ip {family} route show table all"), &|line| {
            has_pair(line, "table", &TABLES) || has_pair(line, "proto", &PROTOCOLS) || line.contains("dev culvert-")
        })?;
        look(&format!("ip {family} rule show"), &|line| {
            RULES.iter().any(|rule| line.starts_with(rule)) || has_pair(line, "lookup", &TABLES)
        })?;
    }
    look("nft list tables", &|line| line.contains("culvert_"))?;
    Ok(found)
}

/// Tells whether `key` stands in the line with one of `values` after it.
fn has_pair(line: &str, key: &str, values: &[&str]) -> bool {
    let words: Vec<&str> = line.split_whitespace().collect();
    words.windows(2).any(|pair| pair[0] == key && values.contains(&pair[1]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_is_two_words_in_a_row() {
        assert!(has_pair("unreachable 10.2.0.0/16 table 7202 proto 202", "table", &TABLES));
        assert!(!has_pair("10.2.0.0/16 dev eth0 table 72020", "table", &TABLES));
        assert!(!has_pair("default via 7201 table", "table", &TABLES));
    }
}
