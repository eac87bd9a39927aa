//! Deletes flows from the kernel's connection tracking: messages of `nfnetlink_conntrack.h`, with the numbers as they
//! stand there.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use rtnetlink::sys::protocols::NETLINK_NETFILTER;
use rtnetlink::sys::{Socket, SocketAddr};

use super::{Flow, Upper};

const HEADER: usize = 16;
/// `NFNL_SUBSYS_CTNETLINK` and `IPCTNL_MSG_CT_DELETE`.
const DELETE: u16 = 1 << 8 | 2;
/// `NLM_F_REQUEST | NLM_F_ACK`.
const FLAGS: u16 = 0x5;
const NLMSG_ERROR: u16 = 2;
const NESTED: u16 = 0x8000;
// Attributes.
const TUPLE_ORIG: u16 = 1;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTO: u16 = 2;
const PROTO_NUM: u16 = 1;
const PROTO_PORTS: [u16; 2] = [2, 3];
/// Id, type and code, for either version of ICMP.
const PROTO_ICMP: [u16; 3] = [4, 5, 6];
const PROTO_ICMPV6: [u16; 3] = [7, 8, 9];
// Address families.
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// errno(3): the flow is gone already.
const ENOENT: i32 = 2;

/// Deletes all of these, in the network namespace of the calling thread; one that is gone already is deleted.
///
/// # Errors
///
/// The first that the kernel refused; those after it are left.
pub(super) fn delete(flows: &BTreeSet<Flow>) -> io::Result<()> {
    if flows.is_empty() {
        return Ok(());
    }
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    for flow in flows {
        socket.send(&message(flow), 0)?;
        // The kernel answers before it returns from sending.
        let (answer, _) = socket.recv_from_full()?;
        match outcome(&answer)? {
            0 | ENOENT => {}
            errno => return Err(io::Error::from_raw_os_error(errno)),
        }
    }
    Ok(())
}

/// Returns the request to delete a flow.
fn message(flow: &Flow) -> Vec<u8> {
    let family = if flow.source.is_ipv4() { AF_INET } else { AF_INET6 };
    let (source, destination) = match family {
        AF_INET => (1, 2),
        _ => (3, 4),
    };
    let addresses =
        [attribute(source, &octets(flow.source)), attribute(destination, &octets(flow.destination))].concat();
    let mut upper = attribute(PROTO_NUM, &[flow.protocol]);
    match flow.upper {
        Upper::Ports { source, destination } => {
            for (kind, port) in PROTO_PORTS.into_iter().zip([source, destination]) {
                upper.extend(attribute(kind, &port.to_be_bytes()));
            }
        }
        Upper::Icmp { kind, code, id } => {
            let [of_id, of_kind, of_code] = if family == AF_INET { PROTO_ICMP } else { PROTO_ICMPV6 };
            upper.extend(attribute(of_id, &id.to_be_bytes()));
            upper.extend(attribute(of_kind, &[kind]));
            upper.extend(attribute(of_code, &[code]));
        }
        Upper::Nothing => {}
    }
    let tuple = [attribute(TUPLE_IP | NESTED, &addresses), attribute(TUPLE_PROTO | NESTED, &upper)].concat();
    // The header of nfnetlink: family, version, resource.
    let body = [&[family, 0, 0, 0][..], &attribute(TUPLE_ORIG | NESTED, &tuple)].concat();

    let mut message = Vec::with_capacity(HEADER + body.len());
    let length = u32::try_from(HEADER + body.len()).expect("some hundred bytes");
    message.extend(length.to_ne_bytes());
    message.extend(DELETE.to_ne_bytes());
    message.extend(FLAGS.to_ne_bytes());
    // Sequence number, and the sender, which the kernel fills in.
    message.extend([0; 8]);
    message.extend(body);
    message
}

/// Returns an attribute, filled up to a multiple of four bytes (RFC 3549 section 2.3.2 calls it NLA).
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).expect("some dozen bytes");
    let mut attribute = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), value].concat();
    attribute.resize(attribute.len().next_multiple_of(4), 0);
    attribute
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// Returns the error number in an answer, 0 for success.
fn outcome(answer: &[u8]) -> io::Result<i32> {
    let kind = answer.get(4..6).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
    let code = answer.get(HEADER..HEADER + 4).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
    match (kind, code) {
        (Some(NLMSG_ERROR), Some(code)) => Ok(code.saturating_abs()),
        (Some(_) | None, _) => Err(io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer is none")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flow_is_named_by_its_first_packet() {
        let flow = Flow {
            source: "10.1.2.2".parse().unwrap(),
            destination: "10.2.2.2".parse().unwrap(),
            protocol: 6,
            upper: Upper::Ports { source: 40000, destination: 80 },
        };
        let message = message(&flow);
        assert_eq!(message.len() % 4, 0);
        assert_eq!(u32::from_ne_bytes(message[..4].try_into().unwrap()) as usize, message.len());
        let contains = |bytes: &[u8]| message.windows(bytes.len()).any(|window| window == bytes);
        assert!(contains(&[10, 1, 2, 2]) && contains(&[10, 2, 2, 2]) && contains(&40000_u16.to_be_bytes()));
    }

    #[test]
    fn an_answer_is_an_error_number() {
        let answer = |code: i32| [&[0; 4][..], &NLMSG_ERROR.to_ne_bytes(), &[0; 10], &code.to_ne_bytes()].concat();
        assert_eq!(outcome(&answer(0)).unwrap(), 0);
        assert_eq!(outcome(&answer(-2)).unwrap(), ENOENT);
        assert!(outcome(&[0; 3]).is_err());
    }
}
