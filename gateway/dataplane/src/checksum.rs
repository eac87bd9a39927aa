//! The Internet checksum (RFC 1071) over packets in memory.

use std::net::IpAddr;

/// Adds `bytes` to a running sum; only the last call may pass an odd number of bytes.
///
/// The sum is kept in native byte order (RFC 1071 section 2(B)) and folded by [`finish`].
pub(crate) fn add(mut sum: u64, bytes: &[u8]) -> u64 {
    let mut words = bytes.chunks_exact(4);
    for word in &mut words {
        sum += u64::from(u32::from_ne_bytes(word.try_into().expect("a chunk of four")));
    }
    let rest = words.remainder();
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    sum + u64::from(u32::from_ne_bytes(last))
}

/// Folds a sum to the 16 bits that `finish` and checks compare, in native order, not inverted.
fn fold(mut sum: u64) -> u16 {
    sum = (sum & 0xffff_ffff) + (sum >> 32);
    sum = (sum & 0xffff_ffff) + (sum >> 32);
    let mut sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// Returns the checksum field, as bytes in network order, of data that was summed up with the field at zero.
pub(crate) fn finish(sum: u64) -> [u8; 2] {
    (!fold(sum)).to_ne_bytes()
}

/// Returns the checksum field of a packet whose sum the device completes: the folded pseudo header.
pub(crate) fn partial(sum: u64) -> [u8; 2] {
    fold(sum).to_ne_bytes()
}

/// Tells whether data summed up with its checksum field in place is intact.
pub(crate) fn is_intact(sum: u64) -> bool {
    fold(sum) == 0xffff
}

/// Returns the sum of the pseudo header of a transport segment of `length` bytes (RFC 9293 section 3.1, RFC 8200
/// section 8.1).
pub(crate) fn pseudo_header(source: IpAddr, destination: IpAddr, protocol: u8, length: usize) -> u64 {
    let addresses = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => add(add(0, &source.octets()), &destination.octets()),
        (IpAddr::V6(source), IpAddr::V6(destination)) => add(add(0, &source.octets()), &destination.octets()),
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => 0,
    };
    let length = u32::try_from(length).unwrap_or(u32::MAX);
    add(add(addresses, &length.to_be_bytes()), &[0, 0, 0, protocol])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RFC 1071 section 4.1, word by word.
    fn plain(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
        }
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    proptest! {
        #[test]
        fn the_fast_sum_is_the_plain_sum(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            prop_assert_eq!(u16::from_be_bytes(finish(add(0, &bytes))), plain(&bytes));
        }

        #[test]
        fn data_with_its_checksum_is_intact(mut bytes in prop::collection::vec(any::<u8>(), 20..200), at in 0usize..9) {
            let at = at * 2;
            bytes[at..at + 2].fill(0);
            let sum = finish(add(0, &bytes));
            bytes[at..at + 2].copy_from_slice(&sum);
            prop_assert!(is_intact(add(0, &bytes)));
        }
    }
}
