//! A cluster's keys: one authority, the API server's two certificates, the key of service accounts, and tokens.
//!
//! Every program but the API server shows a static token instead of a certificate: one file less to make for each.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use crate::command::run;

/// The least that `openssl req` takes for a configuration: nothing comes from the machine's own.
const OPENSSL: &str = "[req]\ndistinguished_name = name\n[name]\n";

/// The folder of a cluster's keys.
pub(crate) struct Certificates {
    directory: PathBuf,
}

/// Who may show a token, as a Kubernetes user.
pub(crate) struct Account {
    pub(crate) user: String,
    pub(crate) group: Option<&'static str>,
    token: String,
}

impl Account {
    /// Makes an account with a random token.
    pub(crate) fn new(user: impl Into<String>, group: Option<&'static str>) -> Result<Self> {
        let mut bytes = [0; 16];
        File::open("/dev/urandom")?.read_exact(&mut bytes)?;
        let token = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self { user: user.into(), group, token })
    }

    /// Returns its line in the API server's file of tokens: token, user, user id, groups.
    fn line(&self) -> String {
        let Self { user, group, token } = self;
        format!("{token},{user},{user},\"{}\"\n", group.unwrap_or_default())
    }
}

impl Certificates {
    /// Makes everything; the API server's certificate is for `names`, such as `IP:192.0.2.1` and `DNS:localhost`.
    pub(crate) fn make(directory: PathBuf, names: &[String], accounts: &[&Account]) -> Result<Self> {
        fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
        let certificates = Self { directory };
        fs::write(certificates.path("openssl.cnf"), OPENSSL)?;
        certificates.certificate(
            "ca",
            "/CN=culvert-lab",
            None,
            &["basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign", "subjectKeyIdentifier=hash"],
        )?;
        let names = format!("subjectAltName={}", names.join(","));
        let server = [names.as_str(), "extendedKeyUsage=serverAuth"];
        certificates.certificate("apiserver", "/CN=kube-apiserver", Some("ca"), &server)?;
        let subject = "/O=system:masters/CN=kube-apiserver-kubelet-client";
        certificates.certificate("kubelet-client", subject, Some("ca"), &["extendedKeyUsage=clientAuth"])?;
        certificates.service_account_key()?;
        let tokens: String = accounts.iter().map(|account| account.line()).collect();
        write_secret(&certificates.path("tokens.csv"), &tokens)?;
        Ok(certificates)
    }

    /// Returns the path of a file: `ca.crt`, `apiserver.crt`, `kubelet-client.key`, `service-account.pub`, `tokens.csv`.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Returns a kubeconfig that needs no other file. Its names are the cluster's own, so that `$KUBECONFIG` may list it
    /// beside those of other clusters.
    pub(crate) fn kubeconfig(&self, cluster: &str, server: &str, account: &Account) -> Result<String> {
        let authority = STANDARD.encode(fs::read(self.path("ca.crt"))?);
        let user = format!("{cluster}-{}", account.user);
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": cluster, "cluster": {"server": server, "certificate-authority-data": authority}}],
            "users": [{"name": user, "user": {"token": account.token}}],
            "contexts": [{"name": cluster, "context": {"cluster": cluster, "user": user}}],
            "current-context": cluster,
        });
        Ok(serde_yaml_ng::to_string(&config)?)
    }

    /// Makes NAME.key and NAME.crt, signed by the authority or by itself.
    fn certificate(&self, name: &str, subject: &str, authority: Option<&str>, extensions: &[&str]) -> Result<()> {
        let file = |suffix: &str| self.path(&format!("{name}.{suffix}"));
        let mut openssl = Command::new("openssl");
        openssl.args(["req", "-x509", "-new", "-nodes", "-days", "3650", "-newkey", "ec"]);
        openssl.args(["-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj", subject, "-config"]);
        openssl.arg(self.path("openssl.cnf")).arg("-keyout").arg(file("key")).arg("-out").arg(file("crt"));
        for extension in extensions {
            openssl.args(["-addext", extension]);
        }
        if let Some(authority) = authority {
            openssl.arg("-CA").arg(self.path(&format!("{authority}.crt")));
            openssl.arg("-CAkey").arg(self.path(&format!("{authority}.key")));
        }
        run(&mut openssl)?;
        Ok(())
    }

    fn service_account_key(&self) -> Result<()> {
        let key = self.path("service-account.key");
        let mut make = Command::new("openssl");
        make.args(["genpkey", "-quiet", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-out"]);
        run(make.arg(&key))?;
        let mut publish = Command::new("openssl");
        run(publish.args(["pkey", "-pubout", "-in"]).arg(&key).arg("-out").arg(self.path("service-account.pub")))?;
        Ok(())
    }
}

/// Writes a file that only its owner may read.
pub(crate) fn write_secret(path: &Path, text: &str) -> Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;

    let mut options = File::options();
    let file = options.write(true).create(true).truncate(true).mode(0o600).open(path);
    let mut file = file.with_context(|| format!("cannot write {}", path.display()))?;
    Ok(file.write_all(text.as_bytes())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_says_who_shows_it() {
        let node = Account { user: "system:node:a".to_owned(), group: Some("system:nodes"), token: "t".to_owned() };
        assert_eq!(node.line(), "t,system:node:a,system:node:a,\"system:nodes\"\n");
        assert_ne!(Account::new("a", None).unwrap().token, Account::new("a", None).unwrap().token);
    }
}
