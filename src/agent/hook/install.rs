//! Putting the hook on the host: the binary, and the setting in lvm.conf; taking both away again; and looking whether it is in force.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use super::conf;

/// Where the binary goes on the host unless told otherwise.
pub const DEFAULT_BINARY: &str = "/usr/local/sbin/storage-fence";
const COMMAND: &str = "kill-hook";
const CONF: &str = "etc/lvm/lvm.conf";
/// Overrides lvm.conf on this host.
const LOCAL_CONF: &str = "etc/lvm/lvmlocal.conf";

/// Options of `storage-fence install-hook`.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Where the host's root is mounted. Only etc/lvm and the binary's folder are used.
    #[arg(long, env = "HOST_ROOT", default_value = "/")]
    pub host_root: PathBuf,
    /// Where the binary is to be on the host: a folder on the host's own disk, not on the SAN, from which programs may be run.
    #[arg(long, env = "KILL_HOOK_BINARY", default_value = DEFAULT_BINARY)]
    pub binary: PathBuf,
    /// Change nothing; fail unless the hook is in force.
    #[arg(long, conflicts_with = "remove")]
    pub check: bool,
    /// Take the setting out of lvm.conf, and remove the binary.
    #[arg(long)]
    pub remove: bool,
    /// Set it even if another kill command is set.
    #[arg(long)]
    pub force: bool,
}

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file.
    #[error("{path} cannot be {what}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// lvm.conf makes no sense.
    #[error("{path} is not understood, so it was not changed: {why}. Does `lvmconfig` like it?")]
    Conf {
        /// Which.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// Somebody else's command.
    #[error(
        "{path} sets another kill command already: {command}. It was left as it is; --force replaces it"
    )]
    Other {
        /// Which file.
        path: PathBuf,
        /// The command.
        command: String,
    },
    /// It was done, and is not in force all the same; or it was only looked at.
    #[error("the kill hook is not in force: {0}")]
    NotInForce(String),
    /// A path that cannot be used.
    #[error("{0} cannot be the hook's path: it has to be absolute, without spaces")]
    Path(PathBuf),
}

/// Whether lvmlockctl would run the hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It would, and it is this very program.
    InForce,
    /// No kill command is set.
    NotInstalled,
    /// Another command is set.
    OtherCommand(String),
    /// It is set, and would not work.
    Broken(String),
}

impl State {
    /// For programs.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::InForce => "InForce",
            Self::NotInstalled => "NotInstalled",
            Self::OtherCommand(_) => "OtherCommand",
            Self::Broken(_) => "Broken",
        }
    }

    /// For people: what it means, and what to do next.
    #[must_use]
    pub fn message(&self) -> String {
        match self {
            Self::InForce => {
                "lvmlockctl runs the hook when a lease is lost, with or without the agent".into()
            }
            Self::NotInstalled => format!(
                "no kill command is set ({}): without the agent nobody fences. `storage-fence install-hook`, or agent.killHook.enabled",
                conf::KEY
            ),
            Self::OtherCommand(command) => format!(
                "another kill command is set: {command}. Remove it, or `storage-fence install-hook --force`"
            ),
            Self::Broken(why) => format!("{why}. `storage-fence install-hook` puts it right"),
        }
    }
}

type Result<T> = std::result::Result<T, Error>;

fn error<'a>(path: &'a Path, what: &'static str) -> impl FnOnce(io::Error) -> Error + 'a {
    move |source| Error::File {
        path: path.to_owned(),
        what,
        source,
    }
}

/// Installs, removes or checks. What was done, in words.
///
/// # Errors
/// When it could not be done; or it was, and is not in force.
pub fn install(options: &Options) -> Result<String> {
    let command = command(&options.binary)?;
    let root = &options.host_root;
    if options.remove {
        return remove(root, &options.binary, &command);
    }
    if !options.check {
        put_setting(root, &command, options.force)?;
        put_binary(&under(root, &options.binary))?;
    }
    match state(root)? {
        State::InForce => Ok(format!(
            "The kill hook is in force: {} = \"{command}\"",
            conf::KEY
        )),
        other => Err(Error::NotInForce(other.message())),
    }
}

/// Whether lvmlockctl on that host would run this program.
///
/// # Errors
/// When lvm.conf cannot be read.
pub fn state(root: &Path) -> Result<State> {
    let local = read_conf(&root.join(LOCAL_CONF));
    let local = match local {
        Err(Error::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => None,
        other => set_in(&root.join(LOCAL_CONF), &other?)?,
    };
    let main = root.join(CONF);
    let set = match local {
        Some(value) => Some(value),
        None => set_in(&main, &read_conf(&main)?)?,
    };
    let Some(set) = set.filter(|value| !value.trim().is_empty()) else {
        return Ok(State::NotInstalled);
    };
    let mut words = set.split_whitespace();
    let (Some(path), Some(COMMAND), None) = (words.next(), words.next(), words.next()) else {
        return Ok(State::OtherCommand(set));
    };
    let path = under(root, Path::new(path));
    Ok(match runnable(&path) {
        Ok(true) => State::InForce,
        Ok(false) => State::Broken(format!("{} is another version", path.display())),
        Err(why) => State::Broken(format!("{} cannot be run: {why}", path.display())),
    })
}

/// Whether it is this very program, and may be run.
fn runnable(path: &Path) -> io::Result<bool> {
    let there = fs::metadata(path)?;
    if !there.is_file() || there.permissions().mode() & 0o111 == 0 {
        return Err(io::Error::other("it is no program"));
    }
    let own = File::open(OWN)?;
    if own.metadata()?.size() != there.size() {
        return Ok(false);
    }
    same(own, File::open(path)?)
}

const OWN: &str = "/proc/self/exe";

fn same(mut own: File, mut other: File) -> io::Result<bool> {
    let (mut ours, mut theirs) = ([0; 16384], [0; 16384]);
    loop {
        let n = own.read(&mut ours)?;
        if n == 0 {
            return Ok(other.read(&mut theirs)? == 0);
        }
        let there = theirs.get_mut(..n).unwrap_or_default();
        match other.read_exact(there) {
            Ok(()) if ours.get(..n) == Some(there) => {}
            Ok(()) => return Ok(false),
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
            Err(e) => return Err(e),
        }
    }
}

fn command(binary: &Path) -> Result<String> {
    let text = binary.to_str().filter(|p| {
        p.starts_with('/')
            && p.chars()
                .all(|c| c.is_ascii_graphic() && !"\"\\#".contains(c))
    });
    match text {
        Some(path) => Ok(format!("{path} {COMMAND}")),
        None => Err(Error::Path(binary.to_owned())),
    }
}

fn under(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

fn read_conf(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(error(path, "read"))
}

fn set_in(path: &Path, text: &str) -> Result<Option<String>> {
    conf::value(text).map_err(|why| Error::Conf {
        path: path.to_owned(),
        why,
    })
}

fn put_setting(root: &Path, command: &str, force: bool) -> Result<()> {
    let path = root.join(CONF);
    let text = read_conf(&path)?;
    let before = set_in(&path, &text)?.filter(|v| !v.trim().is_empty());
    if let Some(other) = before.filter(|v| !is_ours(v))
        && !force
    {
        return Err(Error::Other {
            path,
            command: other,
        });
    }
    let new = conf::set(&text, command).map_err(|why| Error::Conf {
        path: path.clone(),
        why,
    })?;
    replace_conf(&path, &text, &new)
}

/// One of ours, perhaps at another place.
fn is_ours(value: &str) -> bool {
    value.ends_with(&format!("/storage-fence {COMMAND}"))
}

/// In one step, with the same owner and mode; not at all when nothing changes.
fn replace_conf(path: &Path, old: &str, new: &str) -> Result<()> {
    if old == new {
        return Ok(());
    }
    let there = fs::symlink_metadata(path).map_err(error(path, "looked at"))?;
    if there.is_symlink() {
        // A rename would replace the link, and what it points to may lie outside of what is mounted here.
        let source = io::Error::other("it is a symbolic link: run install-hook on the host");
        return Err(error(path, "replaced")(source));
    }
    put(path, there.mode() & 0o7777, |file| {
        file.write_all(new.as_bytes())
    })?;
    std::os::unix::fs::chown(path, Some(there.uid()), Some(there.gid()))
        .map_err(error(path, "given its owner"))
}

fn put_binary(path: &Path) -> Result<()> {
    if runnable(path).unwrap_or(false) {
        return Ok(());
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(error(folder, "made"))?;
    }
    let mut own = File::open(OWN).map_err(error(Path::new(OWN), "read"))?;
    put(path, 0o755, |file| io::copy(&mut own, file).map(drop))
}

/// A new file in the place of the old one, whole or not at all, also after a power cut.
fn put(path: &Path, mode: u32, fill: impl FnOnce(&mut File) -> io::Result<()>) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let new = path.with_file_name(name);
    let write = || {
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(mode)
            .open(&new)?;
        fill(&mut file)?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    write().map_err(|e| {
        // Half of it is of no use to anybody.
        let _ = fs::remove_file(&new);
        error(path, "written")(e)
    })
}

fn remove(root: &Path, binary: &Path, command: &str) -> Result<String> {
    let path = root.join(CONF);
    let text = read_conf(&path)?;
    let new = conf::unset(&text, |v| v == command || is_ours(v)).map_err(|why| Error::Conf {
        path: path.clone(),
        why,
    })?;
    // The setting first: lvmlockctl must never be told to run what is not there.
    replace_conf(&path, &text, &new)?;
    let file = under(root, binary);
    match fs::remove_file(&file) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(error(&file, "removed")(e)),
        _ => Ok("The kill hook is removed: without the agent nobody fences".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STOCK: &str = "global {\n\tumask = 077\n}\n";

    fn host() -> (tempfile::TempDir, Options) {
        let root = tempfile::tempdir().expect("tempdir");
        fs::create_dir_all(root.path().join("etc/lvm")).expect("mkdir");
        fs::write(root.path().join(CONF), STOCK).expect("write");
        let options = Options {
            host_root: root.path().to_owned(),
            binary: DEFAULT_BINARY.into(),
            check: false,
            remove: false,
            force: false,
        };
        (root, options)
    }

    fn conf_of(options: &Options) -> String {
        fs::read_to_string(options.host_root.join(CONF)).expect("read")
    }

    #[test]
    fn it_is_put_in_force_checked_and_removed() {
        let (_root, options) = host();
        let check = Options {
            check: true,
            ..options.clone()
        };
        let why = install(&check).expect_err("not yet").to_string();
        assert!(why.contains("install-hook"), "{why}");
        let conf = options.host_root.join(CONF);
        fs::set_permissions(&conf, fs::Permissions::from_mode(0o640)).expect("chmod");
        install(&options).expect("install");
        install(&check).expect("in force");
        let text = conf_of(&options);
        let inode = fs::metadata(&conf).expect("stat").ino();
        install(&options).expect("again");
        assert_eq!(conf_of(&options), text);
        let after = fs::metadata(&conf).expect("stat");
        assert_eq!((after.ino(), after.mode() & 0o777), (inode, 0o640));
        let binary = under(&options.host_root, Path::new(DEFAULT_BINARY));
        assert!(
            same(
                File::open(&binary).expect("open"),
                File::open(OWN).expect("open")
            )
            .expect("read")
        );
        let remove = Options {
            remove: true,
            ..options.clone()
        };
        install(&remove).expect("remove");
        assert_eq!(
            (conf_of(&options).as_str(), binary.exists()),
            (STOCK, false)
        );
        install(&remove).expect("nothing left to do");
    }

    #[test]
    fn somebody_elses_command_is_not_replaced_by_mistake() {
        let (_root, options) = host();
        let theirs = "global {\n\tlvmlockctl_kill_command = \"/sbin/theirs\"\n}\n";
        fs::write(options.host_root.join(CONF), theirs).expect("write");
        assert_eq!(
            state(&options.host_root).expect("state"),
            State::OtherCommand("/sbin/theirs".into())
        );
        let why = install(&options).expect_err("refused").to_string();
        assert!(
            why.contains("/sbin/theirs") && why.contains("--force"),
            "{why}"
        );
        assert_eq!(conf_of(&options), theirs);
        let force = Options {
            force: true,
            ..options.clone()
        };
        install(&force).expect("forced");
    }

    #[test]
    fn what_would_not_work_is_told() {
        let (_root, options) = host();
        install(&options).expect("install");
        let binary = under(&options.host_root, Path::new(DEFAULT_BINARY));
        fs::set_permissions(&binary, fs::Permissions::from_mode(0o644)).expect("chmod");
        assert!(matches!(state(&options.host_root), Ok(State::Broken(_))));
        fs::write(&binary, "another").expect("write");
        fs::set_permissions(&binary, fs::Permissions::from_mode(0o755)).expect("chmod");
        let old = state(&options.host_root).expect("state");
        assert!(
            matches!(&old, State::Broken(why) if why.contains("version")),
            "{old:?}"
        );
        install(&options).expect("an update");
        // The local file has the last word, as for LVM.
        let local = options.host_root.join(LOCAL_CONF);
        fs::write(&local, "global/lvmlockctl_kill_command = \"\"\n").expect("write");
        assert_eq!(
            state(&options.host_root).expect("state"),
            State::NotInstalled
        );
        assert!(matches!(install(&options), Err(Error::NotInForce(_))));
        fs::write(&local, "global {").expect("write");
        assert!(matches!(install(&options), Err(Error::Conf { .. })));
        fs::remove_file(&local).expect("remove");
        fs::remove_file(options.host_root.join(CONF)).expect("remove");
        let why = install(&options).expect_err("no lvm.conf").to_string();
        assert!(why.contains("lvm.conf"), "{why}");
        for path in ["relative", "/with space", "/quo\"te"] {
            let bad = Options {
                binary: path.into(),
                ..options.clone()
            };
            assert!(matches!(install(&bad), Err(Error::Path(_))), "{path}");
        }
    }
}
