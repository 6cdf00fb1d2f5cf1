//! Where plugins lie, who may have written them, and the copy that is loaded.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::PluginError;

/// The environment's list of plugin folders, separated as `PATH` is.
pub const PATH_VARIABLE: &str = "FINETUNED_PLUGIN_PATH";

/// A plugin file that was found, and whether it may be loaded.
#[derive(Debug, Clone)]
pub struct Found {
    pub path: PathBuf,
    /// Why it is refused, in one line with the remedy.
    pub refused: Option<PluginError>,
}

/// The folders that are searched, first to last: those of
/// [`PATH_VARIABLE`], the user's, the system's.
pub fn folders() -> Vec<PathBuf> {
    let named = std::env::var_os(PATH_VARIABLE).map(|list| std::env::split_paths(&list).collect::<Vec<_>>());
    let home = std::env::var_os("HOME").map(PathBuf::from);
    let data = std::env::var_os("XDG_DATA_HOME").map(PathBuf::from);
    let data = data.filter(|path| path.is_absolute()).or_else(|| home.map(|home| home.join(".local/share")));
    let mut folders: Vec<PathBuf> = named.unwrap_or_default().into_iter().filter(|path| path.is_absolute()).collect();
    folders.extend(data.map(|data| data.join("finetuned/plugins")));
    folders.extend(
        ["/var/lib/finetuned/plugins", "/usr/local/lib/finetuned/plugins", "/usr/lib/finetuned/plugins"]
            .map(PathBuf::from),
    );
    folders
}

/// The plugin files in these folders, in order of folder and name. Files that
/// are no libraries by name are passed over; folders that do not exist too.
pub fn find(folders: &[PathBuf]) -> Vec<Found> {
    let mut seen = HashSet::new();
    let mut found = Vec::new();
    for folder in folders {
        let Ok(entries) = fs::read_dir(folder) else { continue };
        let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        paths.sort();
        for path in paths {
            let library = path.extension().is_some_and(|end| end == std::env::consts::DLL_EXTENSION);
            if library && seen.insert(path.clone()) {
                let refused = check_owner(&path).err();
                found.push(Found { path, refused });
            }
        }
    }
    found
}

/// Refuses a file that another user could have changed: the file and each
/// folder above it must belong to root or to this process's user, and must not
/// be writable by group or others (a sticky folder such as /tmp, where only an
/// owner can replace a file, is allowed above).
///
/// # Errors
/// [`PluginError::Refused`], with the path at fault and the remedy.
#[cfg(unix)]
pub fn check_owner(path: &Path) -> Result<(), PluginError> {
    use std::os::unix::fs::MetadataExt;
    let refused = |at: &Path, why: String| {
        PluginError::Refused(format!("plugin {} is refused: {} {why}", path.display(), at.display()))
    };
    let cannot = |at: &Path, error: std::io::Error| refused(at, format!("cannot be checked: {error}"));
    let real = fs::canonicalize(path).map_err(|error| cannot(path, error))?;
    let me = current_user();
    for at in real.ancestors() {
        let meta = fs::metadata(at).map_err(|error| cannot(at, error))?;
        let (owner, mode) = (meta.uid(), meta.mode());
        if owner != 0 && Some(owner) != me {
            return Err(refused(
                at,
                format!("belongs to user {owner}; give it to root or to the daemon's user (chown)"),
            ));
        }
        let sticky = meta.is_dir() && mode & 0o1000 != 0;
        if mode & 0o022 != 0 && !sticky {
            return Err(refused(at, format!("is writable by others; run: chmod go-w '{}'", at.display())));
        }
    }
    if !fs::metadata(&real).map_err(|error| cannot(&real, error))?.is_file() {
        return Err(refused(&real, "is no regular file".into()));
    }
    Ok(())
}

/// Other systems have no owner and mode of this kind.
#[cfg(not(unix))]
pub fn check_owner(_: &Path) -> Result<(), PluginError> {
    Ok(())
}

/// The effective user of this process.
#[cfg(unix)]
fn current_user() -> Option<u32> {
    unsafe extern "C" {
        fn geteuid() -> u32;
    }
    // SAFETY: the C library's `geteuid` takes nothing and cannot fail.
    Some(unsafe { geteuid() })
}

/// A plugin file copied to where nobody replaces it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// `<cache>/<sha256>.so`: what to load.
    pub path: PathBuf,
    /// Of the file's bytes, in hexadecimal.
    pub sha256: String,
}

/// Copies a plugin into `cache` under the hash of its bytes, so that replacing
/// the file never changes what a running job has loaded; hash and copy are of
/// the same bytes.
///
/// # Errors
/// When the file is refused ([`check_owner`]) or cannot be read or copied.
pub fn keep(path: &Path, cache: &Path) -> Result<Kept, PluginError> {
    check_owner(path)?;
    let failed = |at: &Path, error: std::io::Error| PluginError::system(at.display(), error);
    let bytes = fs::read(path).map_err(|error| failed(path, error))?;
    let sha256: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    fs::create_dir_all(cache).map_err(|error| failed(cache, error))?;
    let kept = cache.join(format!("{sha256}.{}", std::env::consts::DLL_EXTENSION));
    let whole = fs::read(&kept).is_ok_and(|copy| copy == bytes);
    if !whole {
        let aside = cache.join(format!(".{sha256}.{}", std::process::id()));
        fs::write(&aside, &bytes).map_err(|error| failed(&aside, error))?;
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            fs::set_permissions(&aside, fs::Permissions::from_mode(0o500)).map_err(|error| failed(&aside, error))?;
        }
        fs::rename(&aside, &kept).map_err(|error| failed(&kept, error))?;
    }
    Ok(Kept { path: kept, sha256 })
}

/// [`keep`] and [`load`](super::load()), in one.
pub fn keep_and_load(path: &Path, cache: &Path) -> Result<(Kept, Vec<crate::registry::Entry>), PluginError> {
    let kept = keep(path, cache)?;
    let entries = super::load(&kept.path, &kept.sha256)?;
    Ok((kept, entries))
}
