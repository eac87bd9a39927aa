//! Holds the level table of ARCHITECTURE.md against the crates' dependencies.
//!
//! A crate may use what stands below it. Beside it, only words use words and the shell uses the shell: daemons and cores
//! stand alone. Decisions never see the wire, and pure crates never see what does I/O.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::Value;

const WORDS: u8 = 1;
const WIRE: u8 = 2;
const DECISIONS: u8 = 3;
const SHELL: u8 = 4;

/// What a crate of words or decisions may not use, since it does I/O.
const IMPURE: [&str; 4] = ["tokio", "rtnetlink", "tun-rs", "kube"];

/// A crate of the workspace.
#[derive(Debug)]
struct Package {
    /// Its folder, from the workspace's root.
    folder: String,
    dependencies: Vec<String>,
}

/// Checks all crates.
///
/// # Errors
///
/// Lists every arrow that the table does not have, and every crate that it does not name.
pub(crate) fn check(root: &Path) -> Result<()> {
    let text = fs::read_to_string(root.join("ARCHITECTURE.md")).context("cannot read ARCHITECTURE.md")?;
    let levels = levels(&text)?;
    let packages = packages(&crate::metadata()?, root)?;
    let wrong = violations(&levels, &packages);
    if !wrong.is_empty() {
        bail!("the crates do not follow the arrows of ARCHITECTURE.md:\n  {}", wrong.join("\n  "));
    }
    println!("{} crates follow the arrows of ARCHITECTURE.md.", packages.len());
    Ok(())
}

/// Reads the level table: lines of a level, names, and what they are for, two spaces between.
fn levels(text: &str) -> Result<BTreeMap<String, u8>> {
    let section = text.split("\n## ").find(|section| section.starts_with("The arrows"));
    let section = section.context("ARCHITECTURE.md has no section \"The arrows\"")?;
    let mut levels = BTreeMap::new();
    for line in section.lines().filter(|line| line.starts_with("    ")) {
        let mut columns = line.trim().splitn(3, "  ");
        let level = columns.next().unwrap_or_default();
        let level = level.parse().with_context(|| format!("the level table has no level in {line:?}"))?;
        for name in columns.next().unwrap_or_default().split(',') {
            levels.insert(name.trim().to_owned(), level);
        }
    }
    if levels.is_empty() {
        bail!("the section \"The arrows\" of ARCHITECTURE.md has no level table");
    }
    Ok(levels)
}

/// Returns the workspace's crates by name, but for xtask, which is a tool and no part of the product.
fn packages(metadata: &Value, root: &Path) -> Result<BTreeMap<String, Package>> {
    let mut packages = BTreeMap::new();
    for package in metadata["packages"].as_array().context("cargo metadata has no packages")? {
        let name = text(package, "name")?;
        let manifest = text(package, "manifest_path")?;
        let folder = Path::new(&manifest).parent().and_then(|folder| folder.strip_prefix(root).ok());
        let folder = folder.with_context(|| format!("{manifest} is not in the workspace"))?;
        let dependencies = package["dependencies"].as_array().context("a package has no dependencies")?;
        let dependencies = dependencies.iter().map(|dependency| text(dependency, "name")).collect::<Result<_>>()?;
        if name != "xtask" {
            packages.insert(name, Package { folder: folder.to_string_lossy().into_owned(), dependencies });
        }
    }
    Ok(packages)
}

fn text(value: &Value, key: &str) -> Result<String> {
    Ok(value[key].as_str().with_context(|| format!("cargo metadata has no {key:?}"))?.to_owned())
}

fn violations(levels: &BTreeMap<String, u8>, packages: &BTreeMap<String, Package>) -> Vec<String> {
    // The table names a folder in full, or by its last part.
    let level_of = |folder: &str| {
        let last = folder.rsplit('/').next().unwrap_or(folder);
        levels.get(folder).or_else(|| levels.get(last)).copied()
    };
    let mut wrong = Vec::new();
    for package in packages.values() {
        let folder = &package.folder;
        let Some(level) = level_of(folder) else {
            wrong.push(format!("{folder} is not in the level table"));
            continue;
        };
        for dependency in &package.dependencies {
            if matches!(level, WORDS | DECISIONS) && IMPURE.contains(&dependency.as_str()) {
                wrong.push(format!("{folder} (level {level}) is pure, but uses {dependency}"));
            }
            let Some(below) = packages.get(dependency) else { continue };
            let Some(other) = level_of(&below.folder) else { continue };
            let beside = other == level && matches!(level, WORDS | SHELL);
            let skipped = level == DECISIONS && other == WIRE;
            if !(other < level || beside) || skipped {
                wrong.push(format!("{folder} (level {level}) may not use {} (level {other})", below.folder));
            }
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "# A\n\n## The arrows\n\n    5  gateway, cli   wiring: flags\n    4  runtime, kernel  shell\n    \
                         3  gateway/core, agent/core   decisions\n    2  api  wire\n    1  model, netstate    words\n\n## B\n";

    fn check(crates: &[(&str, &str, &[&str])]) -> Vec<String> {
        let package = |(name, folder, dependencies): &(&str, &str, &[&str])| {
            let dependencies = dependencies.iter().map(|&name| name.to_owned()).collect();
            ((*name).to_owned(), Package { folder: (*folder).to_owned(), dependencies })
        };
        violations(&levels(TABLE).unwrap(), &crates.iter().map(package).collect())
    }

    #[test]
    fn the_table_is_read() {
        let levels = levels(TABLE).unwrap();
        assert_eq!((levels["gateway"], levels["gateway/core"], levels["netstate"], levels.len()), (5, 3, 1, 9));
    }

    #[test]
    fn arrows_down_and_beside_in_the_shell_are_right() {
        let crates: [(&str, &str, &[&str]); 5] = [
            ("gateway", "gateway", &["core", "runtime", "model", "tokio"]),
            ("core", "gateway/core", &["model", "prost"]),
            ("runtime", "libs/runtime", &["kernel", "tokio"]),
            ("kernel", "libs/kernel", &["model"]),
            ("model", "libs/model", &[]),
        ];
        assert_eq!(check(&crates), Vec::<String>::new());
    }

    #[test]
    fn every_other_arrow_is_named() {
        let crates: [(&str, &str, &[&str]); 7] = [
            ("agent", "agent/core", &[]),
            ("api", "libs/api", &["core"]),
            ("cli", "cli", &["gateway"]),
            ("core", "gateway/core", &["agent", "api", "tokio"]),
            ("gateway", "gateway", &[]),
            ("model", "libs/model", &["kube"]),
            ("stray", "stray", &[]),
        ];
        let wrong = [
            "libs/api (level 2) may not use gateway/core (level 3)",
            "cli (level 5) may not use gateway (level 5)",
            "gateway/core (level 3) may not use agent/core (level 3)",
            "gateway/core (level 3) may not use libs/api (level 2)",
            "gateway/core (level 3) is pure, but uses tokio",
            "libs/model (level 1) is pure, but uses kube",
            "stray is not in the level table",
        ];
        assert_eq!(check(&crates), wrong);
    }
}
