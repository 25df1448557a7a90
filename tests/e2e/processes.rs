//! Processes of the lab's members.

use podtap_tests::cluster::Cluster;

/// The PIDs, in the member's own namespace, of the processes for which a shell condition on `$p`, a directory in /proc, holds.
#[track_caller]
pub fn processes(member: &str, condition: &str) -> Vec<String> {
    let find = format!("for p in /proc/[0-9]*; do if {condition}; then echo ${{p#/proc/}}; fi; done 2>/dev/null");
    let found = Cluster::lab().on_node(member, &find).expect("the member runs");
    found.split_whitespace().map(str::to_owned).collect()
}

/// The condition that the command line begins with `program`.
pub fn runs(program: &str) -> String {
    format!("case \"$(tr '\\0' ' ' <$p/cmdline)\" in \"{program}\"*) ;; *) false;; esac")
}

/// The processes of a node that run `program`.
#[track_caller]
pub fn pids(node: &str, program: &str) -> Vec<String> {
    processes(node, &runs(program))
}

/// The tap-helper of a node that does the work: the child of the container's first process, which starts it again when it has ended.
#[track_caller]
pub fn tap_helper(node: &str) -> String {
    let pids = pids(node, "/tap-helper serve");
    let parent = |pid: &String| {
        let parent = format!("sed -n 's/^PPid:[[:space:]]*//p' /proc/{pid}/status");
        Cluster::lab().on_node(node, &parent).is_ok_and(|parent| pids.iter().any(|pid| pid == parent.trim()))
    };
    pids.iter().find(|pid| parent(pid)).unwrap_or_else(|| panic!("no child among {pids:?}")).clone()
}

/// Processes that are stopped, and continued when this is dropped.
pub struct Stopped {
    member: &'static str,
    processes: String,
}

impl Stopped {
    pub fn new(member: &'static str, condition: &str) -> Self {
        let processes = processes(member, condition).join(" ");
        assert!(!processes.is_empty(), "no such process on {member}: {condition}");
        let this = Self { member, processes };
        this.signal("STOP").expect("they can be stopped");
        this
    }

    /// Ends them where they are.
    pub fn kill(self) {
        self.signal("KILL").expect("they are there");
    }

    fn signal(&self, name: &str) -> Result<String, String> {
        Cluster::lab().on_node(self.member, &format!("kill -{name} {}", self.processes))
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // What was killed or replaced meanwhile has ended.
        let _ = self.signal("CONT");
    }
}
