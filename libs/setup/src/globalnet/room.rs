//! Sizes of CIDRs, and the first free one of a size in a range.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use culvert_model::overlaps;
use ipnet::IpNet;

use super::{FEWEST, GlobalnetError, Taken};

/// Returns the prefix length of CIDRs with `size` addresses, rounded up to a power of two, in a range.
///
/// # Errors
///
/// [`GlobalnetError::Size`] if that is too small, or more than half of the range (Submariner chapter 8.1).
pub(super) fn prefix_of(size: u64, range: IpNet) -> Result<u8, GlobalnetError> {
    let bits = range.max_prefix_len() - range.prefix_len();
    let most = 1_u64.checked_shl(u32::from(bits).saturating_sub(1)).unwrap_or(u64::MAX);
    let rounded = size.checked_next_power_of_two().filter(|size| (FEWEST..=most).contains(size));
    let rounded = rounded.ok_or(GlobalnetError::Size { size, most, range })?;
    let host_bits = u8::try_from(rounded.ilog2()).unwrap_or(u8::MAX);
    Ok(range.max_prefix_len() - host_bits)
}

/// Tells whether a CIDR is what somebody gets who asks for `size` addresses.
pub(super) fn has_size(cidr: IpNet, size: u64) -> bool {
    let bits = cidr.max_prefix_len() - cidr.prefix_len();
    size.checked_next_power_of_two().is_some_and(|size| size.ilog2() == u32::from(bits))
}

/// Returns the first CIDR of a prefix length in a range that overlaps nothing that is taken.
pub(super) fn free(range: IpNet, prefix: u8, taken: &[Taken]) -> Option<IpNet> {
    let size = 1_u128 << (range.max_prefix_len() - prefix);
    let end = number(range.broadcast());
    let mut start = number(range.network());
    loop {
        let last = start.checked_add(size - 1).filter(|last| *last <= end)?;
        let candidate = IpNet::new(address(range, start), prefix).ok()?;
        debug_assert_eq!(number(candidate.broadcast()), last);
        let in_the_way = taken.iter().filter(|taken| overlaps(&taken.cidr, &candidate));
        match in_the_way.map(|taken| number(taken.cidr.broadcast())).max() {
            None => return Some(candidate),
            // Just past it, at the next multiple of the size.
            Some(past) => start = past.checked_add(1)?.checked_next_multiple_of(size)?,
        }
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}

/// Returns an address of the range's family.
fn address(range: IpNet, number: u128) -> IpAddr {
    match range {
        IpNet::V4(_) => IpAddr::V4(Ipv4Addr::from(u32::try_from(number).unwrap_or(u32::MAX))),
        IpNet::V6(_) => IpAddr::V6(Ipv6Addr::from(number)),
    }
}
