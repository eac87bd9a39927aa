//! Services on the real kernel: packets reach backends, and the table is brought from any state to any other.

#![allow(clippy::unwrap_used)]

mod packets;
mod rooms;
#[path = "../support/mod.rs"]
mod support;
mod table;

use std::net::IpAddr;

use culvert_kernel::{ServiceReport, ServiceTable};
use culvert_model::{Frontend, Protocol};
use culvert_services::{Backend, Service, Services, Table};

const TABLE: &str = "culvert_test";

async fn open() -> ServiceTable {
    let prerouting = r#"iifname { "clients" }"#.to_owned();
    ServiceTable::open(Table { name: TABLE.to_owned(), prerouting, output: Some(String::new()) }).await.unwrap()
}

async fn converge(table: &mut ServiceTable, services: &Services) -> ServiceReport {
    table.converge(services).await.unwrap()
}

fn frontend(address: &str, protocol: Protocol, port: u16) -> Frontend {
    Frontend { address: address.parse().unwrap(), protocol, port }
}

fn backend(address: IpAddr) -> Backend {
    Backend { address, port: rooms::SERVER_PORT }
}

fn service(backends: impl IntoIterator<Item = IpAddr>, affinity: Option<u32>) -> Service {
    Service { backends: backends.into_iter().map(|address| (backend(address), 1)).collect(), affinity }
}
