//! What unit tests of several modules are about: a tap, and its sender on a pod.

use std::{sync::Arc, time::Duration};

use podtap_model::{
    DesiredSender, Direction, Endpoint, EtherType, Instruction, MirrorOptions, Pod, Program, ProgramId, Tap, Uid,
};

/// A tap without options, of which the name is the UID.
pub fn tap(name: &str) -> Tap {
    let vni = 7.try_into().expect("a VNI");
    Tap {
        namespace: "shop".to_owned(),
        name: name.to_owned(),
        uid: uid(name),
        interface: None,
        direction: Direction::Both,
        destinations: vec![Endpoint { address: [10, 66, 0, 2].into(), port: 14789, vni }],
        options: MirrorOptions::default(),
        program: None,
        expiration_time: None,
        peers: Vec::new(),
        probe: false,
        metadata: false,
    }
}

/// A pod, of which the name is the UID.
pub fn pod(name: &str) -> Pod {
    Pod {
        namespace: "shop".to_owned(),
        name: name.to_owned(),
        uid: uid(name),
        config_hash: None,
        addresses: vec![[10, 88, 0, 5].into()],
    }
}

/// The sender of a tap on a pod.
pub fn sender(tap: Tap, pod: Pod) -> DesiredSender {
    DesiredSender {
        details: Box::default(),
        tap: Arc::new(tap),
        pod,
        program: None,
        underlay_mtu: None,
        orphan_timeout: Duration::from_secs(60),
        probe_ether_type: EtherType::default(),
    }
}

/// An expression that matches every frame: `ret #1`.
pub fn program() -> Arc<Program> {
    let instructions = vec![Instruction { code: 6, jt: 0, jf: 0, k: 1 }];
    Arc::new(Program { id: ProgramId::from_digest([0; 32]), instructions })
}

pub fn uid(text: &str) -> Uid {
    text.parse().expect("a UID")
}
