//! What objects are called: which names are names, and no paths to elsewhere.

use std::fmt;

use culvert_api::Record;

use super::error::StoreError;

/// A file name takes 255 bytes.
const MAX_NAME: usize = 250;
/// Of a DNS label (RFC 1123).
const MAX_NAMESPACE: usize = 63;

/// An object's name and namespace. Sorts by namespace first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    /// Empty if the object has none, or if its store has one only and lets it go without saying.
    pub(super) namespace: Box<str>,
    pub(super) name: Box<str>,
}

impl Key {
    /// # Errors
    ///
    /// [`StoreError::Name`].
    pub(super) fn of<R: Record>(namespace: &str, name: &str) -> Result<Self, StoreError> {
        if is_object_name(name) {
            Ok(Self { namespace: namespace.into(), name: name.into() })
        } else {
            Err(StoreError::Name { kind: R::KIND, name: name.to_owned() })
        }
    }

    /// Makes the key of an object where those of all namespaces are.
    ///
    /// # Errors
    ///
    /// [`StoreError::Name`], [`StoreError::Namespace`].
    pub(super) fn anywhere<R: Record>(namespace: &str, name: &str) -> Result<Self, StoreError> {
        let is_right = if R::IS_NAMESPACED { is_namespace(namespace) } else { namespace.is_empty() };
        if is_right {
            return Self::of::<R>(namespace, name);
        }
        let (name, namespace) = (name.to_owned(), namespace.to_owned());
        Err(StoreError::Namespace { kind: R::KIND, name, namespace, is_namespaced: R::IS_NAMESPACED })
    }

    pub(super) fn namespace(&self) -> Option<&str> {
        Some(&*self.namespace).filter(|namespace| !namespace.is_empty())
    }
}

impl fmt::Display for Key {
    /// As `kubectl` has it: `namespace/name`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() { f.write_str(&self.name) } else { write!(f, "{}/{}", self.namespace, self.name) }
    }
}

/// Tells whether `name` is a DNS subdomain by Kubernetes' rule, and so no path to elsewhere.
pub(super) fn is_object_name(name: &str) -> bool {
    name.len() <= MAX_NAME && name.split('.').all(is_label)
}

/// Tells whether `name` is a DNS label by Kubernetes' rule, as the names of namespaces are.
pub(super) fn is_namespace(name: &str) -> bool {
    name.len() <= MAX_NAMESPACE && is_label(name)
}

fn is_label(label: &str) -> bool {
    let alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = label.as_bytes();
    bytes.first().is_some_and(alphanumeric)
        && bytes.last().is_some_and(alphanumeric)
        && bytes.iter().all(|byte| alphanumeric(byte) || *byte == b'-')
}
