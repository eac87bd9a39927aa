//! Generates the CustomResourceDefinitions from the record types, as Kubernetes' structural schemas want them: no
//! references, no `title`, no `default`.
//!
//! Names, scope, printer columns and subresources are those of Submariner chapter 2.1; of ServiceExport, those of the
//! Multi-Cluster Services API, which Submariner installs too.

use schemars::generate::{Contract, SchemaSettings};
use schemars::transform::{RecursiveTransform, Transform as _};
use schemars::{JsonSchema, Schema};
use serde_json::{Value, json};

use crate::{
    Cluster, ClusterGlobalEgressIP, ClusterGlobalEgressIPSpec, ClusterSpec, Endpoint, EndpointSpec, Gateway,
    GatewayStatus, GlobalEgressIP, GlobalEgressIPSpec, GlobalEgressIPStatus, GlobalIngressIP, GlobalIngressIPSpec,
    GlobalIngressIPStatus, Record, Resource, RouteAgent, RouteAgentStatus, ServiceExport, ServiceExportSpec,
    ServiceExportStatus,
};

/// Returns the file name and the YAML of every CustomResourceDefinition.
pub fn all() -> Vec<(String, String)> {
    vec![
        Definition::new::<Cluster, ClusterSpec>("A member of the clusterset.", "spec").yaml(),
        Definition::new::<Endpoint, EndpointSpec>("A gateway of a cluster and what is reached through it.", "spec")
            .yaml(),
        Definition {
            extras: json!({
                "subresources": {},
                "additionalPrinterColumns": [{
                    "name": "HA Status",
                    "type": "string",
                    "description": "Whether the gateway holds the cables or stands by",
                    "jsonPath": ".status.haStatus",
                }],
            }),
            ..Definition::new::<Gateway, GatewayStatus>("What a gateway node is doing.", "status")
        }
        .yaml(),
        Definition::new::<RouteAgent, RouteAgentStatus>("What a node's route agent is doing.", "status").yaml(),
        Definition {
            short_names: &["geip"],
            ..Definition::new::<GlobalEgressIP, GlobalEgressIPSpec>(
                "Global addresses by which pods of the namespace leave.",
                "spec",
            )
            .with_status::<GlobalEgressIPStatus>()
        }
        .yaml(),
        Definition {
            short_names: &["cgeip"],
            ..Definition::new::<ClusterGlobalEgressIP, ClusterGlobalEgressIPSpec>(
                "Global addresses by which sources leave that no GlobalEgressIP chooses.",
                "spec",
            )
            .with_status::<GlobalEgressIPStatus>()
        }
        .yaml(),
        Definition {
            short_names: &["giip"],
            extras: json!({
                "subresources": { "status": {} },
                "additionalPrinterColumns": [{
                    "name": "IP",
                    "type": "string",
                    "description": "The global address that is held",
                    "jsonPath": ".status.allocatedIP",
                }],
            }),
            ..Definition::new::<GlobalIngressIP, GlobalIngressIPSpec>(
                "The global address of a service, or of a headless one's pod or endpoint.",
                "spec",
            )
            .with_status::<GlobalIngressIPStatus>()
        }
        .yaml(),
        Definition {
            short_names: &["svcex", "svcexport"],
            required: Vec::new(),
            extras: json!({
                "subresources": { "status": {} },
                "additionalPrinterColumns": [{
                    "name": "Age",
                    "type": "date",
                    "jsonPath": ".metadata.creationTimestamp",
                }],
            }),
            ..Definition::new::<ServiceExport, ServiceExportSpec>(
                "Says that the Service of the same name and namespace is for the whole clusterset.",
                "spec",
            )
            .with_status::<ServiceExportStatus>()
        }
        .yaml(),
    ]
}

/// What differs between CustomResourceDefinitions.
struct Definition {
    resource: Resource,
    description: &'static str,
    short_names: &'static [&'static str],
    /// Schemas of what stands beside the metadata.
    content: Vec<(&'static str, Schema)>,
    required: Vec<&'static str>,
    /// Further fields of the version.
    extras: Value,
}

impl Definition {
    fn new<R: Record, Content: JsonSchema>(description: &'static str, content: &'static str) -> Self {
        Self {
            resource: R::RESOURCE,
            description,
            short_names: &[],
            content: vec![(content, schema::<Content>())],
            required: vec![content],
            extras: json!({}),
        }
    }

    /// Adds a status that is written apart.
    fn with_status<Status: JsonSchema>(mut self) -> Self {
        self.content.push(("status", schema::<Status>()));
        self.extras = json!({ "subresources": { "status": {} } });
        self
    }

    fn yaml(self) -> (String, String) {
        let Resource { api_version, kind, plural, is_namespaced } = self.resource;
        let scope = if is_namespaced { "Namespaced" } else { "Cluster" };
        let (group, version_name) = api_version.split_once('/').expect("our records have a group");
        let name = format!("{plural}.{group}");
        let mut whole = json!({
            "description": self.description,
            "type": "object",
            "properties": {
                "apiVersion": { "type": "string" },
                "kind": { "type": "string" },
                "metadata": { "type": "object" },
            },
        });
        for (field, schema) in self.content {
            whole["properties"][field] = schema.to_value();
        }
        if !self.required.is_empty() {
            whole["required"] = json!(self.required);
        }
        let mut version = json!({
            "name": version_name,
            "served": true,
            "storage": true,
            "schema": { "openAPIV3Schema": whole },
        });
        if let (Some(version), Value::Object(extras)) = (version.as_object_mut(), self.extras) {
            version.extend(extras);
        }
        let mut names = json!({
            "kind": kind,
            "listKind": format!("{kind}List"),
            "plural": plural,
            "singular": kind.to_lowercase(),
        });
        if !self.short_names.is_empty() {
            names["shortNames"] = json!(self.short_names);
        }
        let definition = json!({
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": { "name": name },
            "spec": { "group": group, "names": names, "scope": scope, "versions": [version] },
        });
        let yaml = serde_yaml_ng::to_string(&definition).expect("JSON values are YAML");
        (format!("{name}.yaml"), format!("# Generated by `cargo xtask crds` from libs/api.\n---\n{yaml}"))
    }
}

/// Returns the schema of `Content` as it is written: what is always written is required.
fn schema<Content: JsonSchema>() -> Schema {
    let settings = SchemaSettings::default().with(|settings| {
        settings.meta_schema = None;
        settings.inline_subschemas = true;
        settings.contract = Contract::Serialize;
    });
    let mut schema = settings.into_generator().into_root_schema_for::<Content>();
    RecursiveTransform(|schema: &mut Schema| {
        schema.remove("title");
        schema.remove("default");
        if schema.get("required").is_some_and(|required| required == &json!([])) {
            schema.remove("required");
        }
    })
    .transform(&mut schema);
    schema
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    #[test]
    fn the_files_in_deploy_are_those_of_the_types() {
        let directory = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/crds"));
        for (file, yaml) in all() {
            let path = directory.join(file);
            if std::env::var_os("UPDATE_CRDS").is_some() {
                fs::create_dir_all(directory).unwrap();
                fs::write(&path, &yaml).unwrap();
            }
            let checked_in = fs::read_to_string(&path).unwrap_or_default();
            assert!(checked_in == yaml, "{} differs: run `cargo xtask crds`", path.display());
        }
    }

    #[test]
    fn schemas_are_structural() {
        for (file, yaml) in all() {
            for word in ["$ref", "$defs", "definitions", "nullable", "oneOf", "anyOf", "allOf", "'null'", "const:"] {
                assert!(!yaml.contains(word), "{file} has {word}");
            }
        }
    }

    #[test]
    fn required_fields_are_those_of_the_newer_generation() {
        let required = |schema: Schema| {
            let mut names: Vec<String> = serde_json::from_value(schema.get("required").unwrap().clone()).unwrap();
            names.sort();
            names
        };
        assert_eq!(required(schema::<ClusterSpec>()), ["cluster_cidr", "cluster_id", "global_cidr", "service_cidr"]);
        assert_eq!(
            required(schema::<EndpointSpec>()),
            ["backend", "cable_name", "cluster_id", "hostname", "nat_enabled", "subnets"]
        );
        assert_eq!(
            required(schema::<GatewayStatus>()),
            ["connections", "haStatus", "localEndpoint", "statusFailure", "version"]
        );
    }

    #[test]
    fn only_gateways_declare_empty_subresources() {
        let with: Vec<String> =
            all().into_iter().filter(|(_, yaml)| yaml.contains("subresources: {}")).map(|(file, _)| file).collect();
        assert_eq!(with, ["gateways.submariner.io.yaml"]);
    }

    #[test]
    fn statuses_of_what_users_write_are_written_apart() {
        let with: Vec<String> =
            all().into_iter().filter(|(_, yaml)| yaml.contains("status: {}")).map(|(file, _)| file).collect();
        assert_eq!(
            with,
            [
                "globalegressips.submariner.io.yaml",
                "clusterglobalegressips.submariner.io.yaml",
                "globalingressips.submariner.io.yaml",
                "serviceexports.multicluster.x-k8s.io.yaml",
            ]
        );
    }

    #[test]
    fn numbers_of_addresses_have_submariners_bounds() {
        for (schema, field) in
            [(schema::<GlobalEgressIPSpec>(), "numberOfIPs"), (schema::<ClusterGlobalEgressIPSpec>(), "numGlobalIPs")]
        {
            let number = &schema.get("properties").unwrap()[field];
            assert_eq!((&number["minimum"], &number["maximum"]), (&json!(0), &json!(20)), "{number}");
        }
    }
}
