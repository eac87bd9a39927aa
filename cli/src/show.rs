//! Writes what was asked for as tables.

use crate::deployed::{NetworksView, brokers_table, versions_table};
use crate::global_ips;
use crate::table::{self, Cell, Colour};
use crate::view::{ConnectionRow, EndpointRow, GatewayRow, Place, RowStatus, View};

/// Returns the tables that were asked for.
pub(crate) fn tables(view: &View, colours: bool) -> String {
    let parts = [
        view.gateways.as_deref().map(gateways),
        view.endpoints.as_deref().map(endpoints),
        view.connections.as_deref().map(|rows| connections(rows, colours)),
        view.networks.as_ref().map(NetworksView::table),
        view.versions.as_deref().map(versions_table),
        view.brokers.as_deref().map(brokers_table),
        view.global_ips.as_deref().map(|rows| global_ips::table(rows, colours)),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join("\n")
}

fn gateways(rows: &[GatewayRow]) -> String {
    if rows.is_empty() {
        return "There are no gateways: no gateway of this cluster has reported yet\n".to_owned();
    }
    let cells: Vec<[Cell; 3]> =
        rows.iter().map(|row| [&row.node, &row.ha_status, &row.summary].map(|text| text.as_str().into())).collect();
    table::render(["NODE", "HA STATUS", "SUMMARY"], &cells, false)
}

fn endpoints(rows: &[EndpointRow]) -> String {
    if rows.is_empty() {
        return "There are no endpoints: no gateway is active, here or in another cluster\n".to_owned();
    }
    let place = |place| match place {
        Place::Local => "local",
        Place::Remote => "remote",
    };
    let cells: Vec<[Cell; 5]> = rows
        .iter()
        .map(|row| {
            [
                row.cluster.as_str().into(),
                row.endpoint_ip.as_str().into(),
                row.public_ip.as_str().into(),
                row.cable_driver.as_str().into(),
                place(row.place).into(),
            ]
        })
        .collect();
    table::render(["CLUSTER", "ENDPOINT IP", "PUBLIC IP", "CABLE DRIVER", "TYPE"], &cells, false)
}

fn connections(rows: &[ConnectionRow], colours: bool) -> String {
    if rows.is_empty() {
        return "There are no connections\n".to_owned();
    }
    let cells: Vec<[Cell; 8]> = rows
        .iter()
        .map(|row| {
            [
                row.gateway.as_str().into(),
                row.cluster.as_str().into(),
                row.remote_ip.as_str().into(),
                if row.nat { "yes" } else { "no" }.into(),
                row.cable_driver.as_str().into(),
                row.subnets.join(", ").as_str().into(),
                Cell::coloured(row.status.as_str(), colour(row.status)),
                row.rtt_average.as_str().into(),
            ]
        })
        .collect();
    let headers = ["GATEWAY", "CLUSTER", "REMOTE IP", "NAT", "CABLE DRIVER", "SUBNETS", "STATUS", "RTT avg."];
    let mut text = table::render(headers, &cells, colours);
    let reasons: Vec<_> = rows.iter().filter(|row| !row.reason.is_empty()).map(reason).collect();
    if !reasons.is_empty() {
        text = text + "\n" + &reasons.concat();
    }
    text
}

fn reason(row: &ConnectionRow) -> String {
    table::printable(&format!("{} ({}): {}", row.gateway, row.cluster, row.reason)) + "\n"
}

fn colour(status: RowStatus) -> Colour {
    match status {
        RowStatus::Connected => Colour::Green,
        RowStatus::Connecting | RowStatus::Stale => Colour::Yellow,
        RowStatus::Error | RowStatus::None => Colour::Red,
    }
}

#[cfg(test)]
mod tests;
