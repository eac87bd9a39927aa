//! What GlobalIngressIPs are called (Submariner chapter 8.4).
//!
//! Submariner cuts long names, and two pods of a set with a long name get the same. Here the second one's name ends with a
//! hash of what it stands for instead; the object that has a name keeps it.

use std::collections::BTreeSet;

use crate::{IngressSpec, Target};

/// Longest part of a pod's name.
const POD_PART: usize = 59;
/// Longest part of a service's name, for an endpoint.
const SERVICE_PART: usize = 44;
/// Digits of the hash, and the dash before it.
const HASH_PART: usize = 11;

/// Returns the name of the object for `spec`, none of `taken`.
pub(crate) fn ingress_name(spec: &IngressSpec, taken: &BTreeSet<String>) -> String {
    let address = spec.address.map(|address| address.to_string()).unwrap_or_default();
    let (name, whole) = match spec.target {
        Target::Service => return spec.service.clone(),
        Target::Pod => {
            let pod = spec.pod.as_deref().unwrap_or_default();
            (format!("pod-{}", cut(pod, POD_PART)), pod.to_owned())
        }
        Target::Endpoint => {
            let whole = format!("{}/{address}", spec.service);
            // An IPv6 address has no place in a name, nor have its first 15 characters a meaning.
            let last = if address.contains(':') { hash(&whole) } else { address };
            (format!("ep-{}-{last}", cut(&spec.service, SERVICE_PART)), whole)
        }
    };
    if !taken.contains(&name) {
        return name;
    }
    format!("{}-{}", cut(&name, 4 + POD_PART - HASH_PART), hash(&whole))
}

/// Returns the first `length` bytes of an object's name, which is ASCII, without an end that no name may have.
fn cut(name: &str, length: usize) -> &str {
    name.get(..length).map_or(name, |start| start.trim_end_matches(['-', '.']))
}

/// FNV-1a of 64 bits, of which ten hexadecimal digits are kept: it has to be the same in every release.
fn hash(text: &str) -> String {
    let step = |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325, step);
    format!("{:010x}", hash & 0xff_ffff_ffff)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str) -> IngressSpec {
        IngressSpec { target: Target::Pod, service: "web".to_owned(), pod: Some(name.to_owned()), address: None }
    }

    fn endpoint(service: &str, address: &str) -> IngressSpec {
        let (service, address) = (service.to_owned(), Some(address.parse().unwrap()));
        IngressSpec { target: Target::Endpoint, service, pod: None, address }
    }

    #[test]
    fn names_are_submariners() {
        let none = BTreeSet::new();
        assert_eq!(ingress_name(&pod("web-0"), &none), "pod-web-0");
        assert_eq!(ingress_name(&pod(&"a".repeat(70)), &none), format!("pod-{}", "a".repeat(59)));
        assert_eq!(ingress_name(&endpoint("web", "172.45.5.6"), &none), "ep-web-172.45.5.6");
        let long = endpoint(&"b".repeat(60), "172.145.125.126");
        assert_eq!(ingress_name(&long, &none), format!("ep-{}-172.145.125.126", "b".repeat(44)));
        let service = IngressSpec { target: Target::Service, service: "web".to_owned(), pod: None, address: None };
        assert_eq!(ingress_name(&service, &none), "web");
    }

    #[test]
    fn pods_of_a_set_with_a_long_name_have_names_of_their_own() {
        let set = "a".repeat(60);
        let first = ingress_name(&pod(&format!("{set}-0")), &BTreeSet::new());
        let taken = BTreeSet::from([first.clone()]);
        let (second, third) =
            (ingress_name(&pod(&format!("{set}-1")), &taken), ingress_name(&pod(&format!("{set}-2")), &taken));
        assert!(first != second && second != third, "{second} {third}");
        assert!(second.len() <= 63 && second.starts_with("pod-aaaa"), "{second}");
        assert_eq!(second, ingress_name(&pod(&format!("{set}-1")), &taken), "the same each time");
    }

    #[test]
    fn the_hash_is_fnv() {
        assert_eq!(hash(""), "e484222325");
        assert_eq!(hash("foobar"), "171f73967e8"[1..]);
    }

    #[test]
    fn a_cut_name_is_still_a_name() {
        let name = ingress_name(&pod(&format!("{}.b", "a".repeat(58))), &BTreeSet::new());
        assert_eq!(name, format!("pod-{}", "a".repeat(58)));
        let name = ingress_name(&endpoint("web", "fd00::1"), &BTreeSet::new());
        assert!(name.starts_with("ep-web-") && !name.contains(':'), "{name}");
    }
}
