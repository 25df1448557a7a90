//! Where PodTap is installed.

/// Where PodTap is installed.
#[derive(clap::Args, Clone, Debug)]
pub struct InstallationFlags {
    /// Namespace of PodTap
    #[arg(long, value_name = "NAME", default_value = "podtap-system")]
    pub podtap_namespace: String,
}
