//! Identities: one certificate authority, a certificate per component, and the kubeconfigs that use them.

use std::fs;

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use serde_json::{Value, json};

use crate::addresses::{API_PORT, API_SERVICE, FABRIC, MOST_NODES, name, node_address};
use crate::state::{Lab, write_whole};

/// Kubernetes reads the user from the common name and its groups from the organisation.
struct Identity {
    file: String,
    user: String,
    group: Option<&'static str>,
    /// Names and addresses at which it serves.
    serves: Vec<String>,
}

fn identities() -> Vec<Identity> {
    let client = |file: &str, user: &str, group| Identity {
        file: file.into(),
        user: user.into(),
        group,
        serves: vec![file.into()],
    };
    let api_names =
        ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost", FABRIC, API_SERVICE, "127.0.0.1"];
    let mut identities = vec![
        Identity {
            file: "apiserver".into(),
            user: "kube-apiserver".into(),
            group: None,
            serves: api_names.map(Into::into).into(),
        },
        client("apiserver-to-kubelet", "apiserver-kubelet-client", Some("system:masters")),
        client("admin", "admin", Some("system:masters")),
        client("controller-manager", "system:kube-controller-manager", None),
        client("scheduler", "system:kube-scheduler", None),
        client("kube-proxy", "system:kube-proxy", None),
    ];
    // For all possible nodes, so that adding one later needs no access to the authority's key.
    identities.extend((1..=MOST_NODES).map(|number| Identity {
        file: name(number),
        user: format!("system:node:{}", name(number)),
        group: Some("system:nodes"),
        serves: vec![name(number), node_address(number)],
    }));
    identities
}

/// Creates everything, unless it exists.
pub fn ensure(lab: &Lab) -> Result<()> {
    if lab.path("pki").is_dir() {
        return Ok(());
    }
    // Renamed into place when complete, so that a crash leaves all or nothing.
    let partial = lab.path("pki.partial");
    let _ = fs::remove_dir_all(&partial);
    let write = |file: &str, content: String| write_whole(&partial.join(file), content);

    let authority = KeyPair::generate()?;
    let mut root = CertificateParams::default();
    root.distinguished_name.push(DnType::CommonName, lab.id.as_str());
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    root.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::CrlSign];
    write("ca.crt", root.self_signed(&authority)?.pem())?;
    write("ca.key", authority.serialize_pem())?;
    let issuer = Issuer::new(root, authority);

    for identity in identities() {
        let key = KeyPair::generate()?;
        let mut certificate = CertificateParams::new(identity.serves)?;
        certificate.distinguished_name.push(DnType::CommonName, identity.user);
        if let Some(group) = identity.group {
            certificate.distinguished_name.push(DnType::OrganizationName, group);
        }
        certificate.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        certificate.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        write(&format!("{}.crt", identity.file), certificate.signed_by(&key, &issuer)?.pem())?;
        write(&format!("{}.key", identity.file), key.serialize_pem())?;
        let config = kubeconfig(lab, &identity.file, &format!("https://{FABRIC}:{API_PORT}"));
        write(&format!("{}.kubeconfig", identity.file), serde_json::to_string_pretty(&config)?)?;
    }
    let tokens = KeyPair::generate()?;
    write("service-accounts.key", tokens.serialize_pem())?;
    write("service-accounts.pub", tokens.public_key_pem())?;
    fs::rename(&partial, lab.path("pki")).context("cannot put the certificates into place")
}

/// The kubeconfig of an identity for the API server at `server`, as JSON, which is also YAML.
pub fn kubeconfig(lab: &Lab, identity: &str, server: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "lab", "cluster": { "server": server, "certificate-authority": lab.pki("ca.crt") } }],
        "users": [{ "name": identity, "user": {
            "client-certificate": lab.pki(&format!("{identity}.crt")),
            "client-key": lab.pki(&format!("{identity}.key")),
        } }],
        "contexts": [{ "name": "lab", "context": { "cluster": "lab", "user": identity } }],
        "current-context": "lab",
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    #[test]
    fn a_node_is_what_the_node_authorizer_expects() {
        let identities = identities();
        let node = identities.iter().find(|identity| identity.file == "n2").expect("n2");
        assert_eq!((node.user.as_str(), node.group), ("system:node:n2", Some("system:nodes")));
        assert_eq!(node.serves, ["n2", "10.66.0.12"]);
    }

    #[test]
    fn everything_is_made_at_once_and_only_once() {
        let state: PathBuf = std::env::temp_dir().join(format!("podtap-lab-pki-{}", std::process::id()));
        let lab = Lab { root: state.clone(), state: state.clone(), id: "podtap-test".into() };
        ensure(&lab).expect("make");
        let read = || fs::read(lab.pki("ca.crt")).expect("read");
        let first = read();
        ensure(&lab).expect("again");
        assert_eq!(first, read());
        for file in ["service-accounts.pub", "apiserver.key", "n9.crt", "admin.kubeconfig"] {
            assert!(lab.pki(file).is_file(), "{file}");
        }
        assert!(!lab.path("pki.partial").exists());
        fs::remove_dir_all(&state).expect("remove");
    }
}
