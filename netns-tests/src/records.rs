//! Record stores as an outsider reads and writes them: plain YAML, without Culvert's own types. A test that shared the
//! code under test would share its mistakes.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// Reads all records of a kind from a store; a kind without a directory has none.
pub fn records(root: &Path, plural: &str) -> Result<Vec<Value>> {
    let directory = root.join(plural);
    let entries = match fs::read_dir(&directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && root.exists() => return Ok(Vec::new()),
        Err(error) => bail!("cannot read {}: {error}", directory.display()),
    };
    let mut records = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            records.push(serde_yaml_ng::from_str(&text).with_context(|| format!("no YAML in {}", path.display()))?);
        }
    }
    Ok(records)
}

/// Puts a text into a store as the record of this kind and name, in one step.
pub fn write_record(root: &Path, plural: &str, name: &str, text: &str) -> Result<()> {
    let directory = root.join(plural);
    fs::create_dir_all(&directory)?;
    let temporary = directory.join(format!(".{name}.new"));
    fs::write(&temporary, text)?;
    let path = directory.join(format!("{name}.yaml"));
    fs::rename(temporary, &path).with_context(|| format!("cannot write {}", path.display()))
}

/// Takes a record out of a store.
pub fn delete_record(root: &Path, plural: &str, name: &str) -> Result<()> {
    let path = root.join(plural).join(format!("{name}.yaml"));
    fs::remove_file(&path).with_context(|| format!("cannot delete {}", path.display()))
}
