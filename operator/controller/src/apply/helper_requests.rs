//! The requests for helper pods, which may take longer than a reconcile.
//!
//! Admission webhooks of other programs see them, and may take seconds for each. They must not keep deletions, statuses and the
//! pods of other nodes waiting.

use std::{collections::BTreeSet, time::Duration};

use tokio::time::Instant;

use crate::{
    apply::{
        actions::Action,
        context::{CONCURRENCY, Context},
        execute::execute,
    },
    in_flight::InFlight,
};

/// How long a reconcile waits for the answers. Without slow webhooks, a request takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(1);

/// A request and the answer to it.
pub type Answered = (Action, Result<(), kube::Error>);

/// Requests in flight, at most one creation for each node and one deletion for each pod. Dropping it cancels them.
#[derive(Debug, Default)]
pub struct HelperRequests {
    requests: InFlight<Answered>,
    /// The pods to delete, and the nodes to create one on.
    busy: BTreeSet<(bool, String)>,
}

impl HelperRequests {
    /// Sends as many of the requests as there is room for, and returns those that have been answered, now or before.
    pub async fn send(&mut self, context: &Context, actions: impl IntoIterator<Item = Action>) -> Vec<Answered> {
        let deadline = Instant::now() + PATIENCE;
        let mut waiting = actions.into_iter();
        loop {
            while self.requests.running() < CONCURRENCY {
                let Some(action) = waiting.next() else { break };
                if self.busy.insert(request_key(&action)) {
                    let context = context.clone();
                    self.requests.spawn(async move {
                        let result = execute(&context, &action).await.map(drop);
                        (action, result)
                    });
                }
            }
            if !self.requests.answers_until(deadline).await {
                let answered = self.requests.take();
                for (action, _) in &answered {
                    self.busy.remove(&request_key(action));
                }
                return answered.into();
            }
        }
    }

    /// Returns when a request has been answered; never if there is none. Cancel safe.
    pub async fn answer(&mut self) {
        self.requests.answer().await;
    }
}

fn request_key(action: &Action) -> (bool, String) {
    match action {
        Action::DeleteHelper { name, .. } => (true, name.clone()),
        Action::CreateHelper { node, .. } | Action::WriteNodeTap { node, .. } | Action::DeleteNodeTap { node, .. } => {
            (false, node.clone())
        }
    }
}
