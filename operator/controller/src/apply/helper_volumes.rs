//! The volumes of a helper pod.

use k8s_openapi::{
    api::core::v1::{
        ConfigMapProjection, DownwardAPIProjection, DownwardAPIVolumeFile, EmptyDirVolumeSource, KeyToPath,
        ObjectFieldSelector, ProjectedVolumeSource, ServiceAccountTokenProjection, Volume, VolumeMount,
        VolumeProjection,
    },
    apimachinery::pkg::api::resource::Quantity,
};

/// Directory of the socket between agent and tap-helper.
const SOCKET_DIRECTORY: &str = "/run/podtap";
/// The socket of the tap-helper.
pub const SOCKET: &str = "/run/podtap/helper.sock";
/// The socket on which the agent answers probes.
pub const PROBE_SOCKET: &str = "/run/podtap/agent.sock";
const TOKEN_DIRECTORY: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

pub fn socket_mount() -> VolumeMount {
    VolumeMount { name: "socket".to_owned(), mount_path: SOCKET_DIRECTORY.to_owned(), ..VolumeMount::default() }
}

pub fn token_mount() -> VolumeMount {
    VolumeMount {
        name: "token".to_owned(),
        mount_path: TOKEN_DIRECTORY.to_owned(),
        read_only: Some(true),
        ..VolumeMount::default()
    }
}

/// The path of a field of the pod.
pub fn field(path: &str) -> ObjectFieldSelector {
    ObjectFieldSelector { field_path: path.to_owned(), api_version: Some("v1".to_owned()) }
}

/// A directory in memory that only the two containers share.
pub fn socket_volume() -> Volume {
    Volume {
        name: "socket".to_owned(),
        empty_dir: Some(EmptyDirVolumeSource {
            medium: Some("Memory".to_owned()),
            size_limit: Some(Quantity("1Mi".to_owned())),
        }),
        ..Volume::default()
    }
}

/// What the API server would mount into every container: the token, the CA and the namespace.
pub fn token_volume() -> Volume {
    let path = |key: &str| KeyToPath { key: key.to_owned(), path: key.to_owned(), mode: None };
    let token = ServiceAccountTokenProjection {
        path: "token".to_owned(),
        // The lifetime of automatically mounted tokens (plugin/pkg/admission/serviceaccount).
        expiration_seconds: Some(3607),
        audience: None,
    };
    let namespace = DownwardAPIVolumeFile {
        path: "namespace".to_owned(),
        field_ref: Some(field("metadata.namespace")),
        ..DownwardAPIVolumeFile::default()
    };
    let sources = vec![
        VolumeProjection { service_account_token: Some(token), ..VolumeProjection::default() },
        VolumeProjection {
            config_map: Some(ConfigMapProjection {
                name: "kube-root-ca.crt".to_owned(),
                items: Some(vec![path("ca.crt")]),
                optional: None,
            }),
            ..VolumeProjection::default()
        },
        VolumeProjection {
            downward_api: Some(DownwardAPIProjection { items: Some(vec![namespace]) }),
            ..VolumeProjection::default()
        },
    ];
    Volume {
        name: "token".to_owned(),
        projected: Some(ProjectedVolumeSource { sources: Some(sources), default_mode: None }),
        ..Volume::default()
    }
}
