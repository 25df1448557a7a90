use super::{
    BpfError, Programs, Settings,
    object::{Image, Maps},
    sys, version,
};

/// What this kernel can do, each tried; with its reason where it cannot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Features {
    /// Loading classifiers at all: filters of addresses and ports, samples, truncation, counters.
    pub ebpf: Result<(), String>,
    /// Making a superframe's segments shorter.
    pub fit: Result<(), String>,
    /// Limits: locks in maps.
    pub limit: Result<(), String>,
    /// Expressions: functions of their own.
    pub expression: Result<(), String>,
    /// Whether the segments of a superframe that is a list of frames can be made shorter as it is. Else that would end the
    /// kernel (`BUG_ON` in `skb_segment`), and it is copied into one piece before. Told by the kernel's version: this cannot be
    /// tried.
    pub whole_lists: bool,
}

impl Features {
    /// Whether the programs of a tap can be loaded, or why not: they are of one object with all of this. Only [`fit`](Self::fit)
    /// may lack, which they need while they run.
    pub fn usable(&self) -> Result<(), &str> {
        [&self.ebpf, &self.limit, &self.expression]
            .into_iter()
            .try_for_each(|part| part.as_ref().copied())
            .map_err(String::as_str)
    }
}

/// Tries each of them: loads a small program, and runs it where loading does not tell. Then loads the real ones, which are
/// handed out: a verifier may take small programs and refuse large ones.
#[must_use]
pub fn probe() -> (Features, Option<Programs>) {
    let mut features = Features {
        ebpf: attempt("probe_ebpf"),
        fit: fits(),
        limit: attempt("probe_limit"),
        expression: attempt("probe_expression"),
        whole_lists: version::shortens_lists(),
    };
    let mut programs = None;
    if features.usable().is_ok() {
        match Programs::load(&Settings::default(), None) {
            Ok(loaded) => programs = Some(loaded),
            Err(error) => features.ebpf = Err(error.to_string()),
        }
    }
    (features, programs)
}

fn attempt(name: &str) -> Result<(), String> {
    load(name).map(drop).map_err(|error| error.to_string())
}

fn load(name: &str) -> Result<std::os::fd::OwnedFd, BpfError> {
    let mut image = Image::probe()?;
    image.keep(name);
    // Only the program that needs the map is to fail with it.
    let maps = if name == "probe_limit" { image.maps(Maps::new(), &[])? } else { Maps::new() };
    image.link(&maps)?;
    image.load(name)
}

fn fits() -> Result<(), String> {
    let program = load("probe_fit").map_err(|error| error.to_string())?;
    // An IPv4 header is all that the helper looks at.
    let mut frame = [0; 64];
    (frame[12], frame[14], frame[17]) = (8, 0x45, 50);
    match sys::run(&program, &frame, &[]) {
        Ok((0, _)) => Ok(()),
        Ok((1, _)) => Err("the kernel does not make room in a frame".to_owned()),
        Ok(_) => {
            Err("the kernel does not take room out of a frame with its segments as they are (since 5.1)".to_owned())
        }
        Err(errno) => Err(format!("cannot run a program: {} (errno {})", errno.desc(), errno as i32)),
    }
}
