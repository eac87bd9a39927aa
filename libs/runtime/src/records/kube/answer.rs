//! Puts what an API server answers, or that it does not, into words that name the server, the object and the way out.

use std::error::Error;

use ::kube::core::Status;
use ::kube::runtime::watcher;
use culvert_api::Resource;

use crate::records::error::StoreError;

/// Why a request gave nothing.
#[derive(Debug)]
pub(super) enum Failure {
    /// The server's words.
    Status(Box<Status>),
    /// It was not reached, or was not understood.
    Silent(String),
}

impl From<::kube::Error> for Failure {
    fn from(error: ::kube::Error) -> Self {
        if let ::kube::Error::Api(status) = error { Self::Status(status) } else { Self::Silent(cause_of(&error)) }
    }
}

impl From<watcher::Error> for Failure {
    fn from(error: watcher::Error) -> Self {
        match error {
            watcher::Error::InitialListFailed(error)
            | watcher::Error::WatchStartFailed(error)
            | watcher::Error::WatchFailed(error) => error.into(),
            watcher::Error::WatchError(status) => Self::Status(status),
            error @ watcher::Error::NoResourceVersion => Self::Silent(cause_of(&error)),
        }
    }
}

/// Who was asked.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    /// The server's address.
    pub(super) server: String,
    pub(super) namespace: String,
    /// What helps if it does not accept who asks.
    pub(super) remedy: &'static str,
}

/// What a server was asked for.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    verb: &'static str,
    /// `endpoints`, `gateways/status`.
    resource: String,
    group: &'static str,
    /// `Endpoint west-1`, or `endpoints`.
    object: String,
    /// `None`: in all, or the kind has none.
    namespace: Option<Box<str>>,
}

impl Asked {
    pub(super) fn named(verb: &'static str, resource: Resource, namespace: Option<&str>, name: &str) -> Self {
        Self { object: format!("{} {name}", resource.kind), ..Self::all(verb, resource, namespace) }
    }

    pub(super) fn all(verb: &'static str, resource: Resource, namespace: Option<&str>) -> Self {
        Self {
            verb,
            resource: resource.plural.to_owned(),
            group: resource.api_version.split('/').next().unwrap_or_default(),
            object: resource.plural.to_owned(),
            namespace: namespace.map(Into::into),
        }
    }

    /// Makes it the object's status alone.
    pub(super) fn status(mut self) -> Self {
        self.resource.push_str("/status");
        self
    }
}

impl Failure {
    /// Tells whether there is no object of this name, as opposed to no such kind, or no such namespace.
    pub(super) fn is_missing_object(&self) -> bool {
        let Self::Status(status) = self else { return false };
        let details = status.details.as_ref();
        status.code == 404 && details.is_some_and(|details| !details.name.is_empty() && details.kind != "namespaces")
    }

    /// Tells whether the server does not know the kind that it was asked for.
    pub(super) fn is_missing_kind(&self) -> bool {
        matches!(self, Self::Status(status) if status.code == 404 && names_no_object(status))
    }

    /// Tells whether the object is there already, or is not as it was read.
    pub(super) fn is_conflict(&self) -> bool {
        matches!(self, Self::Status(status) if status.code == 409)
    }

    /// Tells whether what was seen is too old to be followed from there, which is nobody's fault.
    pub(super) fn is_too_old(&self) -> bool {
        matches!(self, Self::Status(status) if status.code == 410)
    }

    pub(super) fn explained(self, asked: &Asked, peer: &Peer) -> StoreError {
        let Asked { verb, resource, group, object, namespace } = asked;
        let Peer { server, namespace: _, remedy } = peer.clone();
        let status = match self {
            Self::Status(status) => status,
            Self::Silent(cause) => return StoreError::Unreachable { server, cause },
        };
        let refused = |cause| StoreError::Refused { server: server.clone(), verb, object: object.clone(), cause };
        match status.code {
            401 => refused(format!("the token or certificate is not accepted (401): {remedy}")),
            403 if status.reason == "Forbidden" || status.message.contains(" cannot ") => StoreError::Forbidden {
                account: quoted_after(&status.message, "User ").unwrap_or("this account").into(),
                // Not always what was asked for: to apply what is not there is to create it.
                verb: word_after(&status.message, " cannot ").unwrap_or(verb).into(),
                resource: quoted_after(&status.message, "resource ").unwrap_or(resource).into(),
                namespace: namespace.clone(),
                server,
            },
            404 if names_no_object(&status) => {
                let way_out = match *group {
                    "submariner.io" | "multicluster.x-k8s.io" => "apply the CRDs of deploy/crds",
                    _ => "install what brings them",
                };
                refused(format!("it has no {resource} of {group}: {way_out}"))
            }
            429 | 500.. => StoreError::Unreachable { server, cause: format!("{} ({})", words(&status), status.code) },
            code => refused(format!("{} ({code})", words(&status))),
        }
    }
}

fn names_no_object(status: &Status) -> bool {
    status.details.as_ref().is_none_or(|details| details.name.is_empty())
}

fn words(status: &Status) -> &str {
    if status.message.is_empty() { &status.reason } else { &status.message }
}

/// Returns the text in quotation marks after `before`, in a server's `… User "x" cannot list resource "endpoints" …`.
fn quoted_after<'a>(message: &'a str, before: &str) -> Option<&'a str> {
    let (_, rest) = message.split_once(before)?;
    rest.strip_prefix('"')?.split('"').next()
}

fn word_after<'a>(message: &'a str, before: &str) -> Option<&'a str> {
    let (_, rest) = message.split_once(before)?;
    rest.split(' ').next()
}

/// Returns an error's text and those of its causes, each once.
pub(super) fn cause_of(error: &dyn Error) -> String {
    let mut texts: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let text = error.to_string();
        // What follows a first line is an excerpt of what was read, such as a kubeconfig with a token.
        let text = text.lines().next().unwrap_or_default();
        let text = text.trim_start_matches("ServiceError: ").trim_start_matches("HyperError: ");
        if !texts.iter().any(|known| known.contains(text)) {
            texts.push(text.to_owned());
        }
        next = error.source();
    }
    texts.join(": ")
}

#[cfg(test)]
mod tests {
    use culvert_api::{Endpoint, Record as _};
    use serde_json::json;

    use super::*;

    fn failure(status: serde_json::Value) -> Failure {
        Failure::Status(Box::new(serde_json::from_value(status).unwrap()))
    }

    fn text(failure: Failure) -> String {
        let asked = Asked::named("update", Endpoint::RESOURCE, Some("submariner-operator"), "west-1");
        failure.explained(&asked, &peer()).to_string()
    }

    fn peer() -> Peer {
        Peer {
            server: "https://api:6443".to_owned(),
            namespace: "submariner-operator".to_owned(),
            remedy: "run `culvert join` again",
        }
    }

    #[test]
    fn who_is_not_accepted_is_told_what_helps() {
        let words = text(failure(json!({"code": 401, "reason": "Unauthorized", "message": "Unauthorized"})));
        let expected = "refuses to update Endpoint west-1: the token or certificate is not accepted (401): run `culvert join` again";
        assert!(words.ends_with(expected), "{words}");
    }

    #[test]
    fn a_refusal_names_who_may_not_do_what_and_where() {
        let words = "endpoints.submariner.io \"west-1\" is forbidden: User \"system:serviceaccount:a:b\" cannot create \
                     resource \"endpoints\" in API group \"submariner.io\" in the namespace \"submariner-operator\"";
        assert_eq!(
            text(failure(json!({"code": 403, "reason": "Forbidden", "message": words}))),
            "API server https://api:6443: system:serviceaccount:a:b may not create endpoints in namespace \
             submariner-operator: give it a role that may"
        );
    }

    #[test]
    fn a_kind_without_namespaces_is_forbidden_in_the_whole_cluster() {
        let ippools =
            Resource { api_version: "projectcalico.org/v3", kind: "IPPool", plural: "ippools", is_namespaced: false };
        let asked = || Asked::named("create", ippools, None, "a");
        let forbidden = failure(json!({"code": 403, "reason": "Forbidden", "message": "no"}));
        let words = forbidden.explained(&asked(), &peer()).to_string();
        assert!(words.contains("this account may not create ippools in the whole cluster: give it a role"), "{words}");
        let missing = failure(json!({"code": 404, "message": "404 page not found"}));
        assert!(missing.is_missing_kind());
        let words = missing.explained(&asked(), &peer()).to_string();
        assert!(words.ends_with("it has no ippools of projectcalico.org: install what brings them"), "{words}");
    }

    #[test]
    fn a_kind_that_is_not_there_is_no_missing_object() {
        let object =
            failure(json!({"code": 404, "message": "not found", "details": {"name": "west-1", "kind": "endpoints"}}));
        let namespace =
            failure(json!({"code": 404, "message": "no ns", "details": {"name": "x", "kind": "namespaces"}}));
        let kind = failure(json!({"code": 404, "message": "404 page not found"}));

        assert!(object.is_missing_object() && !namespace.is_missing_object() && !kind.is_missing_object());
        assert!(kind.is_missing_kind() && !object.is_missing_kind() && !namespace.is_missing_kind());
        assert!(text(kind).ends_with("it has no endpoints of submariner.io: apply the CRDs of deploy/crds"));
        assert!(text(namespace).ends_with("refuses to update Endpoint west-1: no ns (404)"));
    }

    #[test]
    fn a_server_that_is_not_well_counts_as_away() {
        for code in [429, 500, 503] {
            let error = failure(json!({"code": code, "message": "wait"}));
            let error = error.explained(&Asked::all("list", Endpoint::RESOURCE, None), &peer());
            assert!(error.is_away(), "{error}");
        }
        let silent = text(Failure::Silent("connection refused".to_owned()));
        assert!(silent.starts_with("API server https://api:6443 does not answer: connection refused"), "{silent}");
    }

    #[test]
    fn causes_are_told_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("ServiceError: {0}")]
        struct Outer(#[source] std::io::Error);
        assert_eq!(cause_of(&Outer(std::io::Error::other("no route"))), "no route");
    }
}
