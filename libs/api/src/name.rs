//! Decides what an object made from free text is called, by the rule of Submariner's syncer (chapter 3.4).

/// Returns `text` as an object name: lower-cased, every character but letters, digits and dots made `-`, the ends
/// trimmed to a letter or digit.
pub fn object_name(text: &str) -> String {
    let name: String = text
        .chars()
        .map(|character| match character.to_ascii_lowercase() {
            lower @ ('a'..='z' | '0'..='9' | '.') => lower,
            _ => '-',
        })
        .collect();
    name.trim_matches(['-', '.']).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_syncers_rule() {
        for (text, name) in [
            ("East", "east"),
            ("east-submariner-cable-east-10-0-0-1", "east-submariner-cable-east-10-0-0-1"),
            ("node_1.Example.COM", "node-1.example.com"),
            ("_ü/x:", "x"),
            ("", ""),
        ] {
            assert_eq!(object_name(text), name, "{text:?}");
        }
    }
}
