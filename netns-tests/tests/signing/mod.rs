//! Tokens of service accounts as an API server would have signed them at another time.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use culvert_setup::{SecretBytes, Validity};
use serde_json::Value;

/// Returns a token as the API server with this key would sign it, if it had been issued and expired at other times.
pub(crate) fn aged(token: &SecretBytes, validity: &Validity, key: &Path) -> SecretBytes {
    let text = String::from_utf8(token.expose().to_vec()).unwrap();
    let parts: Vec<&str> = text.split('.').collect();
    let mut claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(parts[1]).unwrap()).unwrap();
    for (name, time) in [("iat", validity.issued), ("nbf", validity.issued), ("exp", validity.expires)] {
        claims[name] = time.as_second().into();
    }
    let signed = format!("{}.{}", parts[0], URL_SAFE_NO_PAD.encode(claims.to_string()));
    let mut openssl = Command::new("openssl");
    openssl.args(["dgst", "-sha256", "-sign"]).arg(key).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = openssl.spawn().unwrap();
    child.stdin.take().unwrap().write_all(signed.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(plain_signature(&output.stdout))).into_bytes().into()
}

/// Takes the two numbers of an ECDSA signature on P-256 out of its DER form, as a JSON Web Signature has them (RFC 7518,
/// section 3.4).
fn plain_signature(der: &[u8]) -> Vec<u8> {
    let mut rest = &der[2..];
    let mut plain = Vec::new();
    for _ in 0..2 {
        let (number, behind) = rest[2..].split_at(usize::from(rest[1]));
        let number = &number[number.iter().position(|&byte| byte != 0).unwrap()..];
        plain.resize(plain.len() + 32 - number.len(), 0);
        plain.extend_from_slice(number);
        rest = behind;
    }
    plain
}
