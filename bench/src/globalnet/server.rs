//! A stand-in for an API server: it keeps objects in memory and answers lists, watches and writes over HTTP as one does.
//!
//! What is measured beside it is the daemon's time alone; a real server's, and its store's, come on top.

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// Of all objects that do not say.
const CREATED: &str = "2026-01-01T00:00:00Z";

/// The server. Clones are the same one; its threads end with the process.
#[derive(Clone, Default)]
pub(crate) struct Server {
    inner: Arc<(Mutex<State>, Condvar)>,
}

#[derive(Default)]
struct State {
    version: u64,
    /// By plural.
    kinds: HashMap<String, Kind>,
}

#[derive(Default)]
struct Kind {
    /// JSON by namespace and name.
    objects: BTreeMap<(String, String), String>,
    /// Lines of watches, by version.
    events: Vec<(u64, String)>,
}

/// What a request is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Target {
    api_version: String,
    plural: String,
    namespace: String,
    name: String,
    query: HashMap<String, String>,
}

impl Server {
    /// Answers all that connect.
    pub(crate) fn serve(&self, listener: TcpListener) {
        let server = self.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let server = server.clone();
                // A client that goes is none that fails.
                thread::spawn(move || server.answer_all(&stream).ok());
            }
        });
    }

    /// Puts an object, a new one or another one, and tells who watches.
    pub(crate) fn put(&self, plural: &str, object: Value) {
        self.state().put(plural, object);
        self.inner.1.notify_all();
    }

    /// Counts the objects of a kind that are as wanted.
    pub(crate) fn count(&self, plural: &str, is_wanted: impl Fn(&Value) -> bool) -> usize {
        let state = self.state();
        let objects = state.kinds.get(plural).into_iter().flat_map(|kind| kind.objects.values());
        objects.filter(|text| is_wanted(&serde_json::from_str(text).unwrap_or_default())).count()
    }

    /// Returns an object, if it is there.
    pub(crate) fn get(&self, plural: &str, namespace: &str, name: &str) -> Option<Value> {
        let state = self.state();
        let text = state.kinds.get(plural)?.objects.get(&(namespace.to_owned(), name.to_owned()))?;
        serde_json::from_str(text).ok()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.inner.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer_all(&self, stream: &TcpStream) -> Result<()> {
        stream.set_nodelay(true)?;
        let (mut reader, mut writer) = (BufReader::new(stream.try_clone()?), stream.try_clone()?);
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            let (method, path) =
                line.trim().rsplit_once(' ').and_then(|(start, _)| start.split_once(' ')).context("HTTP")?;
            let (method, target) = (method.to_owned(), Target::of(path));
            let mut length = 0;
            loop {
                let mut header = String::new();
                reader.read_line(&mut header)?;
                let Some((name, value)) = header.trim().split_once(':') else { break };
                if name.eq_ignore_ascii_case("content-length") {
                    length = value.trim().parse()?;
                }
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body)?;
            if target.query.contains_key("watch") {
                self.watch(&target, &mut writer)?;
                continue;
            }
            let (code, answer) = self.answer(&method, &target, &body)?;
            let head = format!(
                "HTTP/1.1 {code} -\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
                answer.len()
            );
            writer.write_all(&[head.as_bytes(), answer.as_bytes()].concat())?;
        }
    }

    fn answer(&self, method: &str, target: &Target, body: &[u8]) -> Result<(u16, String)> {
        let mut state = self.state();
        let kind = state.kinds.entry(target.plural.clone()).or_default();
        let place = (target.namespace.clone(), target.name.clone());
        let found = kind.objects.get(&place).cloned();
        let answer = match (method, found) {
            ("GET", _) if target.name.is_empty() => state.list(target),
            ("GET", Some(found)) => found,
            ("DELETE", Some(found)) => {
                state.remove(&target.plural, &place);
                found
            }
            ("PATCH" | "PUT" | "POST", found) => {
                let mut object = found.map_or_else(|| Ok(json!({})), |found| serde_json::from_str(&found))?;
                merge(&mut object, serde_json::from_slice(body)?);
                object["metadata"]["namespace"] = json!(target.namespace);
                state.put(&target.plural, object)
            }
            _ => {
                let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                    "message": "not found", "reason": "NotFound", "code": 404});
                return Ok((404, status.to_string()));
            }
        };
        drop(state);
        self.inner.1.notify_all();
        Ok((200, answer))
    }

    /// Sends changes as they come, until the time of the request is over.
    fn watch(&self, target: &Target, writer: &mut TcpStream) -> Result<()> {
        writer.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")?;
        let number = |name: &str| target.query.get(name).and_then(|text| text.parse::<u64>().ok());
        let mut seen = number("resourceVersion").unwrap_or_default();
        let end = Instant::now() + Duration::from_secs(number("timeoutSeconds").unwrap_or(60));
        let mut state = self.state();
        loop {
            let events = state.kinds.get(&target.plural).map_or(&[][..], |kind| &kind.events);
            let news = &events[events.partition_point(|(version, _)| *version <= seen)..];
            let lines: String = news.iter().map(|(_, line)| line.as_str()).collect();
            seen = news.last().map_or(seen, |(version, _)| *version);
            let left = end.saturating_duration_since(Instant::now());
            if !lines.is_empty() {
                drop(state);
                writer.write_all(format!("{:x}\r\n{lines}\r\n", lines.len()).as_bytes())?;
                state = self.state();
            } else if left.is_zero() {
                drop(state);
                writer.write_all(b"0\r\n\r\n")?;
                return Ok(());
            } else {
                state = self.inner.1.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }
}

impl State {
    fn put(&mut self, plural: &str, mut object: Value) -> String {
        self.version += 1;
        let metadata = &mut object["metadata"];
        let place = ["namespace", "name"].map(|field| metadata[field].as_str().unwrap_or_default().to_owned());
        metadata["resourceVersion"] = json!(self.version.to_string());
        if metadata["uid"].is_null() {
            metadata["uid"] = json!(format!("{plural}-{}", self.version));
            metadata["creationTimestamp"] = json!(CREATED);
        }
        let text = object.to_string();
        let kind = self.kinds.entry(plural.to_owned()).or_default();
        let before = kind.objects.insert(place.into(), text.clone());
        let what = if before.is_some() { "MODIFIED" } else { "ADDED" };
        kind.events.push((self.version, event(what, &text)));
        text
    }

    fn remove(&mut self, plural: &str, place: &(String, String)) {
        self.version += 1;
        let kind = self.kinds.entry(plural.to_owned()).or_default();
        let Some(mut object) = kind.objects.remove(place).and_then(|text| serde_json::from_str::<Value>(&text).ok())
        else {
            return;
        };
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        kind.events.push((self.version, event("DELETED", &object.to_string())));
    }

    /// Lists a page.
    fn list(&self, target: &Target) -> String {
        let limit = target.query.get("limit").and_then(|text| text.parse().ok()).unwrap_or(usize::MAX);
        let skipped: usize = target.query.get("continue").and_then(|text| text.parse().ok()).unwrap_or_default();
        let objects = self.kinds.get(&target.plural).into_iter().flat_map(|kind| &kind.objects);
        let of_namespace =
            |(namespace, _): &(String, String)| target.namespace.is_empty() || *namespace == target.namespace;
        let all: Vec<&String> = objects.filter(|(place, _)| of_namespace(place)).map(|(_, text)| text).collect();
        let page = all.iter().skip(skipped).take(limit).map(|text| text.as_str()).collect::<Vec<_>>().join(",");
        let next = skipped.saturating_add(limit);
        let next = if next < all.len() { next.to_string() } else { String::new() };
        let (api_version, version) = (&target.api_version, self.version);
        format!(
            "{{\"kind\":\"List\",\"apiVersion\":\"{api_version}\",\"metadata\":{{\"resourceVersion\":\"{version}\",\
             \"continue\":\"{next}\"}},\"items\":[{page}]}}"
        )
    }
}

impl Target {
    /// Reads a path such as `/apis/GROUP/VERSION/namespaces/NAMESPACE/PLURAL/NAME/status?limit=100`.
    fn of(path: &str) -> Self {
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let query = query.split('&').filter_map(|pair| pair.split_once('='));
        let query = query.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let words: Vec<&str> = path.split('/').filter(|word| !word.is_empty()).collect();
        let (api_version, words) = match &words[..] {
            ["api", version, rest @ ..] => ((*version).to_owned(), rest),
            ["apis", group, version, rest @ ..] => (format!("{group}/{version}"), rest),
            rest => (String::new(), rest),
        };
        let (namespace, words) = match words {
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (*namespace, rest),
            rest => ("", rest),
        };
        let word = |at: usize| words.get(at).copied().unwrap_or_default().to_owned();
        Self { api_version, plural: word(0), namespace: namespace.to_owned(), name: word(1), query }
    }
}

/// Puts one object's fields over those of another, as an apply does.
fn merge(object: &mut Value, fields: Value) {
    match (object, fields) {
        (Value::Object(object), Value::Object(fields)) => {
            for (name, value) in fields {
                merge(object.entry(name).or_insert(Value::Null), value);
            }
        }
        (object, fields) => *object = fields,
    }
}

fn event(what: &str, object: &str) -> String {
    format!("{{\"type\":\"{what}\",\"object\":{object}}}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_read_as_an_api_server_does() {
        let target = Target::of("/apis/submariner.io/v1/namespaces/shop/globalingressips/web/status?force=true");
        assert_eq!((target.api_version.as_str(), target.plural.as_str()), ("submariner.io/v1", "globalingressips"));
        assert_eq!((target.namespace.as_str(), target.name.as_str()), ("shop", "web"));
        let target = Target::of("/api/v1/pods?limit=100&continue=200");
        assert_eq!(
            (target.plural.as_str(), target.name.as_str(), target.query["continue"].as_str()),
            ("pods", "", "200")
        );
    }

    #[test]
    fn an_object_is_listed_by_pages_and_told_to_who_watches() {
        let server = Server::default();
        for name in ["a", "b", "c"] {
            server.put("pods", json!({"metadata": {"namespace": "shop", "name": name}}));
        }
        let page = |path: &str| {
            let (code, text) = server.answer("GET", &Target::of(path), b"").unwrap();
            let page: Value = serde_json::from_str(&text).unwrap();
            (code, page["items"].as_array().unwrap().len(), page["metadata"]["continue"].as_str().unwrap().to_owned())
        };
        assert_eq!(page("/api/v1/pods?limit=2"), (200, 2, "2".to_owned()));
        assert_eq!(page("/api/v1/pods?limit=2&continue=2"), (200, 1, String::new()));
        let body = json!({"status": {"phase": "Running"}}).to_string();
        let patched = Target::of("/api/v1/namespaces/shop/pods/b/status");
        assert_eq!(server.answer("PATCH", &patched, body.as_bytes()).unwrap().0, 200);
        assert_eq!(server.get("pods", "shop", "b").unwrap()["status"]["phase"], "Running");
        let state = server.state();
        let (version, line) = state.kinds["pods"].events.last().unwrap();
        assert!(*version == 4 && line.starts_with("{\"type\":\"MODIFIED\""), "{line}");
    }
}
