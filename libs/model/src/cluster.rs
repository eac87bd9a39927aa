//! The name of a cluster in a clusterset.

use std::fmt;
use std::str::FromStr;

/// A cluster's id: a DNS label by RFC 1123 section 2.1 (lower case), so that it can stand in a DNS name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterId(String);

/// A cluster id that is no DNS label.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "cluster id {id:?} is no DNS label: use 1 to 63 of a-z, 0-9 and '-', beginning and ending with a letter or digit"
)]
pub struct ClusterIdError {
    id: String,
}

impl ClusterId {
    /// Returns the id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ClusterId {
    type Err = ClusterIdError;

    fn from_str(id: &str) -> Result<Self, Self::Err> {
        if is_dns_label(id) { Ok(Self(id.to_owned())) } else { Err(ClusterIdError { id: id.to_owned() }) }
    }
}

/// Tells whether a text is a DNS label by RFC 1123 section 2.1, in lower case, as Kubernetes wants many names to be.
pub fn is_dns_label(text: &str) -> bool {
    let alphanumeric = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    (1..=63).contains(&bytes.len())
        && bytes.iter().all(|b| alphanumeric(b) || *b == b'-')
        && bytes.first().is_some_and(alphanumeric)
        && bytes.last().is_some_and(alphanumeric)
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_cluster_ids() {
        for id in ["a", "east", "cluster-1", "0", &"x".repeat(63)] {
            assert_eq!(id.parse::<ClusterId>().expect("a label").as_str(), id);
        }
    }

    #[test]
    fn other_text_is_refused_by_name() {
        for id in ["", "-a", "a-", "East", "a.b", "a_b", "é", &"x".repeat(64)] {
            let error = id.parse::<ClusterId>().expect_err("no label");
            assert!(error.to_string().contains(&format!("{id:?}")));
        }
    }
}
