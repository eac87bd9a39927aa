//! What is written to Calico's API, and what is said of an API that does not do it.

use std::sync::{Arc, Mutex};

use culvert_runtime::{Access, Choice, Location, Records, Server};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpListener;

use super::*;

/// An API server that gives one list of pools, and one answer to all that is written.
struct Api {
    objects: ClusterWide,
    /// Method, path and body of what was written.
    written: Arc<Mutex<Vec<(String, Value)>>>,
    _kubeconfig: TempDir,
}

impl Api {
    async fn answering(list: (u16, Value), write: (u16, Value)) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let kubeconfig = tempfile::tempdir().unwrap();
        let file = kubeconfig.path().join("kubeconfig");
        let text = json!({
            "clusters": [{"name": "c", "cluster": {"server": format!("http://{}", listener.local_addr().unwrap())}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": ""}}],
            "current-context": "c",
        });
        std::fs::write(&file, text.to_string()).unwrap();
        let written = Arc::new(Mutex::new(Vec::new()));
        tokio::spawn(serve(listener, list, write, written.clone()));
        let access = Access::Kubeconfig { file: Some(file), choice: Choice::default() };
        let records = Records::at(&Location::Server(Server { access, namespace: None }), "test").await.unwrap();
        Self { objects: records.cluster_wide(IP_POOLS).unwrap(), written, _kubeconfig: kubeconfig }
    }

    fn written(&self) -> Vec<String> {
        self.written.lock().unwrap().iter().map(|(request, _)| request.clone()).collect()
    }
}

async fn serve(
    listener: TcpListener,
    list: (u16, Value),
    write: (u16, Value),
    written: Arc<Mutex<Vec<(String, Value)>>>,
) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let mut reader = BufReader::new(&mut stream);
        let (mut request, mut length) = (String::new(), 0);
        reader.read_line(&mut request).await.unwrap();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).await.unwrap();
            match line.trim_end().to_ascii_lowercase().split_once(": ") {
                Some(("content-length", value)) => length = value.parse().unwrap(),
                Some(_) => {}
                None => break,
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).await.unwrap();
        let words: Vec<&str> = request.split([' ', '?']).collect();
        let (status, answer) = if words[0] == "GET" { &list } else { &write };
        if words[0] != "GET" {
            let path = words[1].trim_start_matches("/apis/projectcalico.org/v3/");
            let body = serde_json::from_slice(&body).unwrap_or_default();
            written.lock().unwrap().push((format!("{} {path}", words[0]), body));
        }
        let text = answer.to_string();
        let head = format!("HTTP/1.1 {status} x\r\ncontent-type: application/json\r\nconnection: close\r\n");
        stream.write_all(format!("{head}content-length: {}\r\n\r\n{text}", text.len()).as_bytes()).await.unwrap();
    }
}

fn list(pools: &[Value]) -> (u16, Value) {
    (200, json!({"apiVersion": IP_POOLS.api_version, "kind": "IPPoolList", "metadata": {}, "items": pools}))
}

fn failure(code: u16, message: &str) -> (u16, Value) {
    let reason = if code == 403 { "Forbidden" } else { "" };
    (code, json!({"kind": "Status", "status": "Failure", "message": message, "reason": reason, "code": code}))
}

fn done() -> (u16, Value) {
    (200, pool("any", &"10.8.0.0/16".parse().unwrap()))
}

/// One pool that is missing, one that is there and was changed, and one that is not wanted.
fn wanted(is_complete: bool) -> (Wanted, Vec<Value>) {
    let subnet = |text: &str| text.parse::<IpNet>().unwrap();
    let mut changed = pool("b", &subnet("10.3.0.0/16"));
    changed["spec"]["disabled"] = json!(false);
    let pools = [("a", "10.2.0.0/16"), ("b", "10.3.0.0/16")].map(|(name, text)| (name.to_owned(), subnet(text)));
    (Wanted { pools: pools.into(), is_complete }, vec![changed, pool("old", &subnet("10.4.0.0/16"))])
}

#[tokio::test]
async fn what_stands_in_the_way_goes_before_what_is_new_comes() {
    let (wanted, found) = wanted(true);
    let api = Api::answering(list(&found), done()).await;

    let look = look(&api.objects, &wanted, || false).await;

    assert!(look.is_done, "{look:?}");
    assert_eq!(api.written(), ["DELETE ippools/old", "PATCH ippools/b", "POST ippools"]);
    let written = api.written.lock().unwrap();
    assert_eq!(written[1].1, json!({"spec": inert()}));
    assert_eq!(written[2].1, pool("a", &"10.2.0.0/16".parse().unwrap()));
}

#[tokio::test]
async fn nothing_is_deleted_while_not_all_records_are_known() {
    let (wanted, found) = wanted(false);
    let api = Api::answering(list(&found), done()).await;

    look(&api.objects, &wanted, || false).await;

    assert_eq!(api.written(), ["PATCH ippools/b", "POST ippools"]);
}

#[tokio::test]
async fn who_is_no_longer_the_gateway_writes_nothing() {
    let (wanted, found) = wanted(true);
    let api = Api::answering(list(&found), done()).await;

    assert!(!look(&api.objects, &wanted, || true).await.is_done);
    assert_eq!(api.written(), Vec::<String>::new());
}

#[tokio::test]
async fn an_api_that_is_missing_away_or_closed_is_told_and_nothing_is_written() {
    for (answer, words) in [
        (failure(404, "the server could not find the requested resource"), "install Calico's API server"),
        (failure(500, "no endpoints"), "does not answer: no endpoints (500)"),
        (failure(403, "no"), "may not list ippools in the whole cluster: give it a role that may"),
    ] {
        let (wanted, _) = wanted(true);
        let api = Api::answering(answer, done()).await;

        let look = look(&api.objects, &wanted, || false).await;

        assert!(!look.is_done && look.obstacles.len() == 1, "{look:?}");
        assert!(look.obstacles.first().unwrap().contains(words), "{look:?}");
        assert_eq!(api.written(), Vec::<String>::new());
    }
}

#[tokio::test]
async fn a_pool_that_calico_refuses_keeps_no_other_from_being_tried() {
    let (wanted, found) = wanted(true);
    let api = Api::answering(list(&found), failure(422, "it overlaps")).await;

    let look = look(&api.objects, &wanted, || false).await;

    assert!(!look.is_done && look.obstacles.len() == 3, "{look:?}");
    assert!(look.obstacles.iter().all(|words| words.ends_with("it overlaps (422)")), "{look:?}");
    assert!(look.obstacles.iter().any(|words| words.contains("refuses to create IPPool a")), "{look:?}");
    assert_eq!(api.written().len(), 3);
}

#[tokio::test]
async fn uninstalling_deletes_what_has_the_label_alone() {
    let (_, mut found) = wanted(true);
    found.push(json!({"metadata": {"name": "default-ipv4-ippool"}, "spec": {"cidr": "192.168.0.0/16"}}));
    let api = Api::answering(list(&found), done()).await;

    remove_all(&api.objects).await.unwrap();

    assert_eq!(api.written(), ["DELETE ippools/b", "DELETE ippools/old"]);
    let without = Api::answering(failure(404, "not found"), done()).await;
    remove_all(&without.objects).await.unwrap();
    let away = Api::answering(failure(500, "wait"), done()).await;
    assert!(remove_all(&away.objects).await.unwrap_err().is_away());
}

#[test]
fn what_is_made_is_found_again_as_it_is_wanted() {
    let subnet: IpNet = "10.2.0.0/16".parse().unwrap();
    let name = "submariner-west-10.2.0.0-16";

    let made = pool(name, &subnet);

    assert_eq!(made["spec"]["cidr"], "10.2.0.0/16");
    let found = found_pool(&made);
    assert_eq!(found, FoundPool { name: name.to_owned(), is_labelled: true, subnet: Some(subnet), is_inert: true });
    let wanted = BTreeMap::from([(name.to_owned(), subnet)]);
    assert_eq!(pool_changes(&wanted, &[found], true), PoolChanges::default());
}

#[test]
fn what_calico_leaves_out_is_false() {
    let mut object = pool("a", &"10.2.0.0/16".parse().unwrap());
    object["spec"].as_object_mut().unwrap().remove("natOutgoing");
    assert!(found_pool(&object).is_inert);
    for field in ["disabled", "disableBGPExport"] {
        let mut used = object.clone();
        used["spec"].as_object_mut().unwrap().remove(field);
        assert!(!found_pool(&used).is_inert, "{field}");
    }
    assert!(!found_pool(&json!({"metadata": {"name": "a", "labels": {POOL_LABEL: "false"}}})).is_labelled);
}

#[test]
fn a_missing_api_is_told_with_the_way_out() {
    let words = missing_api();
    assert!(words.contains("no ippools of projectcalico.org/v3"), "{words}");
    assert!(words.contains("install Calico's API server, or Calico with its CRDs"), "{words}");
}
