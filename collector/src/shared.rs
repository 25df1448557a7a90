//! Names, the map and the newest flows, for the thread that analyses frames and for those that serve clients.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use podtap_flow::{
    Counters, Timestamp,
    map::{Bounds, Map},
    names::{Names, Workload},
    pods::Pods,
};

use crate::{capture::Captured, namespaces::Namespaces, newest::Newest};

/// Who is who, and who calls whom. Clones share it.
#[derive(Clone, Debug)]
pub struct Shared {
    current: Arc<Mutex<State>>,
    view: Arc<Mutex<Option<LastView>>>,
}

/// See [`Shared`].
#[derive(Debug)]
pub struct State {
    pub names: Names,
    pub map: Map,
    /// If there are metrics by pod.
    pub pods: Option<Pods>,
    pub newest: Newest,
    pub status: Status,
}

/// What was counted on the way to the map.
#[derive(Clone, Copy, Debug, Default)]
pub struct Status {
    /// Whether frames are captured, and not read from files.
    pub is_live: bool,
    pub captured: Captured,
    pub counters: Counters,
    /// Flows in the table.
    pub active: usize,
    /// Events that wait for names.
    pub waiting: usize,
}

impl Shared {
    pub fn new(names: Names, bounds: Bounds) -> Self {
        let map = Map::new(bounds);
        let state = State { names, map, pods: None, newest: Newest::default(), status: Status::default() };
        Self { current: Arc::new(Mutex::new(state)), view: Arc::default() }
    }

    /// Frames are not analysed until this is dropped.
    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A copy for readers: rendering a large map takes longer than the ring has room for.
    pub fn view(&self) -> Arc<View> {
        let mut last = self.view.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((until, view)) = &*last
            && Instant::now() < *until
        {
            return Arc::clone(view);
        }
        // Only one at a time, unless a reader still has the one before.
        *last = None;
        let start = Instant::now();
        let view = Arc::new(View::new(&self.lock()));
        *last = Some((Instant::now() + VIEW_AGE.max(20 * start.elapsed()), Arc::clone(&view)));
        view
    }

    /// Forgets who called whom.
    pub fn clear(&self) {
        let mut last = self.view.lock().unwrap_or_else(PoisonError::into_inner);
        let mut state = self.lock();
        state.map.clear();
        state.newest.clear();
        *last = None;
    }

    /// Has the next reader get a new view.
    #[cfg(test)]
    pub fn refresh(&self) {
        *self.view.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// What a reader of some namespaces gets. All that is served comes from here.
#[derive(Clone, Debug)]
pub struct Readable {
    pub shared: Shared,
    pub namespaces: Namespaces,
}

impl Readable {
    /// See [`Shared::view`].
    pub fn view(&self) -> Arc<View> {
        let view = self.shared.view();
        match &self.namespaces {
            Namespaces::All => view,
            namespaces @ Namespaces::Only(_) => Arc::new(view.restricted(namespaces)),
        }
    }
}

/// A view, and until when readers get it.
type LastView = (Instant, Arc<View>);

/// How old the map may be that a reader gets. One of a map that takes long to copy may be older, so that no more than a twentieth of the
/// time is spent on that.
const VIEW_AGE: Duration = Duration::from_millis(200);

/// Labels of the pods of each workload, without those that share their node's network.
/// Views share them.
pub type Labels = HashMap<Arc<(String, Workload)>, Arc<PodLabels>>;

/// What the pods of a workload are labelled with.
#[derive(Clone, Debug, Default)]
pub struct PodLabels {
    /// Each set of labels that a pod has, and when the youngest one with it was started.
    pub sets: BTreeMap<Arc<BTreeMap<String, String>>, Timestamp>,
}

impl PodLabels {
    /// Those of the youngest pod.
    pub fn youngest(&self) -> Option<&BTreeMap<String, String>> {
        self.sets.iter().max_by_key(|(_, started)| **started).map(|(labels, _)| &**labels)
    }
}

/// What readers get.
#[derive(Debug)]
pub struct View {
    pub map: Map,
    pub labels: Labels,
    /// Addresses of nodes.
    pub nodes: BTreeMap<String, Vec<IpAddr>>,
    /// Networks outside of the cluster, and their names.
    pub networks: Vec<(String, String)>,
}

impl View {
    pub fn new(from: &State) -> Self {
        let State { names, map, .. } = from;
        let mut labels = Labels::new();
        for pod in names.pods().filter(|pod| !pod.host_network) {
            let workload = Arc::new((pod.namespace.clone(), pod.workload.clone()));
            let of_workload = Arc::make_mut(labels.entry(workload).or_default());
            match of_workload.sets.get_mut(&pod.labels) {
                Some(started) => *started = pod.started.max(*started),
                None => {
                    of_workload.sets.insert(Arc::clone(&pod.labels), pod.started);
                }
            }
        }
        Self {
            map: map.clone(),
            labels,
            nodes: names.nodes().map(|node| (node.name.clone(), node.addresses.clone())).collect(),
            networks: names.networks().map(|(network, name)| (network.to_string(), name.to_owned())).collect(),
        }
    }

    /// Without the names and labels of what is in other namespaces.
    fn restricted(&self, namespaces: &Namespaces) -> Self {
        let labels = self.labels.iter().filter(|(workload, _)| namespaces.has(&workload.0));
        Self {
            map: self.map.restricted(|namespace| namespaces.has(namespace)),
            labels: labels.map(|(workload, labels)| (Arc::clone(workload), Arc::clone(labels))).collect(),
            nodes: self.nodes.clone(),
            networks: self.networks.clone(),
        }
    }
}
