//! The custom resource definitions as files: what `crds/` holds is made from the types, never written by hand.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

use super::{
    NodeStorage, StorageFencePolicy, StorageFenceRemediation, StorageFenceRemediationTemplate,
    StorageFenceRequest,
};

const HEADER: &str = "# Generated from src/api by `storage-fence crds`: do not edit.\n";

/// Why the files could not be made, or are not what they should be.
#[derive(Debug, thiserror::Error)]
pub enum CrdError {
    /// The definition has no YAML form.
    #[error("the definition of {name} cannot be written as YAML: {source}")]
    Yaml {
        /// Name of the definition.
        name: String,
        /// What serde says.
        source: serde_saphyr::ser::Error,
    },
    /// A file cannot be written or read.
    #[error("{path}: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
    /// Files that differ from the types.
    #[error("out of date: {}. Run `storage-fence crds {}` and commit what it writes", .files.join(", "), .dir.display())]
    OutOfDate {
        /// The folder.
        dir: PathBuf,
        /// Names of the files.
        files: Vec<String>,
    },
}

/// Every definition, in the order in which they are worth reading.
#[must_use]
pub fn definitions() -> Vec<CustomResourceDefinition> {
    vec![
        StorageFenceRequest::crd(),
        StorageFencePolicy::crd(),
        NodeStorage::crd(),
        StorageFenceRemediation::crd(),
        StorageFenceRemediationTemplate::crd(),
    ]
}

/// File names and contents of all definitions.
///
/// # Errors
/// When a definition has no YAML form.
pub fn files() -> Result<Vec<(String, String)>, CrdError> {
    definitions()
        .into_iter()
        .map(|crd| {
            let name = crd.metadata.name.clone().unwrap_or_default();
            match serde_saphyr::to_string(&crd) {
                Ok(yaml) => Ok((format!("{name}.yaml"), format!("{HEADER}{yaml}"))),
                Err(source) => Err(CrdError::Yaml { name, source }),
            }
        })
        .collect()
}

/// Writes the definitions into a folder, which is made if need be.
///
/// # Errors
/// When a file cannot be written.
pub fn write(dir: &Path) -> Result<(), CrdError> {
    let failed = |path: &Path, source| CrdError::Io {
        path: path.to_owned(),
        source,
    };
    fs::create_dir_all(dir).map_err(|e| failed(dir, e))?;
    for (name, yaml) in files()? {
        let path = dir.join(name);
        fs::write(&path, yaml).map_err(|e| failed(&path, e))?;
    }
    Ok(())
}

/// Compares a folder with the definitions, and writes nothing.
///
/// # Errors
/// When a file is missing or differs, with the names of all that do.
pub fn check(dir: &Path) -> Result<(), CrdError> {
    let stale: Vec<String> = files()?
        .into_iter()
        .filter(|(name, yaml)| {
            fs::read_to_string(dir.join(name)).map_or(true, |found| found != *yaml)
        })
        .map(|(name, _)| name)
        .collect();
    if stale.is_empty() {
        Ok(())
    } else {
        Err(CrdError::OutOfDate {
            dir: dir.to_owned(),
            files: stale,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_up_to_date_until_it_is_changed() {
        let dir = tempfile::tempdir().unwrap();
        assert!(
            matches!(check(dir.path()), Err(CrdError::OutOfDate { files, .. }) if files.len() == definitions().len())
        );
        write(dir.path()).unwrap();
        check(dir.path()).unwrap();
        let file = dir.path().join("nodestorages.storagefence.io.yaml");
        fs::write(&file, fs::read_to_string(&file).unwrap() + "# by hand\n").unwrap();
        let error = check(dir.path()).unwrap_err().to_string();
        assert!(error.contains("nodestorages"), "{error}");
        assert!(!error.contains("storagefencerequests"), "{error}");
    }

    /// YAML that reads back as the same definition: quoting is where generators of YAML go wrong.
    #[test]
    fn the_files_read_back_as_the_definitions() {
        for (crd, (name, yaml)) in definitions().into_iter().zip(files().unwrap()) {
            let back: serde_json::Value = serde_saphyr::from_str(&yaml).unwrap();
            assert_eq!(back, serde_json::to_value(&crd).unwrap(), "{name}");
        }
    }

    /// `kubectl explain` is the first documentation that anybody meets: every field teaches.
    #[test]
    fn every_field_has_a_description() {
        fn walk(path: &str, schema: &serde_json::Value, bare: &mut Vec<String>) {
            for (name, property) in schema["properties"].as_object().into_iter().flatten() {
                let here = format!("{path}.{name}");
                if property["description"]
                    .as_str()
                    .unwrap_or_default()
                    .is_empty()
                {
                    bare.push(here.clone());
                }
                walk(&here, property, bare);
                walk(&format!("{here}[]"), &property["items"], bare);
            }
        }
        let mut bare = Vec::new();
        for crd in definitions() {
            let json = serde_json::to_value(&crd).unwrap();
            let kind = json["spec"]["names"]["kind"].as_str().unwrap().to_owned();
            let schema = &json["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
            let about = schema["description"].as_str().unwrap();
            assert!(!about.starts_with("Auto-generated"), "{kind}: {about}");
            for part in ["spec", "status"] {
                walk(
                    &format!("{kind}.{part}"),
                    &schema["properties"][part],
                    &mut bare,
                );
            }
        }
        assert!(bare.is_empty(), "no description: {bare:#?}");
    }
}
