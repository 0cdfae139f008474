//! `/api/v1/events`: one listener, as server-sent events. What was missed comes first, then what happens.
//!
//! What waits for a listener is bounded in each place: frames in its channel, and events that it is behind. Who does not take
//! them is cut off, and comes back with the number of the last row that it has.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use hyper::body::Frame;
use tokio::sync::{OwnedSemaphorePermit, broadcast, mpsc};
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::hub::{Event, PAGE, row_frame};
use super::reply::{Problem, with_type};
use super::routes::{Answer, Call};
use super::{App, door, read, stopped};
use crate::model::{Error, ErrorKind};

/// How long the instance may take until a listener is told of anything.
const BEGIN: Duration = Duration::from_secs(5);
/// Frames that wait for one listener.
const WAITING: usize = 32;
/// How long a listener may take no frame.
const SLOW: Duration = Duration::from_secs(10);
/// How often a listener is shown that the connection lives; and is looked whether its token still holds.
const PING: Duration = Duration::from_secs(15);

/// Begins to tell.
pub async fn events(call: Call) -> Answer {
    let after = match call.headers.get("last-event-id").map(|value| value.to_str().ok().and_then(|t| t.parse().ok())) {
        None => call.arguments.number("after"),
        Some(Some(seq)) => Some(seq),
        Some(None) => return Err(Error::invalid("Last-Event-ID has to be the number of a row").into()),
    };
    let place = call.app.listeners.clone().try_acquire_owned();
    let place = place.map_err(|_| Problem::busy("too many listen already: close some dashboards"))?;
    // Asked here too, so that who comes while it is away is told why.
    read::describe(&call).await?;
    let (live, told) =
        call.app.hub.listen(BEGIN).await.ok_or_else(|| Problem::busy("the instance is slow to answer"))?;
    let (frames, body) = mpsc::channel(WAITING);
    let feed = Feed { app: call.app, headers: call.headers, frames, _place: place };
    tokio::spawn(feed.run(live, after, told));
    let mut reply = with_type("text/event-stream", Body::new(Frames(body)));
    // A proxy that collects an answer before it passes it on would pass nothing on.
    reply.headers_mut().insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    Ok(reply)
}

/// The body: frames as they come, until nobody sends any more.
struct Frames(mpsc::Receiver<Bytes>);

impl HttpBody for Frames {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(cx).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}

/// One listener.
struct Feed {
    app: Arc<App>,
    headers: HeaderMap,
    frames: mpsc::Sender<Bytes>,
    _place: OwnedSemaphorePermit,
}

/// The listener is gone, or too slow.
struct Gone;

impl Feed {
    async fn run(self, live: broadcast::Receiver<Event>, after: Option<u64>, told: u64) {
        let mut stop = self.app.stop.subscribe();
        tokio::select! {
            _ = self.feed(live, after, told) => {}
            () = self.frames.closed() => {}
            () = stopped(&mut stop) => {}
        }
    }

    async fn feed(&self, mut live: broadcast::Receiver<Event>, after: Option<u64>, told: u64) -> Result<(), Gone> {
        self.send(Bytes::from_static(b"retry: 1000\n\n")).await?;
        // A cursor from the future is one of an audit that was set aside.
        let mut last = after.map_or(told, |after| after.min(told));
        while last < told {
            let rows = self.app.instance.ask(|c| async move { c.events(last, PAGE, None).await }).await;
            match rows {
                Ok(rows) if rows.is_empty() => last = told,
                Ok(rows) => {
                    for row in &rows {
                        self.send(row_frame(row)).await?;
                        last = row.seq;
                    }
                }
                Err(e) if e.kind == ErrorKind::NotAuthorized => last = told,
                // It comes back with its cursor.
                Err(_) => return Err(Gone),
            }
        }
        let mut ping = interval(PING);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                event = live.recv() => match event {
                    Ok(Event::Row(seq, _)) if seq <= last => {}
                    Ok(Event::Row(seq, frame)) => {
                        last = seq;
                        self.send(frame).await?;
                    }
                    Ok(Event::Other(frame)) => self.send(frame).await?,
                    // It has missed some, or there will be none.
                    Err(_) => return Err(Gone),
                },
                _ = ping.tick() => {
                    door::who(&self.app, &self.headers).map_err(|_| Gone)?;
                    self.send(Bytes::from_static(b": ping\n\n")).await?;
                }
            }
        }
    }

    async fn send(&self, frame: Bytes) -> Result<(), Gone> {
        match timeout(SLOW, self.frames.send(frame)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(Gone),
        }
    }
}
