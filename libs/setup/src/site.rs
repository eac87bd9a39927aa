//! What a site without Kubernetes keeps of its membership: the files by which its daemons are started.
//!
//! Beside the directory of the site's records, which other machines of the site may share, is the directory `site`, which
//! is its gateway's alone: `site.env`, the variables of both daemons, for a shell or for systemd, with nothing secret in
//! it; `identity`, which tells the site from another that would join by its id; and `broker`, with `token`, `ca.crt` and
//! `namespace` as a Secret is mounted, and `psk`. `site.env` is written last: a site that has it has joined.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, DirBuilder};
use std::io::{self, ErrorKind};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::broker_file::replace_secret;
use crate::installation::Settings;
use crate::join::BrokerCredentials;
use crate::secret::SecretBytes;

/// Where the kernel makes random names.
const RANDOM_NAME: &str = "/proc/sys/kernel/random/uuid";

const HEADER: &str =
    "# Variables of culvert-gateway and culvert-route-agent. `culvert join --standalone` writes them anew.\n";

/// The files of a site.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    records: PathBuf,
    directory: PathBuf,
}

/// Why a site's files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SiteError {
    #[error("--records {}: give a directory of the site's records, as /var/lib/culvert/records", .records.display())]
    Records { records: PathBuf },
    #[error("cannot use {}: run this as the user whom the daemons run as", .path.display())]
    File { path: PathBuf, source: io::Error },
    #[error(
        "{}, line {line}: it is no NAME='VALUE': `culvert join --standalone --clusterid ID` writes the file anew",
        .path.display()
    )]
    Line { path: PathBuf, line: usize },
    #[error("{variable}: a value with a quotation mark or a line break cannot be handed to the daemons: {value:?}")]
    Value { variable: &'static str, value: String },
}

impl Site {
    /// Returns the site whose records are, or will be, in `records`.
    ///
    /// # Errors
    ///
    /// [`SiteError::Records`] if nothing can be beside it.
    pub fn of_records(records: &Path) -> Result<Self, SiteError> {
        let error = || SiteError::Records { records: records.to_owned() };
        let records = std::path::absolute(records).map_err(|_| error())?;
        let directory = records.parent().ok_or_else(error)?.join("site");
        if records == directory || records.to_str().is_none() {
            return Err(error());
        }
        Ok(Self { records, directory })
    }

    /// Returns the directory of the records.
    pub fn records(&self) -> &Path {
        &self.records
    }

    /// Returns the path of the file with the daemons' variables.
    pub fn variables_file(&self) -> PathBuf {
        self.directory.join("site.env")
    }

    /// Returns the directory of what a join has given.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    fn identity_file(&self) -> PathBuf {
        self.directory.join("identity")
    }

    fn broker(&self) -> PathBuf {
        self.directory.join("broker")
    }

    /// Returns the variables of the daemons; `None` if the site has not joined.
    ///
    /// # Errors
    ///
    /// [`SiteError`] names the file and the line.
    pub fn joined(&self) -> Result<Option<BTreeMap<String, String>>, SiteError> {
        let path = self.variables_file();
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(SiteError::File { path, source }),
        };
        parse(&text).map(Some).map_err(|line| SiteError::Line { path, line })
    }

    /// Makes sure that settings can be handed to the daemons.
    ///
    /// # Errors
    ///
    /// [`SiteError::Value`].
    pub fn check(&self, settings: &Settings) -> Result<(), SiteError> {
        render(&self.variables(settings)).map(|_| ())
    }

    /// Makes the directories, and returns what tells this site from others, made at the first call.
    ///
    /// # Errors
    ///
    /// [`SiteError::File`].
    pub fn prepare(&self) -> Result<String, SiteError> {
        let make = |path: &Path, mode| {
            let made = DirBuilder::new().recursive(true).mode(mode).create(path);
            made.map_err(|source| SiteError::File { path: path.to_owned(), source })
        };
        make(&self.records, 0o755)?;
        make(&self.directory, 0o700)?;
        make(&self.broker(), 0o700)?;
        let path = self.identity_file();
        let found = match fs::read_to_string(&path) {
            Ok(found) => found.trim().to_owned(),
            Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
            Err(source) => return Err(SiteError::File { path, source }),
        };
        if !found.is_empty() {
            return Ok(found);
        }
        let error = |source| SiteError::File { path: path.clone(), source };
        let made = fs::read_to_string(RANDOM_NAME).map_err(error)?.trim().to_owned();
        replace_secret(&path, made.as_bytes()).map_err(error)?;
        Ok(made)
    }

    /// Keeps what a join has given, or has given anew.
    ///
    /// # Errors
    ///
    /// [`SiteError`]; the files that are there are whole, those before or those after.
    pub fn keep(
        &self,
        settings: &Settings,
        psk: &SecretBytes,
        credentials: &BrokerCredentials,
    ) -> Result<(), SiteError> {
        let variables = render(&self.variables(settings))?;
        let broker = self.broker();
        let write = |path: PathBuf, bytes: &[u8]| {
            replace_secret(&path, bytes).map_err(|source| SiteError::File { path: path.clone(), source })
        };
        write(broker.join("namespace"), credentials.namespace.as_bytes())?;
        match &credentials.ca {
            Some(ca) => write(broker.join("ca.crt"), ca)?,
            None => remove(&broker.join("ca.crt"))?,
        }
        write(broker.join("psk"), STANDARD.encode(psk.expose()).as_bytes())?;
        write(broker.join("token"), credentials.token.expose())?;
        write(self.variables_file(), variables.as_bytes())
    }

    /// Deletes what a join has given; the identity stays, so that the site may join by its id again.
    ///
    /// # Errors
    ///
    /// [`SiteError::File`].
    pub fn forget(&self) -> Result<(), SiteError> {
        let broker = self.broker();
        // All of it: a write that was broken off may have left a part of a secret.
        match fs::remove_dir_all(&broker) {
            Err(source) if source.kind() != ErrorKind::NotFound => {
                return Err(SiteError::File { path: broker, source });
            }
            _ => {}
        }
        remove(&self.variables_file())
    }

    fn variables(&self, settings: &Settings) -> BTreeMap<&'static str, String> {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let mut variables = settings.variables();
        variables.extend([
            ("CULVERT_RECORDS", text(&self.records)),
            ("CULVERT_BROKER_SECRET", text(&self.broker())),
            ("CULVERT_PSK_FILE", text(&self.broker().join("psk"))),
        ]);
        variables
    }
}

fn remove(path: &Path) -> Result<(), SiteError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != ErrorKind::NotFound => Err(SiteError::File { path: path.to_owned(), source }),
        _ => Ok(()),
    }
}

/// Writes variables as both a shell and systemd read them.
fn render(variables: &BTreeMap<&'static str, String>) -> Result<String, SiteError> {
    let mut text = HEADER.to_owned();
    for (&variable, value) in variables {
        if value.contains(['\'', '\n', '\\']) {
            return Err(SiteError::Value { variable, value: value.clone() });
        }
        let _ = writeln!(text, "{variable}='{value}'");
    }
    Ok(text)
}

/// Reads what [`render`] writes; the error is the number of the line that is not understood.
fn parse(text: &str) -> Result<BTreeMap<String, String>, usize> {
    let lines = (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty() && !line.starts_with('#'));
    let read = |(number, line): (usize, &str)| {
        let (name, value) = line.split_once('=').ok_or(number)?;
        let value = value.strip_prefix('\'').and_then(|value| value.strip_suffix('\'')).unwrap_or(value);
        Ok((name.to_owned(), value.to_owned()))
    };
    lines.map(read).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::networks::Networks;

    fn settings() -> Settings {
        Settings {
            cluster: "edge".parse().unwrap(),
            networks: Networks {
                plugin: "none".to_owned(),
                pods: vec!["10.9.0.0/16".parse().unwrap(), "10.10.0.0/16".parse().unwrap()],
                services: vec![],
            },
            global: vec![],
            broker_url: "https://203.0.113.1:6443".to_owned(),
            broker_namespace: "ns".to_owned(),
            variables: BTreeMap::from([("SUBMARINER_PUBLICIP", "api:a.b/c?d&e=$f".to_owned())]),
        }
    }

    fn credentials(token: &str, ca: Option<&str>) -> BrokerCredentials {
        BrokerCredentials {
            namespace: "ns".to_owned(),
            token: token.as_bytes().to_vec().into(),
            expires: None,
            ca: ca.map(|ca| ca.as_bytes().to_vec()),
        }
    }

    #[test]
    fn what_a_join_gives_is_kept_for_the_daemons_and_for_nobody_else() {
        let root = tempfile::tempdir().unwrap();
        let site = Site::of_records(&root.path().join("records")).unwrap();
        assert_eq!(site.joined().unwrap(), None);
        let identity = site.prepare().unwrap();
        assert_eq!(identity.len(), 36, "{identity}");
        let psk = SecretBytes::from(b"psk".to_vec());
        site.keep(&settings(), &psk, &credentials("one", Some("ca"))).unwrap();
        site.keep(&settings(), &psk, &credentials("two", None)).unwrap();

        let variables = site.joined().unwrap().unwrap();
        assert_eq!(variables["SUBMARINER_CLUSTERCIDR"], "10.9.0.0/16,10.10.0.0/16");
        assert_eq!(variables["SUBMARINER_PUBLICIP"], "api:a.b/c?d&e=$f");
        assert_eq!(variables["BROKER_K8S_APISERVER"], "203.0.113.1:6443");
        assert_eq!(variables["CULVERT_RECORDS"], site.records().to_str().unwrap());
        let broker = Path::new(&variables["CULVERT_BROKER_SECRET"]);
        assert_eq!(fs::read_to_string(broker.join("token")).unwrap(), "two");
        assert!(!broker.join("ca.crt").exists());
        assert_eq!(fs::read_to_string(&variables["CULVERT_PSK_FILE"]).unwrap(), "cHNr");
        let text = fs::read_to_string(site.variables_file()).unwrap();
        assert!(!text.contains("two") && !text.contains("cHNr"), "{text}");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(broker), mode(&broker.join("token"))), (0o700, 0o600));

        fs::write(broker.join("token.new"), "half").unwrap();
        site.forget().unwrap();
        site.forget().unwrap();
        assert_eq!(site.joined().unwrap(), None);
        assert!(!broker.exists());
        assert_eq!(site.prepare().unwrap(), identity, "it joins as who it was");
    }

    #[test]
    fn what_a_shell_would_read_otherwise_is_refused() {
        for value in ["it's", "two\nlines", "back\\slash"] {
            let variables = BTreeMap::from([("SUBMARINER_PUBLICIP", value.to_owned())]);
            assert!(render(&variables).unwrap_err().to_string().starts_with("SUBMARINER_PUBLICIP: "), "{value}");
        }
        assert_eq!(parse("# a\n\nA='1'\nB=2\nC\n"), Err(5));
    }

    #[test]
    fn records_need_room_beside_them() {
        for wrong in ["/", "/x/site"] {
            let error = Site::of_records(Path::new(wrong)).unwrap_err().to_string();
            assert!(error.starts_with(&format!("--records {wrong}: ")), "{error}");
        }
    }
}
