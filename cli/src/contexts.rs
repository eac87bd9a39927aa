//! Decides which clusters `show` and `diagnose` look at, and how what is found in several stands side by side.
//!
//! As with subctl, `--contexts` names several. A cluster that cannot be read hides no other; the exit status tells.

use anyhow::{Context, Result};
use culvert_runtime::flags::{FlagError, RecordsArgs, Surroundings};
use culvert_runtime::{Access, Location, Server};
use serde::Serialize;

use crate::args::Output;
use crate::table::printable;

/// The flags that say which clusters are meant.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Places {
    #[command(flatten)]
    pub(crate) records: RecordsArgs,
    /// Contexts of the kubeconfig, separated by commas: each is looked at.
    #[arg(long, value_name = "NAMES", value_delimiter = ',', conflicts_with_all = ["records", "context"])]
    contexts: Vec<String>,
    /// Cluster of the kubeconfig [default: the context's].
    #[arg(long, value_name = "NAME", conflicts_with = "records")]
    cluster: Option<String>,
    /// User of the kubeconfig [default: the context's].
    #[arg(long, value_name = "NAME", conflicts_with = "records")]
    user: Option<String>,
}

/// One of the clusters: the context, if several could be named, and what belongs to it.
pub(crate) type OfContext<T> = (Option<String>, T);

impl Places {
    /// Returns where the records of each cluster are.
    ///
    /// # Errors
    ///
    /// [`FlagError`] if two places are given for one, or none.
    pub(crate) fn locations(&self, surroundings: Surroundings) -> Result<Vec<OfContext<Location>>, FlagError> {
        // As with kubectl, one who names a part of a kubeconfig means that, in a pod too.
        let is_chosen = self.cluster.is_some() || self.user.is_some();
        let surroundings = if is_chosen { Surroundings::Kubeconfig } else { surroundings };
        if self.contexts.is_empty() {
            return Ok(vec![(None, self.chosen(self.records.location(surroundings)?))]);
        }
        let of = |context: &String| {
            let records = RecordsArgs { context: Some(context.clone()), ..self.records.clone() };
            Ok((Some(context.clone()), self.chosen(records.location(surroundings)?)))
        };
        self.contexts.iter().map(of).collect()
    }

    fn chosen(&self, mut location: Location) -> Location {
        if let Location::Server(Server { access: Access::Kubeconfig { choice, .. }, .. }) = &mut location {
            (choice.cluster, choice.user) = (self.cluster.clone(), self.user.clone());
        }
        location
    }
}

/// Writes what was found: of one cluster alone, or of several under their contexts. `table` gives the text for people.
pub(crate) fn render<T: Serialize>(
    found: &[OfContext<T>],
    output: Output,
    table: impl Fn(&T) -> String,
) -> Result<String> {
    #[derive(Serialize)]
    struct Named<'a, T> {
        context: &'a str,
        #[serde(flatten)]
        found: &'a T,
    }
    let named = || -> Vec<Named<'_, T>> {
        let named = |(context, found)| Named { context, found };
        found.iter().filter_map(|(context, found)| Some((context.as_deref()?, found))).map(named).collect()
    };
    match (output, found) {
        (Output::Table, _) => {
            let text = |(context, found): &OfContext<T>| match context {
                Some(context) => format!("Context {}\n\n{}", printable(context), table(found)),
                None => table(found),
            };
            Ok(found.iter().map(text).collect::<Vec<_>>().join("\n"))
        }
        (Output::Json, [(None, one)]) => json(one),
        (Output::Json, _) => json(&named()),
        (Output::Yaml, [(None, one)]) => yaml(one),
        (Output::Yaml, _) => yaml(&named()),
    }
}

fn json(value: &impl Serialize) -> Result<String> {
    Ok(serde_json::to_string_pretty(value).context("could not write JSON")? + "\n")
}

fn yaml(value: &impl Serialize) -> Result<String> {
    serde_yaml_ng::to_string(value).context("could not write YAML")
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use culvert_runtime::Choice;
    use serde_json::{Value, json};

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        places: Places,
    }

    fn parsed(words: &str) -> Result<Places, clap::Error> {
        let words = std::iter::once("culvert").chain(words.split_whitespace());
        Line::try_parse_from(words).map(|line| line.places)
    }

    #[test]
    fn each_context_is_a_place_of_one_kubeconfig() {
        let places = parsed("--kubeconfig /k --contexts east,west").unwrap();
        let place = |context: &str| {
            let choice = Choice { context: Some(context.to_owned()), ..Choice::default() };
            let access = Access::Kubeconfig { file: Some("/k".into()), choice };
            (Some(context.to_owned()), Location::Server(Server { access, namespace: None }))
        };
        assert_eq!(places.locations(Surroundings::Neither).unwrap(), [place("east"), place("west")]);
        let one = parsed("--records /r").unwrap().locations(Surroundings::Neither).unwrap();
        assert_eq!(one, [(None, Location::from("/r"))]);
        assert!(parsed("--records /r --contexts east").is_err());
        assert!(parsed("--context east --contexts east").is_err());
    }

    #[test]
    fn a_cluster_and_a_user_are_chosen_as_with_kubectl() {
        let places = parsed("--cluster c --user u").unwrap();
        for surroundings in [Surroundings::Pod, Surroundings::Neither] {
            let choice = Choice { context: None, cluster: Some("c".to_owned()), user: Some("u".to_owned()) };
            let access = Access::Kubeconfig { file: None, choice };
            let expected = Location::Server(Server { access, namespace: None });
            assert_eq!(places.locations(surroundings).unwrap(), [(None, expected)]);
        }
        assert!(parsed("--records /r --user u").is_err());
    }

    #[test]
    fn several_clusters_are_a_list_and_one_is_itself() {
        let found = |context: Option<&str>| (context.map(str::to_owned), json!({"healthy": true}));
        let text = |found: &[OfContext<Value>], output| render(found, output, |_| "a line\n".to_owned()).unwrap();
        let one: Value = serde_json::from_str(&text(&[found(None)], Output::Json)).unwrap();
        assert_eq!(one, json!({"healthy": true}));
        let two = [found(Some("east")), found(Some("west"))];
        let list: Value = serde_json::from_str(&text(&two, Output::Json)).unwrap();
        assert_eq!(list, json!([{"context": "east", "healthy": true}, {"context": "west", "healthy": true}]));
        assert_eq!(text(&two[..1], Output::Yaml), "- context: east\n  healthy: true\n");
        assert_eq!(text(&two, Output::Table), "Context east\n\na line\n\nContext west\n\na line\n");
    }
}
