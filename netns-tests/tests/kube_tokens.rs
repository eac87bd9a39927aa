//! A member's token at the broker: a third of its life is over and the gateway renews it; it has expired, and what that
//! costs and what helps.
//!
//! Ages are given to tokens by signing them anew with the key of the broker's API server.

#![allow(clippy::unwrap_used)]

mod signing;

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use culvert_netns_tests::kubernetes::{
    BROKER_NAMESPACE, Cluster, Installer, Lab, NAMESPACE, Plan, ProxyMode, Web, join_line, serve, state,
};
use culvert_netns_tests::{Binaries, wait_for};
use culvert_setup::{Kind, SecretBytes, Server, TokenClaims, Validity};
use jiff::{Timestamp, ToSpan};

use crate::signing::aged;

const PATIENCE: Duration = Duration::from_secs(180);
const SECRET: &str = "submariner-broker-secret";
const GATEWAY: &str = "--selector app=culvert-gateway";

fn token_of(member: &Cluster) -> SecretBytes {
    let secret = member.json(&format!("--namespace {NAMESPACE} get secret {SECRET}")).unwrap();
    STANDARD.decode(secret["data"]["token"].as_str().unwrap()).unwrap().into()
}

fn keep(member: &Cluster, token: &SecretBytes) {
    let patch = format!(r#"{{"data":{{"token":"{}"}}}}"#, STANDARD.encode(token.expose()));
    member.kubectl(&format!("--namespace {NAMESPACE} patch secret {SECRET} --patch {patch}")).unwrap();
}

/// Has kubelet look at the gateway's pod, and bring its files up to date, without waiting for the next minute.
fn stir(member: &Cluster) {
    let now = Timestamp::now().as_millisecond();
    member.kubectl(&format!("--namespace {NAMESPACE} annotate pods {GATEWAY} --overwrite stirred={now}")).unwrap();
    std::thread::sleep(Duration::from_secs(1));
}

/// Waits until the gateway says all of this of itself, or with no text nothing at all.
fn wait_said(lab: &Lab, member: &Cluster, texts: &[&str]) {
    let what = format!("a status of {} with {texts:?}", member.name());
    let said = wait_for(&what, PATIENCE, || {
        stir(member);
        let gateways = member.items(&format!("--namespace {NAMESPACE} get gateways.submariner.io"))?;
        let said = gateways.first().and_then(|gateway| gateway["status"]["statusFailure"].as_str());
        let said = said.unwrap_or_default();
        let fits = if texts.is_empty() { said.is_empty() } else { texts.iter().all(|text| said.contains(text)) };
        anyhow::ensure!(fits, "it says {said:?}");
        Ok(Some(()))
    });
    said.unwrap_or_else(|error| panic!("{error:#}\n{}", state(lab)));
}

fn assert_no_packet_lost(from: &Web, to: &Web) {
    let answers = from.pods[0].run(&format!("ping -c 20 -W 2 {}", to.pods[0].address)).unwrap();
    assert!(answers.contains(" 0% packet loss"), "{answers}");
}

/// Asks the broker with a token.
async fn can_read_the_broker(broker: &Cluster, token: &SecretBytes) -> bool {
    let url = format!("https://{}:6443", broker.public_address);
    let authority = std::fs::read(broker.kubeconfig().with_file_name("pki").join("ca.crt")).unwrap();
    let server = Server::of_token(&url, token, Some(&authority)).await.unwrap();
    server.list(Kind::CLUSTER, BROKER_NAMESPACE).await.is_ok()
}

#[test]
fn a_gateway_renews_its_token_and_one_that_expired_costs_no_packet() {
    Binaries::find().unwrap();
    let lab = Lab::up(&Plan::new("tokens", &["east", "west"], 1, ProxyMode::Iptables).unwrap()).unwrap();
    let (east, west) = (lab.cluster("east"), lab.cluster("west"));
    let installer = Installer::new(&lab).unwrap();
    installer.deploy(east, &[east, west]).unwrap_or_else(|error| panic!("{error:#}\n{}", state(&lab)));
    let webs = [east, west].map(|cluster| serve(cluster).unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let works = |token: &SecretBytes| runtime.block_on(can_read_the_broker(east, token));
    let key = east.kubeconfig().with_file_name("pki").join("service-account.key");
    let joined = token_of(west);
    let age = |issued: jiff::Span, expires: jiff::Span| {
        let now = Timestamp::now();
        aged(&joined, &Validity { issued: now + issued, expires: now + expires }, &key)
    };

    // A third and more of its hour is over.
    let old = age(-40.minutes(), 20.minutes());
    assert!(works(&old), "it is a token");
    keep(west, &old);
    let renewed = wait_for("a renewed token", PATIENCE, || {
        stir(west);
        Ok(Some(token_of(west)).filter(|token| *token != old))
    });
    let renewed = renewed.unwrap_or_else(|error| panic!("{error:#}\n{}", state(&lab)));
    let claims = TokenClaims::of(&renewed).unwrap();
    assert_eq!(claims.subject, format!("system:serviceaccount:{BROKER_NAMESPACE}:cluster-west"));
    let Validity { issued, expires } = claims.validity.unwrap();
    assert_eq!(expires.duration_since(issued).as_secs(), 30 * 24 * 60 * 60, "as the broker's setting says");
    assert!(works(&renewed));
    wait_said(&lab, west, &[]);

    // Nobody renewed it in time.
    let expired = age(-2.hours(), -1.hours());
    assert!(!works(&expired));
    keep(west, &expired);
    wait_said(&lab, west, &["the broker token has expired at", "run `culvert join` again"]);
    assert_no_packet_lost(&webs[1], &webs[0]);
    // Even of a gateway that is started again. It learns from the broker itself that the token is not accepted.
    west.kubectl(&format!("--namespace {NAMESPACE} delete pods {GATEWAY}")).unwrap();
    let refused = "the token or certificate is not accepted (401): run `culvert join` again";
    wait_said(&lab, west, &["the broker token has expired at", refused]);
    assert_eq!(token_of(west), expired, "nothing but a join helps");
    wait_for("a cable", PATIENCE, || {
        webs[1].pods[0].run(&format!("ping -c 1 -W 2 {}", webs[0].pods[0].address)).map(Some)
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{}", state(&lab)));
    assert_no_packet_lost(&webs[1], &webs[0]);

    installer.run(west, &join_line(west)).unwrap_or_else(|error| panic!("{error:#}\n{}", state(&lab)));
    assert!(works(&token_of(west)));
    wait_said(&lab, west, &[]);
    assert_no_packet_lost(&webs[1], &webs[0]);
}
