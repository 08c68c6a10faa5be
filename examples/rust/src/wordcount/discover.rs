//! Finding the input: every text file below some directories, in batches.

use std::env;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::count::Batch;

/// The lock file of this very build: every machine that built this program has these packages' sources.
const LOCK_FILE: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.lock"));

/// Larger files are somebody's data, and would be one worker's whole day.
const LARGEST_FILE: u64 = 8 << 20;

/// Why there is nothing to count.
#[derive(Debug)]
pub enum Error {
    /// Neither `CARGO_HOME` nor `HOME` says where cargo keeps its downloads.
    NoCargoHome,
    /// Cargo keeps none of this build's sources where it usually does.
    NoSources(PathBuf),
    /// A directory holds no text file.
    NoText(Vec<PathBuf>),
    /// A directory cannot be read.
    Unreadable(PathBuf, io::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoCargoHome => {
                f.write_str("neither CARGO_HOME nor HOME is set, so cargo's downloads cannot be found; name a directory to count")
            }
            Self::NoSources(place) => write!(
                f,
                "no source of this build's packages in {}; run `cargo fetch`, or name a directory to count",
                place.display()
            ),
            Self::NoText(places) => {
                let places: Vec<String> = places.iter().map(|place| place.display().to_string()).collect();
                write!(f, "no text file below {}; name another directory", places.join(", "))
            }
            Self::Unreadable(place, error) => write!(f, "cannot read {}: {error}", place.display()),
        }
    }
}

impl std::error::Error for Error {}

/// A text file and its size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextFile {
    /// Where it lies.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
}

/// Returns the folders into which cargo unpacked the packages of this program's lock file.
///
/// # Errors
///
/// When cargo's folder is unknown or holds none of them.
pub fn sources_of_this_build() -> Result<Vec<PathBuf>, Error> {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home
        .or_else(|| env::home_dir().map(|home| home.join(".cargo")))
        .ok_or(Error::NoCargoHome)?;
    let registries = home.join("registry").join("src");
    // One folder per registry the machine uses; the same package may lie in two of them.
    let mut roots: Vec<PathBuf> = match fs::read_dir(&registries) {
        Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
        Err(_) => return Err(Error::NoSources(registries)),
    };
    roots.sort();
    let folders: Vec<PathBuf> = packages(LOCK_FILE)
        .filter_map(|package| {
            roots
                .iter()
                .map(|root| root.join(&package))
                .find(|folder| folder.is_dir())
        })
        .collect();
    if folders.is_empty() {
        return Err(Error::NoSources(registries));
    }
    Ok(folders)
}

/// Returns `name-version` of every package of a lock file that came from a registry.
fn packages(lock_file: &str) -> impl Iterator<Item = String> {
    lock_file
        .split("[[package]]")
        .skip(1)
        .filter_map(|package| {
            let value = |key: &str| {
                let lines = package.lines();
                let mut values = lines.filter_map(|line| {
                    line.strip_prefix(key)?
                        .strip_prefix(" = \"")?
                        .strip_suffix('"')
                });
                values.next()
            };
            value("source")?.starts_with("registry+").then_some(())?;
            Some(format!("{}-{}", value("name")?, value("version")?))
        })
}

/// Returns every text file below the places, in the order of their names; links are not followed.
///
/// A text is a file without a zero byte that is UTF-8. Each file is read once to know that, so the measurements
/// that follow all find the input in the system's cache.
///
/// # Errors
///
/// When a place cannot be read, or nothing below any of them is text.
pub fn text_files(places: &[PathBuf]) -> Result<Vec<TextFile>, Error> {
    let mut found = Vec::new();
    for place in places {
        walk(place, &mut found).map_err(|error| Error::Unreadable(place.clone(), error))?;
    }
    if found.is_empty() {
        return Err(Error::NoText(places.to_vec()));
    }
    Ok(found)
}

fn walk(place: &Path, found: &mut Vec<TextFile>) -> io::Result<()> {
    if !place.is_dir() {
        found.extend(text_file(place)?);
        return Ok(());
    }
    let mut entries = fs::read_dir(place)?.collect::<io::Result<Vec<_>>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let kind = entry.file_type()?;
        if kind.is_dir() {
            walk(&entry.path(), found)?;
        } else if kind.is_file() {
            found.extend(text_file(&entry.path())?);
        }
    }
    Ok(())
}

fn text_file(path: &Path) -> io::Result<Option<TextFile>> {
    if fs::metadata(path)?.len() > LARGEST_FILE {
        return Ok(None);
    }
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        // Somebody else's file in a folder of ours is no reason to stop.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(None),
        Err(error) => return Err(error),
    };
    let is_text = !bytes.contains(&0) && str::from_utf8(&bytes).is_ok();
    Ok(is_text.then(|| TextFile {
        path: path.to_owned(),
        bytes: bytes.len() as u64,
    }))
}

/// Puts files together until a batch has about `bytes`, so that no task is too small to be worth handing over.
pub fn batches(files: Vec<TextFile>, bytes: u64) -> Vec<Batch> {
    let mut all = Vec::new();
    let mut batch = Batch::default();
    for file in files {
        batch.files.push(file.path);
        batch.bytes += file.bytes;
        if batch.bytes >= bytes {
            all.push(std::mem::take(&mut batch));
        }
    }
    if !batch.files.is_empty() {
        all.push(batch);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_come_from_registries_only() {
        let lock_file = r#"
version = 4

[[package]]
name = "here"
version = "0.1.0"
dependencies = [
 "there",
]

[[package]]
name = "there"
version = "1.2.3"
source = "registry+https://example.org/index"
"#;
        assert_eq!(packages(lock_file).collect::<Vec<_>>(), ["there-1.2.3"]);
    }

    #[test]
    fn this_build_has_sources() {
        let folders = sources_of_this_build().unwrap();
        assert!(
            folders
                .iter()
                .any(|folder| folder.to_string_lossy().contains("serde-1")),
            "{folders:?}"
        );
    }

    #[test]
    fn only_text_is_found_and_nothing_is_an_error() {
        let folder = env::temp_dir().join(format!("phalanx-discover-{}", std::process::id()));
        fs::create_dir_all(folder.join("deep")).unwrap();
        let nothing = text_files(std::slice::from_ref(&folder)).unwrap_err();
        fs::write(folder.join("b.txt"), "two words").unwrap();
        fs::write(folder.join("zero"), b"a\0b").unwrap();
        fs::write(folder.join("latin"), b"\xe9t\xe9").unwrap();
        fs::write(folder.join("deep/a.txt"), "one").unwrap();
        let found = text_files(std::slice::from_ref(&folder)).unwrap();
        fs::remove_dir_all(&folder).unwrap();

        assert!(
            nothing.to_string().contains("no text file below"),
            "{nothing}"
        );
        let names: Vec<_> = found
            .iter()
            .map(|file| (file.path.file_name().unwrap().to_str().unwrap(), file.bytes))
            .collect();
        assert_eq!(names, [("b.txt", 9), ("a.txt", 3)]);
    }

    #[test]
    fn batches_lose_no_file() {
        let file = |bytes| TextFile {
            path: format!("{bytes}").into(),
            bytes,
        };
        let all = batches([1, 9, 30, 2, 3].map(file).to_vec(), 10);
        assert_eq!(
            all.iter().map(|batch| batch.bytes).collect::<Vec<_>>(),
            [10, 30, 5]
        );
        assert_eq!(all.iter().map(|batch| batch.files.len()).sum::<usize>(), 5);
    }
}
