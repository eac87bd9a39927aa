//! What a broker file says: where the broker is, and how one may join (Submariner chapter 3.2).
//!
//! The text is URL-safe base64 of one JSON object. Written are the keys that Submariner writes; read are those in any
//! case, base64 of both alphabets, with padding or without, over several lines or on one.

use base64::Engine;
use base64::alphabet::URL_SAFE as ALPHABET;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde_json::{Value, json};

use crate::names::PSK_SECRET;
use crate::objects::admin_token;
use crate::secret::SecretBytes;

const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &ALPHABET,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// The length of a pre-shared key, in bytes, as Submariner makes it.
pub const PSK_LENGTH: usize = 48;

/// What `deploy-broker` hands to `join`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerInfo {
    /// The API server, with scheme.
    pub url: String,
    /// The namespace of the clusterset's records.
    pub namespace: String,
    /// The token of the account that may join clusters.
    pub token: SecretBytes,
    /// Certificates in PEM that vouch for the API server; `None` if those of the system do.
    pub ca: Option<Vec<u8>>,
    pub psk: SecretBytes,
    /// What the clusterset is for, such as `connectivity`.
    pub components: Vec<String>,
    pub custom_domains: Vec<String>,
}

/// Why a text is no broker file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BrokerInfoError {
    #[error("is empty")]
    Empty,
    #[error("is cut short")]
    CutShort,
    #[error("is not base64 (character {position})")]
    NotBase64 { position: usize },
    #[error("is not the base64 of JSON ({reason})")]
    NotJson { reason: String },
    #[error("has no {part}")]
    Missing { part: &'static str },
    #[error("has a {part} that is not base64")]
    Part { part: &'static str },
}

impl BrokerInfo {
    /// Reads the text of a broker file.
    ///
    /// # Errors
    ///
    /// [`BrokerInfoError`] continues a sentence that begins with the file's name.
    pub fn parse(text: &str) -> Result<Self, BrokerInfoError> {
        let object = decoded(text)?;
        let url = member(&object, "brokerURL").and_then(Value::as_str).filter(|url| !url.is_empty());
        let token = member(&object, "ClientToken").filter(|secret| secret.is_object());
        let token = token.ok_or(BrokerInfoError::Missing { part: "ClientToken" })?;
        let psk = member(&object, "IPSecPSK").filter(|secret| secret.is_object());
        let psk = psk.ok_or(BrokerInfoError::Missing { part: "IPSecPSK" })?;
        let namespace = data(token, "namespace", "ClientToken.data.namespace")?;
        Ok(Self {
            url: url.ok_or(BrokerInfoError::Missing { part: "brokerURL" })?.to_owned(),
            namespace: String::from_utf8(namespace)
                .map_err(|_| BrokerInfoError::Part { part: "ClientToken.data.namespace" })?,
            token: data(token, "token", "ClientToken.data.token")?.into(),
            ca: data(token, "ca.crt", "ClientToken.data[\"ca.crt\"]").ok(),
            psk: data(psk, "psk", "IPSecPSK.data.psk")?.into(),
            components: texts(member(&object, "Components")),
            custom_domains: texts(member(&object, "CustomDomains")),
        })
    }

    /// Writes the text of a broker file. Submariner reads it too.
    pub fn to_text(&self) -> String {
        let mut token = json!({
            "token": STANDARD.encode(self.token.expose()),
            "namespace": STANDARD.encode(&self.namespace),
        });
        if let Some(ca) = &self.ca {
            token["ca.crt"] = json!(STANDARD.encode(ca));
        }
        let mut components = self.components.clone();
        components.sort();
        let object = json!({
            "brokerURL": self.url,
            "ClientToken": {
                "metadata": {"name": admin_token(), "namespace": self.namespace},
                "data": token,
                "type": "kubernetes.io/service-account-token",
            },
            "IPSecPSK": {
                "metadata": {"name": PSK_SECRET},
                "data": {"psk": STANDARD.encode(self.psk.expose())},
            },
            "ServiceDiscovery": components.iter().any(|component| component == "service-discovery"),
            "Components": components,
            "CustomDomains": self.custom_domains,
        });
        URL_SAFE.encode(object.to_string())
    }
}

fn decoded(text: &str) -> Result<Value, BrokerInfoError> {
    let url_safe = |byte: u8| match byte {
        b'+' => b'-',
        b'/' => b'_',
        other => other,
    };
    let bytes: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).map(url_safe).collect();
    if bytes.is_empty() {
        return Err(BrokerInfoError::Empty);
    }
    let json = LENIENT.decode(bytes).map_err(|error| match error {
        base64::DecodeError::InvalidByte(position, _) | base64::DecodeError::InvalidLastSymbol(position, _) => {
            BrokerInfoError::NotBase64 { position: position + 1 }
        }
        base64::DecodeError::InvalidLength(_) | base64::DecodeError::InvalidPadding => BrokerInfoError::CutShort,
    })?;
    let object: Value = serde_json::from_slice(&json).map_err(|error| match error.is_eof() {
        true => BrokerInfoError::CutShort,
        // Not the parser's own words: they may quote what it saw.
        false => BrokerInfoError::NotJson { reason: format!("wrong at byte {}", error.column()) },
    })?;
    if !object.is_object() {
        return Err(BrokerInfoError::NotJson { reason: "it has no fields".to_owned() });
    }
    Ok(object)
}

/// Returns a field by its name in any case, as Go's decoder does.
fn member<'a>(object: &'a Value, name: &str) -> Option<&'a Value> {
    let (_, value) = object.as_object()?.iter().find(|(key, _)| key.eq_ignore_ascii_case(name))?;
    Some(value)
}

/// Returns an entry of a Secret's data; its keys have one case only.
fn data(secret: &Value, key: &str, part: &'static str) -> Result<Vec<u8>, BrokerInfoError> {
    let text = member(secret, "data").and_then(|data| data.get(key)).and_then(Value::as_str);
    let text = text.filter(|text| !text.is_empty()).ok_or(BrokerInfoError::Missing { part })?;
    STANDARD.decode(text).map_err(|_| BrokerInfoError::Part { part })
}

fn texts(value: Option<&Value>) -> Vec<String> {
    value.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info() -> BrokerInfo {
        BrokerInfo {
            url: "https://192.0.2.1:6443".to_owned(),
            namespace: "submariner-k8s-broker".to_owned(),
            token: b"the-token".to_vec().into(),
            ca: Some(b"the-authority".to_vec()),
            psk: vec![0xff; 48].into(),
            components: vec!["service-discovery".to_owned(), "connectivity".to_owned()],
            custom_domains: vec![],
        }
    }

    fn encoded(json: &str) -> String {
        URL_SAFE.encode(json)
    }

    #[test]
    fn what_is_written_is_read_again() {
        let text = info().to_text();
        let mut read = BrokerInfo::parse(&text).unwrap();
        assert_eq!(read.components, ["connectivity", "service-discovery"]);
        read.components.reverse();
        assert_eq!(read, info());
    }

    #[test]
    fn keys_are_submariners() {
        let object = decoded(&info().to_text()).unwrap();
        let keys: Vec<&String> = object.as_object().unwrap().keys().collect();
        let expected = ["ClientToken", "Components", "CustomDomains", "IPSecPSK", "ServiceDiscovery", "brokerURL"];
        assert_eq!(keys, expected);
        assert_eq!(object["ServiceDiscovery"], true);
    }

    #[test]
    fn files_of_other_hands_are_read() {
        let json = r#"{"BrokerUrl":"https://b","clientToken":{"Metadata":{},"Data":{"token":"dA==","namespace":"bnM="}},
            "ipsecPsk":{"data":{"psk":"cHNr"}},"components":null,"CustomDomains":null}"#;
        let text = encoded(json);
        let broken: String = text.as_bytes().chunks(76).map(|line| String::from_utf8_lossy(line) + "\n").collect();
        for text in [text.clone(), text.trim_end_matches('=').to_owned(), broken, STANDARD.encode(json)] {
            let info = BrokerInfo::parse(&text).unwrap();
            assert_eq!((info.url.as_str(), info.namespace.as_str(), info.ca), ("https://b", "ns", None));
            assert_eq!(info.psk.expose(), b"psk");
        }
    }

    #[test]
    fn every_damage_has_its_own_words() {
        let text = info().to_text();
        for length in 1..text.len() - 4 {
            assert_eq!(BrokerInfo::parse(&text[..length]), Err(BrokerInfoError::CutShort), "{length} characters");
        }
        for (text, expected) in [
            (" \n".to_owned(), "is empty"),
            ("what?".to_owned(), "is not base64 (character 5)"),
            (encoded("apiVersion: v1"), "is not the base64 of JSON (wrong at byte 1)"),
            (encoded("[]"), "is not the base64 of JSON (it has no fields)"),
            (encoded(r#"{"brokerURL":"https://b","ClientToken":null}"#), "has no ClientToken"),
            (encoded(r#"{"brokerURL":"https://b","ClientToken":{"data":{}}}"#), "has no IPSecPSK"),
            (encoded(r#"{"ClientToken":{"data":{"namespace":"bnM=","token":"?"}},"IPSecPSK":{}}"#), "has no brokerURL"),
            (
                encoded(r#"{"brokerURL":"b","ClientToken":{"data":{"namespace":"bnM=","token":"?"}},"IPSecPSK":{}}"#),
                "has a ClientToken.data.token that is not base64",
            ),
        ] {
            assert_eq!(BrokerInfo::parse(&text).unwrap_err().to_string(), expected, "{text}");
        }
    }

    #[test]
    fn debug_tells_no_secret() {
        let text = format!("{:?}", info());
        assert!(!text.contains("the-token") && text.contains("<secret of 48 bytes>"), "{text}");
    }
}
