//! The programs that show frames: found where their installers put them, and started with the frames as their input.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use crate::exit::{Exit, Failure, Outcome};

/// Where installers put Wireshark, besides the folders of PATH.
const PLACES: [&str; 4] = [
    "/Applications/Wireshark.app/Contents/MacOS/Wireshark",
    r"C:\Program Files\Wireshark\Wireshark.exe",
    // From the Windows Subsystem for Linux.
    "/mnt/c/Program Files/Wireshark/Wireshark.exe",
    "/var/lib/flatpak/exports/bin/org.wireshark.Wireshark",
];

/// A program that shows frames, and its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    path: PathBuf,
    arguments: Vec<String>,
}

impl Program {
    /// Wireshark: the one that is given, or that is found.
    pub fn wireshark(given: Option<&Path>, title: &str) -> Outcome<Self> {
        let path = match given {
            Some(path) => Some(path.to_owned()),
            None => in_path("wireshark").or_else(|| PLACES.map(PathBuf::from).into_iter().find(|path| path.exists())),
        };
        let path = path.ok_or_else(|| {
            Failure::new(
                Exit::Refused,
                "Wireshark was not found: install it, name it with --wireshark or PODTAP_WIRESHARK, write the frames to a file with \
                 -w FILE, or print them with --print",
            )
        })?;
        // Names come with the frames, and not from DNS.
        let arguments = ["-k", "-i", "-", "-N", "n", "-o", &format!("gui.window_title:{title}")];
        Ok(Self { path, arguments: arguments.map(str::to_owned).to_vec() })
    }

    /// A program that prints a line for each frame.
    pub fn printer() -> Outcome<Self> {
        let program = |name: &str, arguments: &[&str]| {
            let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
            in_path(name).map(|path| Self { path, arguments })
        };
        let tshark = program("tshark", &["-l", "-N", "n", "-r", "-"]);
        tshark.or_else(|| program("tcpdump", &["-l", "-n", "-r", "-"])).ok_or_else(|| {
            Failure::new(
                Exit::Refused,
                "neither tshark nor tcpdump was found: install one, or write the frames to a file with -w FILE",
            )
        })
    }

    /// Starts it.
    pub fn start(&self) -> Outcome<Child> {
        let mut command = Command::new(&self.path);
        command.args(&self.arguments).stdin(Stdio::piped());
        // SIGINT at the terminal ends the capture, and not the program that shows it.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        command.spawn().map_err(|error| Failure::error(format!("{} cannot be started: {error}", self.path.display())))
    }
}

fn in_path(name: &str) -> Option<PathBuf> {
    let folders = env::var_os("PATH")?;
    let names = [name.to_owned(), format!("{name}.exe")];
    env::split_paths(&folders)
        .flat_map(|folder| names.clone().map(|name| folder.join(name)))
        .find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wireshark_is_found_or_given() {
        let given = Program::wireshark(Some(Path::new("/opt/wireshark")), "shop/web").expect("it is given");
        assert_eq!(given.path, Path::new("/opt/wireshark"));
        assert!(given.arguments.contains(&"gui.window_title:shop/web".to_owned()));
        assert_eq!(in_path("sh").and_then(|path| path.file_name().map(ToOwned::to_owned)), Some("sh".into()));
        assert_eq!(in_path("no-such-program"), None);
    }
}
