//! Names, the map and the newest flows, for the thread that analyses frames and for those that serve clients.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use podtap_flow::{
    Counters,
    map::{Bounds, Map},
    names::{Names, Workload},
};

use crate::{capture::Captured, newest::Newest};

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
    pub fn new(names: Names) -> Self {
        let map = Map::new(Bounds::default());
        let state = State { names, map, newest: Newest::default(), status: Status::default() };
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
}

/// A view, and until when readers get it.
type LastView = (Instant, Arc<View>);

/// How old the map may be that a reader gets. One of a map that takes long to copy may be older, so that no more than a twentieth of the
/// time is spent on that.
const VIEW_AGE: Duration = Duration::from_millis(200);

/// Labels of a pod of each workload.
pub type Labels = HashMap<(String, Workload), BTreeMap<String, String>>;

/// What readers get.
#[derive(Debug)]
pub struct View {
    pub map: Map,
    /// Those of the youngest pod.
    pub labels: Labels,
}

impl View {
    fn new(from: &State) -> Self {
        let mut pods: Vec<_> = from.names.pods().filter(|pod| !pod.host_network).collect();
        pods.sort_by_key(|pod| pod.started);
        let labels = pods.iter().map(|pod| ((pod.namespace.clone(), pod.workload.clone()), pod.labels.clone()));
        Self { map: from.map.clone(), labels: labels.collect() }
    }
}
