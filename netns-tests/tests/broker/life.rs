//! How a broker and its members live: what is refused before anything is changed, how tokens are renewed, how two brokers
//! do not meet, and what a second run repairs.

use std::fs;
use std::path::{Path, PathBuf};

use culvert_setup::{JoinError, Obstacle, Renewal, SecretBytes, Server, TokenClaims, renew};
use jiff::{Timestamp, ToSpan};
use serde_json::{Value, json};

use super::{
    Act, Broker, Caller, EAST, Kind, WEST, cluster, culvert, endpoint, name_of, stderr, token_of, until_known,
};

/// Before there is a broker: every failure leaves the server and the directory as they were.
pub(crate) async fn nothing_is_changed_where_something_is_missing(kubeconfig: &Path) {
    let directory = tempfile::tempdir().unwrap();
    let run = |kubeconfig: &Path, words: &[&str]| culvert(directory.path(), kubeconfig, words);
    let missing = run(Path::new("/nowhere/kubeconfig"), &["deploy-broker"]);
    assert!(stderr(&missing).contains("--kubeconfig"), "{}", stderr(&missing));
    let changed = |from: &str, to: &str| -> PathBuf {
        let path = directory.path().join(format!("{to}.kubeconfig").replace([':', '/'], "-"));
        let text = fs::read_to_string(kubeconfig).unwrap();
        assert!(text.contains(from), "{text}");
        fs::write(&path, text.replace(from, to)).unwrap();
        path
    };
    let away = run(&changed(":6443", ":6"), &["deploy-broker"]);
    assert!(stderr(&away).contains(":6 cannot be reached"), "{}", stderr(&away));
    let stranger = run(&changed("token: ", "token: not"), &["deploy-broker"]);
    assert!(stderr(&stranger).contains("did not accept the credentials"), "{}", stderr(&stranger));
    let later = run(kubeconfig, &["deploy-broker", "--enable-clusterset-ip"]);
    assert!(stderr(&later).contains("clusterset addresses do not exist yet"), "{}", stderr(&later));
    let none = run(kubeconfig, &["recover-broker-info"]);
    assert!(stderr(&none).contains("there is no broker in namespace submariner-k8s-broker"), "{}", stderr(&none));
    fs::write(directory.path().join("broker-info.subm"), "eyJh").unwrap();
    let damaged = run(kubeconfig, &["deploy-broker"]);
    assert!(stderr(&damaged).contains("broker-info.subm is cut short"), "{}", stderr(&damaged));
    for output in [missing, away, stranger, later, none, damaged] {
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(output.stdout, b"");
    }
    let namespaces = Caller::administrator(kubeconfig, "default").await.act(&Kind::NAMESPACE, Act::List).await.unwrap();
    assert!(!namespaces.to_string().contains("submariner"), "{namespaces}");
}

pub(crate) async fn a_join_says_what_is_wrong_first(broker: &Broker, west: &Caller) {
    let refused = |result: Result<_, JoinError>| match result {
        Err(JoinError::Refused { obstacles, .. }) => obstacles,
        other => panic!("not refused: {other:?}"),
    };
    let obstacles = refused(broker.join("east", "uid-of-another", &["10.2.7.0/24"]).await);
    assert!(
        matches!(&obstacles[..], [Obstacle::Taken(id), Obstacle::Overlap(_)] if id.as_str() == "east"),
        "{obstacles:?}"
    );
    let text = obstacles[1].to_string();
    assert!(text.contains("10.2.7.0/24 of cluster east overlaps 10.2.0.0/16 of cluster west"), "{text}");
    // The same cluster once more: a repair.
    broker.join("east", "uid-of-east", &EAST).await.unwrap();
    // A member's own token joins nobody.
    let own = broker.join("west", "uid-of-west", &WEST).await.unwrap();
    let mut forged = broker.info.clone();
    forged.token = own.token;
    let forged = Broker { directory: tempfile::tempdir().unwrap(), info: forged };
    let error = forged.join("south", "uid-of-south", &["10.4.0.0/16"]).await.unwrap_err().to_string();
    assert!(error.contains("may not") && error.contains("create/get/patch serviceaccounts in"), "{error}");
    let account = west.act(&Kind::ACCOUNT, Act::Get("cluster-south")).await.unwrap_err();
    assert_eq!(account.0, 403);
    // A broker that is away.
    let mut away = broker.info.clone();
    away.url = away.url.replace(":6443", ":6");
    let away = Broker { directory: tempfile::tempdir().unwrap(), info: away };
    let error = away.join("south", "uid-of-south", &["10.4.0.0/16"]).await.unwrap_err().to_string();
    assert!(error.contains("cannot be reached"), "{error}");
}

pub(crate) async fn tokens_are_renewed(broker: &Broker) {
    let credentials = broker.join("west", "uid-of-west", &WEST).await.unwrap();
    let claims = TokenClaims::of(&credentials.token).unwrap();
    assert_eq!(claims.subject, "system:serviceaccount:submariner-k8s-broker:cluster-west");
    let validity = claims.validity.unwrap();
    assert_eq!(validity.expires, credentials.expires.unwrap());
    assert_eq!(validity.expires.duration_since(validity.issued).as_secs(), 30 * 24 * 60 * 60);
    let now = Timestamp::now();
    assert!(matches!(claims.renewal(now, 0), Renewal::At(_)));
    let Renewal::Due { lifetime } = claims.renewal(now + 241.hours(), 0) else { panic!("not due after ten days") };

    let own = Server::of_token(&broker.info.url, &credentials.token, broker.info.ca.as_deref()).await.unwrap();
    // The setting counts, not what the old token had.
    let granted = renew(&own, &claims, lifetime / 2).await.unwrap();
    assert_ne!(granted.token, credentials.token);
    assert!(granted.expires >= validity.expires, "{granted:?}");
    let renewed = broker.caller("west", granted.token.expose()).await;
    renewed.act(&Kind::CLUSTER, Act::List).await.unwrap();
    // Of its own account only, and no longer than the broker says.
    let too_long = own.request_token(&broker.info.namespace, "cluster-west", lifetime * 2).await;
    let too_long = too_long.unwrap_err().to_string();
    assert!(too_long.contains("live at most 2592000 s"), "{too_long}");
    let others = TokenClaims { subject: claims.subject.replace("west", "east"), ..claims };
    let refused = renew(&own, &others, lifetime).await.unwrap_err().to_string();
    assert!(refused.contains("cannot create resource \"serviceaccounts/token\""), "{refused}");
}

/// The same ids and CIDRs at another broker of the cluster: nobody there knows of those here.
pub(crate) async fn two_brokers_do_not_meet(kubeconfig: &Path, first: &Broker) {
    let second = Broker::deploy(kubeconfig, "second-broker");
    assert_ne!(second.info.psk, first.info.psk);
    let west = second.member("west", &EAST).await;
    let early = west.act(&Kind::ENDPOINT, Act::Create(endpoint("west", &EAST))).await.unwrap_err();
    assert!(early.1.contains("endpoint-subnets.second-broker"), "no Cluster yet: {early:?}");
    west.act(&Kind::CLUSTER, Act::Create(cluster("west", EAST[0], EAST[1]))).await.unwrap();
    until_known(&west, &endpoint("west", &EAST)).await;
    let error = west.act(&Kind::CLUSTER, Act::Delete("east")).await.unwrap_err();
    assert!(error.0 == 404 || error.1.contains("of its own name"), "{error:?}");
    let mut abroad = second.member("west", &EAST).await;
    abroad.namespace.clone_from(&first.info.namespace);
    for kind in [Kind::CLUSTER, Kind::ENDPOINT, Kind::SECRET] {
        assert_eq!(abroad.act(&kind, Act::List).await.unwrap_err().0, 403, "{}", kind.kind);
    }
    // The second broker's policies judge none of the first's members, and its end changes nothing there.
    let admin = Caller::administrator(kubeconfig, "second-broker").await;
    let policies = admin.act(&Kind::POLICY_BINDING, Act::List).await.unwrap();
    let names: Vec<String> = policies.as_array().unwrap().iter().map(name_of).collect();
    for name in names.iter().filter(|name| name.contains(".second-broker.")) {
        admin.act(&Kind::POLICY_BINDING, Act::Delete(name)).await.unwrap();
    }
    let west = first.member("west", &WEST).await;
    let error = west.act(&Kind::CLUSTER, Act::Delete("east")).await.unwrap_err();
    assert!(error.1.contains("of its own name"), "{error:?}");
}

/// A broker as `subctl` makes it: the account of its file may make neither roles nor tokens.
pub(crate) async fn a_broker_of_subctl_is_joined_as_subctl_does(kubeconfig: &Path, culverts: &Broker) {
    let namespace = "subctl-broker";
    let admin = Caller::administrator(kubeconfig, namespace).await;
    let named = |name: &str| json!({"metadata": {"name": name}});
    let rule = |group: &str, resources: &[&str], verbs: &str| json!({"apiGroups": [group], "resources": resources, "verbs": verbs.split(' ').collect::<Vec<_>>()});
    let records = [
        rule("submariner.io", &["clusters", "endpoints"], "create get list watch patch update delete"),
        rule("submariner.io", &["brokers"], "get list"),
    ];
    let member = [rule("", &["secrets"], "get list watch"), rule("", &["serviceaccounts"], "get list")];
    let joiner = [
        rule("", &["serviceaccounts", "secrets", "configmaps"], "create get list watch update delete"),
        rule("rbac.authorization.k8s.io", &["rolebindings"], "create get list delete"),
    ];
    let account = "submariner-k8s-broker-admin";
    let role = |name: &str, rules: &[Value]| {
        let rules = [&records[..], rules].concat();
        json!({"metadata": {"name": name}, "rules": rules})
    };
    let token = json!({
        "metadata": {"name": "admin-token", "annotations": {"kubernetes.io/service-account.name": account}},
        "type": "kubernetes.io/service-account-token",
    });
    let binding = json!({
        "metadata": {"name": account},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": account},
        "subjects": [{"kind": "ServiceAccount", "namespace": namespace, "name": account}],
    });
    for (kind, object) in [
        (Kind::NAMESPACE, named(namespace)),
        (Kind::ACCOUNT, named(account)),
        (Kind::ROLE, role(account, &joiner)),
        (Kind::ROLE, role("submariner-k8s-broker-cluster", &member)),
        (Kind::ROLE_BINDING, binding),
        (Kind::SECRET, token),
    ] {
        admin.act(&kind, Act::Create(object)).await.unwrap();
    }
    let mut info = culverts.info.clone();
    info.namespace = namespace.to_owned();
    info.token = token_of(&admin, "admin-token").await.into();
    let broker = Broker { directory: tempfile::tempdir().unwrap(), info };

    let credentials = broker.join("east", "uid-of-east", &EAST).await.unwrap();
    assert_eq!(credentials.expires, None);
    let claims = TokenClaims::of(&credentials.token).unwrap();
    assert_eq!(claims.renewal(Timestamp::now(), 0), Renewal::Never);
    let east = broker.caller("east", credentials.token.expose()).await;
    east.act(&Kind::CLUSTER, Act::Create(cluster("east", EAST[0], EAST[1]))).await.unwrap();
    let taken = broker.join("east", "uid-of-another", &["10.9.0.0/16"]).await.unwrap_err().to_string();
    assert!(taken.contains("another cluster has joined as east"), "{taken}");

    // It has nothing to make its file of but the token; the key is with its members.
    let directory = broker.directory.path();
    let recover = culvert(directory, kubeconfig, &["recover-broker-info", "--namespace", namespace]);
    assert!(stderr(&recover).contains("name a joined cluster with --member-context"), "{}", stderr(&recover));
    // Taken over by Culvert, it keeps its accounts, and from then on its members are judged.
    fs::write(directory.join("broker-info.subm"), broker.info.to_text()).unwrap();
    let taken_over = culvert(directory, kubeconfig, &["deploy-broker", "--namespace", namespace]);
    assert!(taken_over.status.success(), "{}", stderr(&taken_over));
    assert!(stderr(&taken_over).contains("Secret subctl-broker/admin-token has a token"), "{}", stderr(&taken_over));
    let error = east.act(&Kind::CLUSTER, Act::Create(cluster("west", WEST[0], WEST[1]))).await.unwrap_err();
    assert!(error.1.contains("of its own name: east"), "{error:?}");
    broker.join("west", "uid-of-west", &WEST).await.unwrap();
}

/// Each was judged before the other was known. The administrator writes one of them here, since nobody judges that.
pub(crate) async fn claims_at_the_same_moment_are_found(
    kubeconfig: &Path,
    broker: &Broker,
    admin: &Caller,
    east: &Caller,
) {
    let late = cluster("south", "100.4.0.0/16", "10.1.200.0/24");
    admin.act(&Kind::CLUSTER, Act::Create(late)).await.unwrap();
    let output = culvert(broker.directory.path(), kubeconfig, &["deploy-broker", "--output", "json"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let found = "10.1.0.0/16 of cluster east overlaps 10.1.200.0/24 of cluster south";
    assert!(report["warnings"].to_string().contains(found), "{report}");
    // What says nothing new is still written; a new claim on it is not.
    let touch = json!({"metadata": {"annotations": {"touched": "yes"}}});
    east.act(&Kind::CLUSTER, Act::Merge("east", touch.clone())).await.unwrap();
    let name = "east-submariner-cable-east-192-168-1-10";
    east.act(&Kind::ENDPOINT, Act::Merge(name, touch)).await.unwrap();
    let subnets = json!({"spec": {"subnets": ["10.1.200.0/25"]}});
    let error = east.act(&Kind::ENDPOINT, Act::Merge(name, subnets)).await.unwrap_err();
    assert!(error.1.contains("overlaps a CIDR of cluster south"), "{error:?}");
    admin.act(&Kind::CLUSTER, Act::Delete("south")).await.unwrap();
}

pub(crate) async fn a_second_run_repairs(kubeconfig: &Path, broker: &Broker, admin: &Caller) {
    let west = broker.member("west", &WEST).await;
    let policy = "clusters.submariner-k8s-broker.broker.culvert.io";
    admin.act(&Kind::POLICY_BINDING, Act::Delete(policy)).await.unwrap();
    admin.act(&Kind::ROLE, Act::Delete("submariner-k8s-broker-cluster")).await.unwrap();
    let file = broker.directory.path().join("broker-info.subm");
    let before = fs::read(&file).unwrap();
    let again = culvert(broker.directory.path(), kubeconfig, &["deploy-broker", "--output", "json"]);
    assert!(again.status.success(), "{}", stderr(&again));
    let report: Value = serde_json::from_slice(&again.stdout).unwrap();
    assert_eq!((&report["psk"], &report["tokenLifetimeSeconds"]), (&json!("kept"), &json!(2_592_000)));
    assert_eq!(fs::read(&file).unwrap(), before);
    admin.act(&Kind::POLICY_BINDING, Act::Get(policy)).await.unwrap();
    admin.act(&Kind::ROLE, Act::Get("submariner-k8s-broker-cluster")).await.unwrap();
    west.act(&Kind::CLUSTER, Act::Get("west")).await.unwrap();

    // The file is lost: the broker has all that is in it, and nothing of it is printed.
    let elsewhere = tempfile::tempdir().unwrap();
    let recovered = culvert(elsewhere.path(), kubeconfig, &["recover-broker-info", "--broker-url", "https://b:1"]);
    assert!(recovered.status.success(), "{}", stderr(&recovered));
    let info = culvert_setup::read(&elsewhere.path().join("broker-info.subm")).unwrap();
    assert_eq!((&info.psk, info.url.as_str()), (&broker.info.psk, "https://b:1"));
    assert_eq!(info.token, broker.info.token);
    let printed = String::from_utf8([recovered.stdout, recovered.stderr].concat()).unwrap();
    let secret = |bytes: &SecretBytes| String::from_utf8_lossy(bytes.expose()).into_owned();
    assert!(!printed.contains(&secret(&info.token)), "{printed}");

    // A broker that has members keeps its key, whatever lies in the directory.
    fs::write(elsewhere.path().join("broker-info.subm"), {
        let mut other = info.clone();
        other.psk = vec![7; 48].into();
        other.to_text()
    })
    .unwrap();
    let confused = culvert(elsewhere.path(), kubeconfig, &["deploy-broker"]);
    assert!(stderr(&confused).contains("another pre-shared key"), "{}", stderr(&confused));
}
