//! Which pods a label selector chooses (Kubernetes' `metav1.LabelSelector`).

use std::collections::{BTreeMap, BTreeSet};

/// Why a selector cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    #[error("operator {operator:?} for label {key:?} is not known: write In, NotIn, Exists or DoesNotExist")]
    Operator { key: String, operator: String },
    #[error("operator {operator} for label {key:?} needs values: list one at least")]
    NoValues { key: String, operator: String },
    #[error("operator {operator} for label {key:?} takes no values: leave them out")]
    Values { key: String, operator: String },
}

/// A label selector that is there; without any requirement it chooses everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    /// All have to hold.
    requirements: Vec<Requirement>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Requirement {
    key: String,
    operator: Operator,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Operator {
    In(BTreeSet<String>),
    /// Also holds for what has no such label.
    NotIn(BTreeSet<String>),
    Exists,
    DoesNotExist,
}

impl Selector {
    /// Makes the selector of `matchLabels`.
    pub fn of_labels(labels: impl IntoIterator<Item = (String, String)>) -> Self {
        let requirement = |(key, value)| Requirement { key, operator: Operator::In(BTreeSet::from([value])) };
        Self { requirements: labels.into_iter().map(requirement).collect() }
    }

    /// Adds an entry of `matchExpressions`.
    ///
    /// # Errors
    ///
    /// [`SelectorError`] if the API server would refuse it in a Pod's or Service's selector.
    pub fn with(mut self, key: String, operator: &str, values: BTreeSet<String>) -> Result<Self, SelectorError> {
        let is_list = match operator {
            "In" | "NotIn" => true,
            "Exists" | "DoesNotExist" => false,
            _ => return Err(SelectorError::Operator { key, operator: operator.to_owned() }),
        };
        if is_list && values.is_empty() {
            return Err(SelectorError::NoValues { key, operator: operator.to_owned() });
        }
        if !is_list && !values.is_empty() {
            return Err(SelectorError::Values { key, operator: operator.to_owned() });
        }
        let operator = match operator {
            "In" => Operator::In(values),
            "NotIn" => Operator::NotIn(values),
            "Exists" => Operator::Exists,
            _ => Operator::DoesNotExist,
        };
        self.requirements.push(Requirement { key, operator });
        Ok(self)
    }

    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.requirements.iter().all(|Requirement { key, operator }| {
            let value = labels.get(key);
            match operator {
                Operator::In(values) => value.is_some_and(|value| values.contains(value)),
                Operator::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
                Operator::Exists => value.is_some(),
                Operator::DoesNotExist => value.is_none(),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(labels: &[(&str, &str)]) -> BTreeMap<String, String> {
        labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn expression(key: &str, operator: &str, values: &[&str]) -> Result<Selector, SelectorError> {
        Selector::default().with(key.to_owned(), operator, values.iter().map(|&value| value.to_owned()).collect())
    }

    #[test]
    fn expressions_follow_kubernetes_rules() {
        let (web, other, bare) = (labels(&[("app", "web")]), labels(&[("app", "db")]), labels(&[("tier", "web")]));
        for (operator, values, chosen) in [
            ("In", &["web", "shop"][..], [true, false, false]),
            ("NotIn", &["web", "shop"][..], [false, true, true]),
            ("Exists", &[][..], [true, true, false]),
            ("DoesNotExist", &[][..], [false, false, true]),
        ] {
            let selector = expression("app", operator, values).unwrap();
            assert_eq!([&web, &other, &bare].map(|labels| selector.matches(labels)), chosen, "{operator}");
        }
    }

    #[test]
    fn all_requirements_have_to_hold_and_none_chooses_everything() {
        let selector = Selector::of_labels(labels(&[("app", "web"), ("tier", "front")]));
        assert!(selector.matches(&labels(&[("app", "web"), ("tier", "front"), ("more", "")])));
        assert!(!selector.matches(&labels(&[("app", "web")])));
        let selector = selector.with("canary".to_owned(), "DoesNotExist", BTreeSet::new()).unwrap();
        assert!(!selector.matches(&labels(&[("app", "web"), ("tier", "front"), ("canary", "")])));
        assert!(Selector::default().matches(&labels(&[])));
    }

    #[test]
    fn what_the_api_server_would_refuse_is_named() {
        for (operator, values, text) in [
            ("in", &["web"][..], "operator \"in\" for label \"app\" is not known: write In, NotIn, Exists or"),
            ("In", &[], "operator In for label \"app\" needs values"),
            ("Exists", &["web"], "operator Exists for label \"app\" takes no values"),
        ] {
            let error = expression("app", operator, values).unwrap_err().to_string();
            assert!(error.starts_with(text), "{error}");
        }
    }
}
