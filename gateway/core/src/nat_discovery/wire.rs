//! NAT discovery on the wire: one proto3 message a datagram, neither authenticated nor encrypted.
//!
//! Numbers and types of the fields are Submariner's (chapter 4.4). Whatever does not decode gets no answer.

use std::net::{IpAddr, SocketAddr};

use culvert_model::IpFamily;
use prost::Message as _;

use super::{IdForm, OwnEndpoint};

/// Requests carry it; answers leave it 0.
pub(super) const VERSION: i32 = 1;

/// The longest datagram that Submariner reads.
const LONGEST: usize = 2048;

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Message {
    #[prost(int32, tag = "1")]
    pub(super) version: i32,
    #[prost(oneof = "Body", tags = "2, 3")]
    pub(super) body: Option<Body>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(super) enum Body {
    #[prost(message, tag = "2")]
    Request(Request),
    #[prost(message, tag = "3")]
    Response(Response),
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Request {
    #[prost(uint64, tag = "1")]
    pub(super) request_number: u64,
    #[prost(message, optional, tag = "2")]
    pub(super) sender: Option<EndpointDetails>,
    #[prost(message, optional, tag = "3")]
    pub(super) receiver: Option<EndpointDetails>,
    #[prost(message, optional, tag = "4")]
    pub(super) using_source: Option<AddressAndPort>,
    #[prost(message, optional, tag = "5")]
    pub(super) using_destination: Option<AddressAndPort>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Response {
    #[prost(uint64, tag = "1")]
    pub(super) request_number: u64,
    #[prost(enumeration = "Code", tag = "2")]
    pub(super) response: i32,
    #[prost(message, optional, tag = "3")]
    pub(super) sender: Option<EndpointDetails>,
    #[prost(message, optional, tag = "4")]
    pub(super) receiver: Option<EndpointDetails>,
    #[prost(bool, tag = "5")]
    pub(super) source_address_nat_detected: bool,
    #[prost(bool, tag = "6")]
    pub(super) source_port_nat_detected: bool,
    #[prost(bool, tag = "7")]
    pub(super) destination_address_nat_detected: bool,
    #[prost(message, optional, tag = "8")]
    pub(super) received_source: Option<AddressAndPort>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub(super) enum Code {
    Ok = 0,
    NatDetected = 1,
    UnknownDestinationCluster = 2,
    UnknownDestinationEndpoint = 3,
    Malformed = 4,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct AddressAndPort {
    #[prost(string, tag = "1")]
    pub(super) address: String,
    #[prost(int32, tag = "2")]
    pub(super) port: i32,
}

impl From<SocketAddr> for AddressAndPort {
    fn from(socket: SocketAddr) -> Self {
        Self { address: socket.ip().to_string(), port: i32::from(socket.port()) }
    }
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct EndpointDetails {
    #[prost(string, tag = "1")]
    pub(super) cluster_id: String,
    #[prost(string, tag = "2")]
    pub(super) endpoint_id: String,
}

impl EndpointDetails {
    pub(super) fn of(own: &OwnEndpoint, form: IdForm, family: IpFamily) -> Self {
        Self { cluster_id: own.cluster.to_string(), endpoint_id: form.id(&own.cable_name, family) }
    }
}

/// Reads a datagram; `None` for what is no message.
pub(super) fn decode(datagram: &[u8]) -> Option<Body> {
    if datagram.len() > LONGEST {
        return None;
    }
    Message::decode(datagram).ok()?.body
}

/// Returns the answer to a request, whoever sent it; `None` if the datagram is no request.
///
/// `from` is where the datagram came from and the answer goes to.
pub fn respond(own: &OwnEndpoint, datagram: &[u8], from: SocketAddr) -> Option<Vec<u8>> {
    match decode(datagram)? {
        Body::Request(request) => Some(answer(own, request, from)),
        Body::Response(_) => None,
    }
}

pub(super) fn answer(own: &OwnEndpoint, request: Request, from: SocketAddr) -> Vec<u8> {
    let from = SocketAddr::new(from.ip().to_canonical(), from.port());
    let family = IpFamily::of(from.ip());
    // Both forms are known by; the answer speaks the asker's.
    let form = request.receiver.as_ref().and_then(|receiver| {
        IdForm::ALL.into_iter().find(|form| form.id(&own.cable_name, family) == receiver.endpoint_id)
    });
    let mut response = Response {
        request_number: request.request_number,
        response: Code::Malformed.into(),
        sender: Some(EndpointDetails::of(own, form.unwrap_or(IdForm::Bare), family)),
        receiver: request.sender.clone(),
        received_source: Some(from.into()),
        ..Response::default()
    };
    if let Request {
        sender: Some(_),
        receiver: Some(receiver),
        using_source: Some(source),
        using_destination: Some(destination),
        ..
    } = request
    {
        let code = if receiver.cluster_id != own.cluster.as_str() {
            Code::UnknownDestinationCluster
        } else if form.is_none() {
            Code::UnknownDestinationEndpoint
        } else {
            response.source_address_nat_detected = !source.address.is_empty() && !is(&source.address, Some(from.ip()));
            response.source_port_nat_detected = source.port != i32::from(from.port());
            response.destination_address_nat_detected = !is(&destination.address, own.private.of(family));
            let nat = response.source_address_nat_detected
                || response.source_port_nat_detected
                || response.destination_address_nat_detected;
            if nat { Code::NatDetected } else { Code::Ok }
        };
        response.response = code.into();
    }
    Message { version: 0, body: Some(Body::Response(response)) }.encode_to_vec()
}

fn is(text: &str, address: Option<IpAddr>) -> bool {
    address.is_some() && text.parse().ok() == address
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::testing::{address, endpoint};

    pub(in crate::nat_discovery) fn response(datagram: &[u8]) -> Response {
        match decode(datagram) {
            Some(Body::Response(response)) => response,
            other => panic!("{other:?}"),
        }
    }

    fn own() -> OwnEndpoint {
        OwnEndpoint::from(&endpoint("east", 1))
    }

    /// A request from west to east without NAT.
    fn request() -> Request {
        Request {
            request_number: 42,
            sender: Some(EndpointDetails { cluster_id: "west".to_owned(), endpoint_id: "cable-west".to_owned() }),
            receiver: Some(EndpointDetails::of(&own(), IdForm::Bare, IpFamily::V4)),
            using_source: Some(AddressAndPort { address: "192.168.2.10".to_owned(), port: 4490 }),
            using_destination: Some(AddressAndPort { address: "192.168.1.10".to_owned(), port: 4490 }),
        }
    }

    fn asked(request: Request) -> Response {
        let datagram = Message { version: VERSION, body: Some(Body::Request(request)) }.encode_to_vec();
        let from = SocketAddr::new(address("192.168.2.10"), 4490);
        response(&respond(&own(), &datagram, from).unwrap())
    }

    #[test]
    fn a_request_without_nat_is_ok_and_names_both_sides() {
        let response = asked(request());

        assert_eq!(response.response(), Code::Ok);
        assert_eq!(response.request_number, 42);
        assert_eq!(response.sender, request().receiver);
        assert_eq!(response.receiver, request().sender);
        let received = AddressAndPort { address: "192.168.2.10".to_owned(), port: 4490 };
        assert_eq!(response.received_source, Some(received));
    }

    #[test]
    fn the_answer_speaks_the_form_of_the_request() {
        for form in IdForm::ALL {
            let receiver = EndpointDetails::of(&own(), form, IpFamily::V4);
            let response = asked(Request { receiver: Some(receiver.clone()), ..request() });
            assert_eq!((response.response(), response.sender), (Code::Ok, Some(receiver)));
        }
    }

    #[test]
    fn any_change_on_the_way_is_nat() {
        let at = |address: &str, port| Some(AddressAndPort { address: address.to_owned(), port });
        for (changed, flags) in [
            (Request { using_source: at("10.0.0.1", 4490), ..request() }, [true, false, false]),
            (Request { using_source: at("192.168.2.10", 7000), ..request() }, [false, true, false]),
            (Request { using_destination: at("198.51.100.1", 4490), ..request() }, [false, false, true]),
            (Request { using_destination: at("garbage", 4490), ..request() }, [false, false, true]),
        ] {
            let response = asked(changed);
            assert_eq!(response.response(), Code::NatDetected);
            let found = [
                response.source_address_nat_detected,
                response.source_port_nat_detected,
                response.destination_address_nat_detected,
            ];
            assert_eq!(found, flags);
        }
        assert_eq!(asked(Request { using_source: at("", 4490), ..request() }).response(), Code::Ok);
    }

    #[test]
    fn requests_to_others_are_told_so() {
        let receiver = |cluster: &str, endpoint: &str| {
            Some(EndpointDetails { cluster_id: cluster.to_owned(), endpoint_id: endpoint.to_owned() })
        };
        let cluster = asked(Request { receiver: receiver("north", &own().cable_name), ..request() });
        let endpoint = asked(Request { receiver: receiver("east", "another"), ..request() });
        assert_eq!(cluster.response(), Code::UnknownDestinationCluster);
        assert_eq!(endpoint.response(), Code::UnknownDestinationEndpoint);
    }

    #[test]
    fn requests_that_lack_a_field_are_malformed() {
        for lacking in [
            Request { sender: None, ..request() },
            Request { receiver: None, ..request() },
            Request { using_source: None, ..request() },
            Request { using_destination: None, ..request() },
        ] {
            let response = asked(lacking);
            assert_eq!((response.response(), response.request_number), (Code::Malformed, 42));
        }
    }

    #[test]
    fn what_is_no_request_gets_no_answer() {
        let from = SocketAddr::new(address("192.168.2.10"), 4490);
        let answer = Message { version: 0, body: Some(Body::Response(Response::default())) }.encode_to_vec();
        let empty = Message { version: VERSION, body: None }.encode_to_vec();
        for datagram in [&b""[..], b"garbage", &[0xff; 2048], &[0x12; 3000], &answer, &empty] {
            assert_eq!(respond(&own(), datagram, from), None);
        }
    }

    #[test]
    fn fields_stand_on_the_wire_by_submariners_numbers() {
        let request = Request {
            request_number: 1,
            sender: Some(EndpointDetails { cluster_id: "a".to_owned(), endpoint_id: "b".to_owned() }),
            receiver: None,
            using_source: Some(AddressAndPort { address: "c".to_owned(), port: 2 }),
            using_destination: None,
        };
        let bytes = Message { version: VERSION, body: Some(Body::Request(request)) }.encode_to_vec();
        let sender = [0x12, 6, 0x0a, 1, b'a', 0x12, 1, b'b'];
        let source = [0x22, 5, 0x0a, 1, b'c', 0x10, 2];
        let expected = [&[0x08, 1, 0x12, 17, 0x08, 1][..], &sender, &source].concat();
        assert_eq!(bytes, expected);
    }
}
