//! Where the files of a service go and what is run to start it: worked out
//! first, then carried out.

use std::path::{Path, PathBuf};

/// Whose service it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// systemd's, for the whole machine.
    System,
    /// systemd's, for one user.
    User,
    /// launchd's, for one user.
    Launchd,
}

const SYSTEM_UNIT: &str = include_str!("../../../config/service/finetuned.service");
const USER_UNIT: &str = include_str!("../../../config/service/finetuned-user.service");
const LAUNCH_AGENT: &str = include_str!("../../../config/service/org.finetuned.daemon.plist");
const LABEL: &str = "org.finetuned.daemon";
const UNIT: &str = "finetuned.service";

/// The system's configuration, written where there is none.
const SYSTEM_CONFIG: &str = "\
# The configuration of the system's finetuned. Every key, with its default and
# its reason, is in the finetuned.toml that ships with the program.
state_dir = \"/var/lib/finetuned\"

[control]
socket = \"/run/finetuned/finetuned.sock\"
";

/// The programs of the service.
#[derive(Debug, Clone)]
pub struct Programs {
    pub finetune: PathBuf,
    /// `None`: the daemon is `finetune daemon`.
    pub finetuned: Option<PathBuf>,
}

impl Programs {
    /// Beside this very program.
    ///
    /// # Errors
    /// The program's own path is unknown.
    pub fn of_process() -> std::io::Result<Programs> {
        let finetune = std::env::current_exe()?;
        let finetuned = finetune.with_file_name("finetuned");
        Ok(Programs { finetuned: finetuned.exists().then_some(finetuned), finetune })
    }

    fn daemon(&self) -> String {
        match &self.finetuned {
            Some(path) => quoted(path),
            None => format!("{} daemon", quoted(&self.finetune)),
        }
    }
}

/// A file to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewFile {
    pub path: PathBuf,
    pub text: String,
    /// A file that is there already is the user's, and stays.
    pub keep: bool,
}

/// A command to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    pub words: Vec<String>,
    /// Its failure does not matter (the user is there already).
    pub may_fail: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installation {
    pub copies: Vec<(PathBuf, PathBuf)>,
    pub files: Vec<NewFile>,
    pub steps: Vec<Step>,
    /// The service's own file.
    pub unit: PathBuf,
}

fn step(words: &str, may_fail: bool) -> Step {
    Step { words: words.split(' ').map(str::to_string).collect(), may_fail }
}

/// What `install` does.
pub fn install(scope: Scope, programs: &Programs, home: &Path) -> Installation {
    match scope {
        Scope::System => install_system(programs, home),
        Scope::User => {
            let unit = user_unit(home);
            let text = USER_UNIT
                .replace("/usr/bin/finetuned", &programs.daemon())
                .replace("/usr/bin/finetune ", &format!("{} ", quoted(&programs.finetune)));
            Installation {
                copies: Vec::new(),
                files: vec![NewFile { path: unit.clone(), text, keep: false }],
                steps: vec![
                    step("systemctl --user daemon-reload", false),
                    step(&format!("systemctl --user enable --now {UNIT}"), false),
                ],
                unit,
            }
        }
        Scope::Launchd => {
            let unit = launch_agent(home);
            let arguments: String = match &programs.finetuned {
                Some(path) => format!("<string>{}</string>", path.display()),
                None => format!("<string>{}</string>\n        <string>daemon</string>", programs.finetune.display()),
            };
            let text = LAUNCH_AGENT
                .replace("<string>/usr/local/bin/finetuned</string>", &arguments)
                .replace("@HOME@", &home.display().to_string());
            let load = Step {
                words: vec!["launchctl".into(), "load".into(), "-w".into(), unit.display().to_string()],
                may_fail: false,
            };
            Installation {
                copies: Vec::new(),
                files: vec![NewFile { path: unit.clone(), text, keep: false }],
                steps: vec![load],
                unit,
            }
        }
    }
}

fn install_system(programs: &Programs, home: &Path) -> Installation {
    // The service may not read home folders, so programs from there are copied.
    let mut copies = Vec::new();
    let mut place = |path: &Path| -> PathBuf {
        let hidden =
            path.starts_with(home) || ["/home", "/tmp", "/run/user"].iter().any(|folder| path.starts_with(folder));
        if !hidden {
            return path.to_path_buf();
        }
        let target = Path::new("/usr/local/bin").join(path.file_name().unwrap_or_default());
        copies.push((path.to_path_buf(), target.clone()));
        target
    };
    let programs =
        Programs { finetune: place(&programs.finetune), finetuned: programs.finetuned.as_deref().map(&mut place) };
    let unit = PathBuf::from("/etc/systemd/system").join(UNIT);
    let text = SYSTEM_UNIT
        .replace("/usr/bin/finetuned", &programs.daemon())
        .replace("/usr/bin/finetune ", &format!("{} ", quoted(&programs.finetune)));
    Installation {
        copies,
        files: vec![
            NewFile { path: unit.clone(), text, keep: false },
            NewFile { path: "/etc/finetuned/finetuned.toml".into(), text: SYSTEM_CONFIG.into(), keep: true },
        ],
        steps: vec![
            // Each may be there already.
            step(
                "useradd --system --user-group --home-dir /var/lib/finetuned --shell /usr/sbin/nologin finetuned",
                true,
            ),
            step("groupadd --system --force render", true),
            step("groupadd --system --force video", true),
            step("systemctl daemon-reload", false),
            step(&format!("systemctl enable --now {UNIT}"), false),
        ],
        unit,
    }
}

/// What `uninstall` does. State and configuration stay.
pub fn uninstall(scope: Scope, home: &Path) -> Installation {
    let (unit, before, after) = match scope {
        Scope::System => (
            PathBuf::from("/etc/systemd/system").join(UNIT),
            step(&format!("systemctl disable --now {UNIT}"), true),
            Some(step("systemctl daemon-reload", true)),
        ),
        Scope::User => (
            user_unit(home),
            step(&format!("systemctl --user disable --now {UNIT}"), true),
            Some(step("systemctl --user daemon-reload", true)),
        ),
        Scope::Launchd => {
            let agent = launch_agent(home);
            let unload = Step {
                words: vec!["launchctl".into(), "unload".into(), "-w".into(), agent.display().to_string()],
                may_fail: true,
            };
            (agent, unload, None)
        }
    };
    Installation { copies: Vec::new(), files: Vec::new(), steps: std::iter::once(before).chain(after).collect(), unit }
}

/// What `status` runs.
pub fn status(scope: Scope) -> Step {
    match scope {
        Scope::System => step(&format!("systemctl status --no-pager {UNIT}"), true),
        Scope::User => step(&format!("systemctl --user status --no-pager {UNIT}"), true),
        Scope::Launchd => step(&format!("launchctl list {LABEL}"), true),
    }
}

/// Where the service's file lies.
pub fn unit_path(scope: Scope, home: &Path) -> PathBuf {
    match scope {
        Scope::System => PathBuf::from("/etc/systemd/system").join(UNIT),
        Scope::User => user_unit(home),
        Scope::Launchd => launch_agent(home),
    }
}

fn user_unit(home: &Path) -> PathBuf {
    home.join(".config/systemd/user").join(UNIT)
}

fn launch_agent(home: &Path) -> PathBuf {
    home.join("Library/LaunchAgents").join(format!("{LABEL}.plist"))
}

/// A path as systemd reads it: in quotes where it needs them, `%` doubled.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string().replace('%', "%%");
    if text.contains([' ', '"', '\'', '\\']) {
        format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn programs(folder: &str) -> Programs {
        Programs { finetune: Path::new(folder).join("finetune"), finetuned: Some(Path::new(folder).join("finetuned")) }
    }

    #[test]
    fn the_units_name_the_programs_that_are_there() {
        let home = Path::new("/home/me");
        let user = install(Scope::User, &programs("/opt/my bin"), home);
        assert!(user.files[0].text.contains("ExecStart=\"/opt/my bin/finetuned\"\n"), "{}", user.files[0].text);
        assert!(user.files[0].text.contains("ExecReload=\"/opt/my bin/finetune\" reload\n"));
        assert_eq!(user.unit, home.join(".config/systemd/user/finetuned.service"));
        let alone = Programs { finetuned: None, ..programs("/opt") };
        assert!(install(Scope::User, &alone, home).files[0].text.contains("ExecStart=/opt/finetune daemon\n"));
    }

    #[test]
    fn a_system_service_runs_from_where_it_may_read() {
        let system = install(Scope::System, &programs("/home/me/target/release"), Path::new("/home/me"));
        assert_eq!(system.copies.len(), 2);
        assert!(system.files[0].text.contains("ExecStart=/usr/local/bin/finetuned --config"));
        assert!(!system.files[0].text.contains("/usr/bin/finetune"), "every path is filled in");
        assert!(system.files[1].keep, "an edited configuration stays");
        assert!(install(Scope::System, &programs("/usr/bin"), Path::new("/home/me")).copies.is_empty());
    }

    #[test]
    fn the_systems_configuration_is_valid() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("f.toml"), SYSTEM_CONFIG).unwrap();
        let sources = crate::config::Sources { config: Some(dir.path().join("f.toml")), ..Default::default() };
        let config = crate::config::Config::load(&sources).unwrap();
        assert_eq!(config.socket, Path::new("/run/finetuned/finetuned.sock"));
        assert_eq!(config.inbox.paths, [PathBuf::from("/var/lib/finetuned/inbox")]);
    }

    #[test]
    fn the_launch_agent_is_filled_in() {
        let agent = install(Scope::Launchd, &programs("/opt"), Path::new("/Users/me"));
        let text = &agent.files[0].text;
        assert!(
            text.contains("<string>/opt/finetuned</string>")
                && text.contains("/Users/me/Library/Logs")
                && !text.contains('@')
        );
    }

    /// Where systemd is, it reads both units without a word.
    #[test]
    fn systemd_accepts_the_units() {
        let analyze = |arguments: &[&str]| std::process::Command::new("systemd-analyze").args(arguments).output();
        if analyze(&["--version"]).is_err() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        // Programs that are there, whatever this machine has.
        let shell = Programs { finetune: "/bin/sh".into(), finetuned: Some("/bin/sh".into()) };
        for (scope, name) in [(Scope::System, "finetuned.service"), (Scope::User, "finetuned-user.service")] {
            let unit = dir.path().join(name);
            std::fs::write(&unit, &install(scope, &shell, Path::new("/home/me")).files[0].text).unwrap();
            let output = analyze(&["verify", unit.to_str().unwrap()]).unwrap();
            let words = String::from_utf8_lossy(&output.stderr).into_owned();
            let about_ours: Vec<&str> = words.lines().filter(|line| line.contains(name)).collect();
            assert!(about_ours.is_empty(), "{words}");
        }
    }
}
