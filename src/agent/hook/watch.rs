//! The agent's eye on the hook: installs it if it is told to, and looks again and again whether it is in force.

use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::watch;

use super::install::{self, State, install, state};

/// The host's files change when somebody installs something, and seldom otherwise.
const LOOK: Duration = Duration::from_mins(1);

/// What the agent is told about the hook.
// Part of the agent's own options, which have the group of that name.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub struct Options {
    /// Where the host's root is mounted: etc/lvm and the folder of the kill hook's binary are all that is needed. Without it, whether the kill
    /// hook is in force is not looked at.
    #[arg(long, env = "HOST_ROOT")]
    pub host_root: Option<PathBuf>,
    /// Install the kill hook on the host, and update it.
    #[arg(long, env = "INSTALL_KILL_HOOK", requires = "host_root")]
    pub install_kill_hook: bool,
    /// Where its binary is to be on the host.
    #[arg(long, env = "KILL_HOOK_BINARY", default_value = install::DEFAULT_BINARY)]
    pub kill_hook_binary: PathBuf,
}

/// Looks, on a thread of its own: what it reads lies on the host's disk. None: it is not looked at.
///
/// # Errors
/// When the system has no thread to give.
pub fn watch(options: &Options) -> std::io::Result<watch::Receiver<Option<State>>> {
    let (tell, told) = watch::channel(None);
    let Some(root) = options.host_root.clone() else {
        return Ok(told);
    };
    let wanted = options.install_kill_hook.then(|| install::Options {
        host_root: root.clone(),
        binary: options.kill_hook_binary.clone(),
        check: false,
        remove: false,
        force: false,
    });
    let work = move || {
        loop {
            let now = look(&root, wanted.as_ref());
            tell.send_if_modified(|before| {
                let modified = before.as_ref() != Some(&now);
                if modified {
                    tracing::info!(state = now.reason(), message = now.message(), "kill hook");
                    *before = Some(now);
                }
                modified
            });
            if tell.is_closed() {
                return;
            }
            std::thread::sleep(LOOK);
        }
    };
    std::thread::Builder::new()
        .name("kill hook".into())
        .stack_size(256 * 1024)
        .spawn(work)?;
    Ok(told)
}

fn look(root: &std::path::Path, wanted: Option<&install::Options>) -> State {
    if let Some(options) = wanted
        && state(root).is_ok_and(|s| matches!(s, State::NotInstalled | State::Broken(_)))
        && let Err(error) = install(options)
    {
        return State::Broken(format!("it could not be installed: {error}"));
    }
    state(root).unwrap_or_else(|e| State::Broken(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_installs_when_told_to_and_never_over_another_command() {
        let root = tempfile::tempdir().expect("tempdir");
        let options = install::Options {
            host_root: root.path().to_owned(),
            binary: install::DEFAULT_BINARY.into(),
            check: false,
            remove: false,
            force: false,
        };
        assert!(matches!(look(root.path(), None), State::Broken(_)));
        let conf = root.path().join("etc/lvm/lvm.conf");
        std::fs::create_dir_all(root.path().join("etc/lvm")).expect("mkdir");
        std::fs::write(&conf, "").expect("write");
        assert_eq!(look(root.path(), None), State::NotInstalled);
        assert_eq!(look(root.path(), Some(&options)), State::InForce);
        let theirs = "global/lvmlockctl_kill_command = \"/x\"\n";
        std::fs::write(&conf, theirs).expect("write");
        let other = State::OtherCommand("/x".into());
        assert_eq!(look(root.path(), Some(&options)), other);
        assert_eq!(std::fs::read_to_string(&conf).expect("read"), theirs);
    }
}
