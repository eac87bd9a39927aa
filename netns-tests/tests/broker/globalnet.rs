//! Global CIDRs at a broker: how they are given out to many at once, kept, given back, and said to be wrong.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Output;
use std::time::Duration;

use culvert_setup::{Asked, Server, Wish};
use futures_util::future::join_all;
use ipnet::IpNet;
use serde_json::{Value, json};

use super::{Act, Broker, Caller, Kind, cluster, culvert, stderr};

const NAME: &str = "submariner-globalnet-info";
/// Clusters that join at once.
const MANY: usize = 12;

/// Asks as the account of the broker file does.
async fn allocate(broker: &Broker, id: &str, wish: Wish) -> Result<Vec<IpNet>, String> {
    let cluster = id.parse().unwrap();
    let server = Server::of_broker(&broker.info).await.unwrap();
    let asked = Asked { cluster: &cluster, wish: &wish, local: &[] };
    server.allocate(&broker.info.namespace, &asked).await.map_err(|error| error.to_string())
}

async fn noted(admin: &Caller) -> Value {
    admin.act(&Kind::CONFIG_MAP, Act::Get(NAME)).await.unwrap()
}

/// Returns the entries as Submariner reads them.
async fn entries(admin: &Caller) -> Vec<(String, String)> {
    let noted = noted(admin).await;
    let entries: Vec<Value> = serde_json::from_str(noted["data"]["clusterinfo"].as_str().unwrap()).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    entries.iter().map(|entry| (text(&entry["cluster_id"]), text(&entry["global_cidr"][0]))).collect()
}

fn said(output: &Output, words: &str) {
    assert_eq!(output.status.code(), Some(1), "{}", stderr(output));
    assert!(stderr(output).contains(words), "{}", stderr(output));
}

pub(crate) async fn global_cidrs_are_given_out_and_given_back(
    kubeconfig: &Path,
    broker: &Broker,
    admin: &Caller,
    west: &Caller,
) {
    let run = |words: &[&str]| culvert(broker.directory.path(), kubeconfig, words);
    let before = noted(admin).await;
    assert_eq!(before["data"], json!({"globalnetEnabled": "false", "clusterinfo": "[]"}));
    let error = allocate(broker, "one", Wish::Default).await.unwrap_err();
    assert!(error.contains("run `culvert deploy-broker --globalnet` first"), "{error}");

    // What cannot be is said before anything is changed.
    for (words, expected) in [
        (&["--globalnet-cidr-range", "242.0.0.0/8"][..], "pass --globalnet too"),
        (&["--globalnet", "--globalnet-cidr-range", "169.254.0.0/16"], "169.254.0.0/16 cannot be used"),
        (&["--globalnet", "--globalnet-cluster-size", "8388609"], "half of the range 242.0.0.0/8"),
    ] {
        said(&run(&[&["deploy-broker"], words].concat()), expected);
    }
    assert_eq!(noted(admin).await["metadata"]["resourceVersion"], before["metadata"]["resourceVersion"]);
    let deployed = run(&["deploy-broker", "--globalnet", "--globalnet-cluster-size", "1000", "--output", "json"]);
    assert!(deployed.status.success(), "{}", stderr(&deployed));
    let report: Value = serde_json::from_slice(&deployed.stdout).unwrap();
    assert_eq!(report["globalnet"], json!({"cidrRange": "242.0.0.0/8", "clusterSize": 1000}));
    let data = noted(admin).await["data"].clone();
    assert_eq!(data["globalnetCidrRange"], "\"242.0.0.0/8\"");
    assert_eq!((&data["globalnetEnabled"], &data["globalnetClusterSize"]), (&json!("true"), &json!("1000")));

    many_join_at_once(broker, admin).await;
    // Nobody loses anything by a second run, and nothing is written.
    let before = noted(admin).await;
    assert!(run(&["deploy-broker"]).status.success());
    assert_eq!(noted(admin).await, before);
    said(&run(&["deploy-broker", "--globalnet-cidr-range", "243.0.0.0/8"]), "these would be outside: 242.0.0.0/22");
    said(&run(&["deploy-broker", "--globalnet=false"]), "run `culvert join --globalnet=false` in these clusters first");

    // No member has a part in it.
    for act in [Act::Get(NAME), Act::Merge(NAME, json!({"data": {"globalnetEnabled": "false"}}))] {
        assert_eq!(west.act(&Kind::CONFIG_MAP, act).await.unwrap_err().0, 403);
    }
    members_claim_what_is_noted(broker, west).await;
    given_back_it_rests(broker, admin, &run).await;
    one_cidr_twice_is_named(broker, admin, &run).await;
}

/// Beside them somebody touches the ConfigMap all the time.
async fn many_join_at_once(broker: &Broker, admin: &Caller) {
    let names: Vec<String> = (0..MANY).map(|number| format!("many{number}")).collect();
    let joins = join_all(names.iter().map(|name| allocate(broker, name, Wish::Default)));
    let touches = async {
        for number in 0..50 {
            let touch = json!({"metadata": {"annotations": {"touched": number.to_string()}}});
            admin.act(&Kind::CONFIG_MAP, Act::Merge(NAME, touch)).await.unwrap();
        }
    };
    let (given, ()) = tokio::join!(joins, touches);
    let given: BTreeSet<IpNet> = given.into_iter().flat_map(|given| given.unwrap()).collect();
    let expected: BTreeSet<IpNet> =
        (0..MANY).map(|number| format!("242.0.{}.0/22", number * 4).parse().unwrap()).collect();
    assert_eq!(given, expected);
    assert_eq!(entries(admin).await.len(), MANY);
    let noted = noted(admin).await;
    assert_eq!(noted["metadata"]["annotations"]["touched"], "49", "what others note stays");
}

/// Those who judge may know of it a moment later.
async fn members_claim_what_is_noted(broker: &Broker, west: &Caller) {
    let claim = |cidr: &str| json!({"spec": {"global_cidr": [cidr]}});
    let of_other = west.act(&Kind::CLUSTER, Act::Merge("west", claim("242.0.0.0/22"))).await.unwrap_err();
    assert!(of_other.1.contains("242.0.0.0/22 is not what the broker has noted for west"), "{of_other:?}");
    let own = allocate(broker, "west", Wish::Default).await.unwrap()[0].to_string();
    let mut said = Ok(Value::Null);
    for _ in 0..100 {
        said = west.act(&Kind::CLUSTER, Act::Merge("west", claim(&own))).await;
        if said.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    said.unwrap();
    for wider in ["242.0.48.0/21", "242.0.48.0/23", "242x0.48.0/22", "242.0.52.0/22"] {
        west.act(&Kind::CLUSTER, Act::Merge("west", claim(wider))).await.unwrap_err();
    }
    // What it has already stays allowed, and so does having none.
    west.act(&Kind::CLUSTER, Act::Merge("west", json!({"metadata": {"annotations": {"touched": "yes"}}})))
        .await
        .unwrap();
    west.act(&Kind::CLUSTER, Act::Merge("west", json!({"spec": {"global_cidr": []}}))).await.unwrap();
}

async fn given_back_it_rests(broker: &Broker, admin: &Caller, run: &impl Fn(&[&str]) -> Output) {
    let forget = |id: &'static str| ["uninstall", "--yes", "--broker-info", "broker-info.subm", "--gone", id];
    let had = allocate(broker, "many3", Wish::Default).await.unwrap();
    let gone = run(&forget("many3"));
    let text = String::from_utf8_lossy(&gone.stdout).into_owned();
    assert!(text.contains(&format!("Global CIDR {} of cluster many3 is given back", had[0])), "{text}");
    assert!(entries(admin).await.iter().all(|(cluster, _)| cluster != "many3"));
    let again = run(&forget("many3"));
    assert!(String::from_utf8_lossy(&again.stdout).contains("no global CIDR of cluster many3"));
    // West still announces itself.
    said(&run(&forget("west")), "cluster west still announces itself at the broker");

    let other = allocate(broker, "other", Wish::Default).await.unwrap();
    assert_ne!(other, had);
    let error = allocate(broker, "another", Wish::Cidrs(had.clone())).await.unwrap_err();
    assert!(error.contains("which cluster many3 gave back and which rests until"), "{error}");
    assert_eq!(allocate(broker, "many3", Wish::Default).await.unwrap(), had);
}

async fn one_cidr_twice_is_named(broker: &Broker, admin: &Caller, run: &impl Fn(&[&str]) -> Output) {
    let by_hand = json!([
        {"cluster_id": "one", "global_cidr": ["242.9.0.0/16"]},
        {"cluster_id": "two", "global_cidr": ["242.9.7.0/24"]},
    ]);
    let data = json!({"data": {"clusterinfo": by_hand.to_string()}});
    admin.act(&Kind::CONFIG_MAP, Act::Merge(NAME, data)).await.unwrap();
    let error = allocate(broker, "two", Wish::Default).await.unwrap_err();
    assert!(error.contains("clusters two and one both have 242.9.7.0/24"), "{error}");
    let deployed = run(&["deploy-broker"]);
    assert!(stderr(&deployed).contains("clusters one and two both have 242.9.0.0/16"), "{}", stderr(&deployed));
    // A cluster without Globalnet that claims such addresses keeps them too.
    let record = cluster("plain", "100.9.0.0/16", "242.0.0.0/22");
    admin.act(&Kind::CLUSTER, Act::Create(record)).await.unwrap();
    assert_eq!(allocate(broker, "three", Wish::Default).await.unwrap(), ["242.0.4.0/22".parse::<IpNet>().unwrap()]);
    admin.act(&Kind::CLUSTER, Act::Delete("plain")).await.unwrap();

    let data = json!({"data": {"clusterinfo": "[]", "globalnetEnabled": "false"}});
    admin.act(&Kind::CONFIG_MAP, Act::Merge(NAME, data)).await.unwrap();
}
