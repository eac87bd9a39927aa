//! API servers that are not well, and kubeconfigs that lead nowhere: every command ends in time, with status 1 and one
//! line that names the server or the file and the way out.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use culvert_setup::BrokerInfo;
use tempfile::TempDir;

/// After which a command counts as one that never ends.
const PATIENCE: Duration = Duration::from_secs(300);

/// Commands that need a cluster, and have all they need but that.
const COMMANDS: [&str; 5] = [
    "deploy-broker --broker-url https://b",
    "recover-broker-info --broker-url https://b",
    "join broker.subm --clusterid east --clustercidr 10.1.0.0/16",
    "uninstall --yes",
    "diagnose all",
];

/// Returns the address of a server that treats each connection like this.
fn server(treat: impl Fn(&str, TcpStream) + Clone + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, treat) = (stream.unwrap(), treat.clone());
            thread::spawn(move || {
                let request = request(&stream);
                treat(&request, stream);
            });
        }
    });
    format!("http://{address}")
}

/// Reads a request; returns its first line.
fn request(stream: &TcpStream) -> String {
    let mut reader = BufReader::new(stream);
    let (mut first, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        // A client that has had enough goes.
        if reader.read_line(&mut line).unwrap_or_default() <= 2 {
            break;
        }
        if let Some((_, value)) = line.split_once(':').filter(|(name, _)| name.eq_ignore_ascii_case("content-length")) {
            length = value.trim().parse().unwrap();
        }
        if first.is_empty() {
            first = line;
        }
    }
    let mut body = vec![0; length];
    let _ = reader.read_exact(&mut body);
    first
}

fn answer(mut stream: TcpStream, head: &str, body: &str) {
    let length = body.len();
    let text = format!("HTTP/1.1 {head}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}");
    // A client that has had enough goes.
    let _ = stream.write_all(text.as_bytes());
}

/// A folder with a kubeconfig that leads to a server, and with a broker file.
fn folder(url: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let kubeconfig = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
         clusters: [{{name: c, cluster: {{server: \"{url}\"}}}}]\n\
         users: [{{name: u, user: {{token: t}}}}]\n\
         contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n"
    );
    fs::write(folder.path().join("kubeconfig"), kubeconfig).unwrap();
    let info = BrokerInfo {
        url: "https://127.0.0.1:1".to_owned(),
        namespace: "submariner-k8s-broker".to_owned(),
        token: b"t".to_vec().into(),
        ca: None,
        psk: vec![7; 48].into(),
        components: vec![],
        custom_domains: vec![],
    };
    fs::write(folder.path().join("broker.subm"), info.to_text()).unwrap();
    folder
}

/// Runs a line of `culvert` that must fail; returns the one line that says why.
fn refusal(folder: &Path, line: &str) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_culvert"));
    command.args(line.split_whitespace()).args(["--kubeconfig", "kubeconfig"]).current_dir(folder);
    let began = Instant::now();
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    while child.try_wait().unwrap().is_none() {
        if began.elapsed() > PATIENCE {
            child.kill().unwrap();
            let output = child.wait_with_output().unwrap();
            panic!("culvert {line} is not done: {}", String::from_utf8_lossy(&output.stderr));
        }
        thread::sleep(Duration::from_millis(20));
    }
    let output = child.wait_with_output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(1), &b""[..]), "culvert {line}: {words}");
    // Before it there are lines that say what is being done.
    let mut lines = words.lines().filter(|line| !line.ends_with(" ..."));
    let reason = lines.next().unwrap_or_default().to_owned();
    assert!(reason.starts_with("error: ") && lines.next().is_none(), "culvert {line}: {words}");
    println!("culvert {line}: {reason}");
    reason
}

/// Has all commands fail, at once, with all of these words.
fn assert_refused(url: &str, commands: &[&str], expected: &[&str]) {
    thread::scope(|scope| {
        for line in commands {
            scope.spawn(move || {
                let folder = folder(url);
                let reason = refusal(folder.path(), line);
                assert!(expected.iter().all(|words| reason.contains(words)), "culvert {line}: {reason}");
                let mut left: Vec<_> =
                    fs::read_dir(folder.path()).unwrap().map(|one| one.unwrap().file_name()).collect();
                left.sort();
                assert_eq!(left, ["broker.subm", "kubeconfig"], "culvert {line}");
            });
        }
    });
}

#[test]
fn a_server_with_errors_of_its_own_is_not_waited_for() {
    let body = r#"{"kind":"Status","apiVersion":"v1","status":"Failure","message":"etcdserver: no leader","code":500}"#;
    let url = server(|_, stream| answer(stream, "500 Internal Server Error\r\nContent-Type: application/json", body));
    let expected = [&url, "is not well", "500 (etcdserver: no leader)", "look at its log, and try again"];
    assert_refused(&url, &COMMANDS, &expected);
    let expected = [&url, "does not answer: etcdserver: no leader (500)", "see that it runs"];
    assert_refused(&url, &["show connections"], &expected);
}

#[test]
fn a_balancer_without_a_server_behind_it_fills_no_screen() {
    let page =
        "<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body>\r\n".to_owned() + &"<hr>\r\n".repeat(900);
    let url = server(move |_, stream| answer(stream, "502 Bad Gateway\r\nContent-Type: text/html", &page));
    assert_refused(&url, &COMMANDS, &[&url, "is not well", "502"]);
}

#[test]
fn a_server_that_wants_to_be_left_alone_for_an_hour_is_not_waited_for() {
    let url = server(|_, stream| answer(stream, "503 Service Unavailable\r\nRetry-After: 3600", "busy"));
    assert_refused(&url, &COMMANDS, &[&url, "is not well", "503 (busy)"]);
    assert_refused(&url, &["show connections"], &[&url, "does not answer: busy (503)"]);
}

#[test]
fn a_server_that_never_answers_is_given_up() {
    let url = server(|_, stream| {
        thread::sleep(Duration::from_secs(600));
        drop(stream);
    });
    assert_refused(&url, &COMMANDS, &[&url, "no answer within 30 s", "check the address"]);
    assert_refused(&url, &["show connections"], &[&url, "no answer yet"]);
}

/// Whoever asks for one right after the other gets no answer here.
#[test]
fn rights_are_asked_for_several_at_a_time() {
    for line in [COMMANDS[0], COMMANDS[2]] {
        let arrived = Arc::new(AtomicUsize::new(0));
        let url = server(move |request, stream| {
            let body = match request.contains("selfsubjectaccessreviews") {
                true => {
                    arrived.fetch_add(1, Ordering::SeqCst);
                    while arrived.load(Ordering::SeqCst) < 2 {
                        thread::sleep(Duration::from_millis(1));
                    }
                    r#"{"spec":{},"status":{"allowed":false}}"#
                }
                false => {
                    r#"{"major":"1","minor":"33","gitVersion":"","gitCommit":"","gitTreeState":"","buildDate":"","goVersion":"","compiler":"","platform":""}"#
                }
            };
            answer(stream, "200 OK\r\nContent-Type: application/json", body);
        });
        let expected =
            ["patch customresourcedefinitions.apiextensions.k8s.io", "ask for these rights, or use another context"];
        assert_refused(&url, &[line], &expected);
    }
}

#[test]
fn a_kubeconfig_that_leads_nowhere_is_named() {
    let folder = folder("http://127.0.0.1:1");
    let refused = |line: &str, words: &[&str]| {
        let reason = refusal(folder.path(), line);
        assert!(words.iter().all(|words| reason.contains(words)), "culvert {line}: {reason}");
    };
    let kubeconfig = folder.path().join("kubeconfig");
    let whole = fs::read_to_string(&kubeconfig).unwrap();
    for line in COMMANDS {
        refused(line, &["http://127.0.0.1:1 cannot be reached", "check the address"]);
        refused(&format!("{line} --context nowhere"), &["nowhere", "--context"]);
    }
    for content in [&whole[..whole.len() / 2], ""] {
        fs::write(&kubeconfig, content).unwrap();
        for line in COMMANDS {
            refused(line, &["cannot use kubeconfig kubeconfig (", "--kubeconfig"]);
        }
    }
    // What is wrong with it is not shown: it may be the token.
    fs::write(&kubeconfig, "users: [{name: u, user: {token: \"very-secret").unwrap();
    for line in COMMANDS.into_iter().chain(["show connections"]) {
        let reason = refusal(folder.path(), line);
        assert!(reason.contains("line 1 column") && !reason.contains("secret"), "culvert {line}: {reason}");
    }
    fs::remove_file(&kubeconfig).unwrap();
    for line in COMMANDS {
        refused(line, &["kubeconfig", "No such file", "--kubeconfig"]);
    }
}

#[test]
fn a_broker_file_that_is_damaged_is_named_before_anything_is_asked() {
    let folder = folder("http://127.0.0.1:1");
    let file = folder.path().join("broker.subm");
    let whole = fs::read_to_string(&file).unwrap();
    let join = COMMANDS[2];
    for (content, words) in [
        (&whole[..whole.len() / 2], "is cut short: copy it again"),
        ("", "is empty: copy it again"),
        ("what?", "is not base64"),
    ] {
        fs::write(&file, content).unwrap();
        let reason = refusal(folder.path(), join);
        assert!(reason.contains(words) && reason.contains("recover-broker-info"), "{reason}");
    }
}
