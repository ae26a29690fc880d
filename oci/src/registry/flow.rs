//! A body that is streamed into a request, and how far it has come: whoever watches over the request must know whether the
//! registry is what is waited for.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use tokio::sync::{Notify, mpsc};

/// Fewer bytes than these in as long as silence is borne are as good as silence; more of them between two breaks are
/// progress, after which pauses begin anew.
pub(super) const PROGRESS: u64 = 64 << 10;

/// A streamed body: what another thread reads, in the order it comes.
pub(super) struct Feed {
    pub receiver: mpsc::Receiver<io::Result<Bytes>>,
    pub flow: Arc<Flow>,
}

/// How far a streamed body has come, for the watch over it.
#[derive(Debug, Default)]
pub(super) struct Flow {
    sent: AtomicU64,
    /// The socket would take more than there is: whoever reads the blob is waited for, not the registry.
    starved: AtomicBool,
    ended: AtomicBool,
    over: Notify,
}

/// What a streamed body has done since it was last looked at.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Motion {
    /// It has come so far.
    Moves(u64),
    /// Next to nothing, though there is more of it.
    Stands,
    /// It is at its end, or broken: the registry's turn.
    Ended,
}

impl Flow {
    /// Ends when the request does, whether or not it took all of its body. The body itself cannot tell: a connection
    /// that is stuck keeps it.
    pub async fn over(&self) {
        self.over.notified().await;
    }

    /// What it has done since it had sent so much, of a body of this size.
    pub fn since(&self, before: Option<u64>, size: u64) -> Motion {
        let sent = self.sent.load(Ordering::Relaxed);
        if sent >= size || self.ended.load(Ordering::Relaxed) {
            return Motion::Ended;
        }
        let is_slow = before.is_some_and(|before| sent - before < PROGRESS);
        if is_slow && !self.starved.load(Ordering::Relaxed) { Motion::Stands } else { Motion::Moves(sent) }
    }
}

impl futures_core::Stream for Feed {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let polled = self.receiver.poll_recv(context);
        self.flow.starved.store(polled.is_pending(), Ordering::Relaxed);
        match &polled {
            Poll::Ready(Some(Ok(bytes))) => {
                self.flow.sent.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            }
            Poll::Ready(_) => self.flow.ended.store(true, Ordering::Relaxed),
            Poll::Pending => {}
        }
        polled
    }
}

/// Says that a request is over, however it ends: also when nobody waits for it any more.
pub(super) struct Over(pub Arc<Flow>);

impl Drop for Over {
    fn drop(&mut self) {
        self.0.over.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_that_moves_is_waited_for_and_one_that_stands_is_not() {
        let (flow, half, whole) = (Flow::default(), PROGRESS, 2 * PROGRESS);
        assert_eq!(flow.since(None, whole), Motion::Moves(0));
        assert_eq!(flow.since(Some(0), whole), Motion::Stands);
        flow.sent.store(half, Ordering::Relaxed);
        assert_eq!(flow.since(Some(0), whole), Motion::Moves(half));
        assert_eq!(flow.since(Some(half), whole), Motion::Stands);
        assert_eq!(flow.since(Some(1), whole), Motion::Stands, "crumbs");
        flow.starved.store(true, Ordering::Relaxed);
        assert_eq!(flow.since(Some(half), whole), Motion::Moves(half), "not the registry's fault");
        flow.sent.store(whole, Ordering::Relaxed);
        assert_eq!(flow.since(Some(half), whole), Motion::Ended);
        let broken = Flow { ended: AtomicBool::new(true), ..Flow::default() };
        assert_eq!(broken.since(None, whole), Motion::Ended);
    }
}
