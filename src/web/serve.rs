//! HTTP/1.1 over each connection, within limits: how many there are, how long headers may be and take, and how long nothing
//! may be taken of what is sent.
//!
//! Not axum::serve, which knows none of these.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio::time::Sleep;
use tower_service::Service as _;

use super::door::{Hosts, sent_here};
use super::listen::{Listener, Stream};
use super::{App, reply, stopped};

/// Connections at the same time; further ones are told so and closed.
pub const CONNECTIONS_MAX: usize = 1024;
/// The longest request line and headers together.
const HEAD_MAX: usize = 16 * 1024;
/// How many headers there may be.
const HEADERS_MAX: usize = 64;
/// How long a head may take to arrive, from the moment when it is waited for: an idle connection is closed after it, too.
const HEAD: Duration = Duration::from_secs(10);
/// How long nothing may be taken of what is sent.
const STALLED: Duration = Duration::from_secs(20);
/// The pause after a connection that could not be accepted.
const PAUSE: Duration = Duration::from_millis(100);

/// What one connection too many is told.
const TOO_MANY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\n\
    Content-Length: 75\r\nConnection: close\r\n\r\n\
    {\"error\":\"Unavailable\",\"message\":\"too many connections: close some first\"}\n";

/// Takes connections until it is stopped. Each holds `alive` for as long as it lives.
pub async fn serve(app: Arc<App>, listener: Listener, router: Router, hosts: Hosts, alive: mpsc::Sender<()>) {
    let hosts = Arc::new(hosts);
    let mut stop = app.stop.subscribe();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stopped(&mut stop) => return,
        };
        let stream = match accepted {
            Ok(stream) => stream,
            Err(e) => {
                // Out of descriptors: connections that close make room. One that was reset in the queue is nothing to wait for.
                if e.kind() != io::ErrorKind::ConnectionAborted {
                    tracing::warn!("a connection could not be accepted: {e}");
                    tokio::time::sleep(PAUSE).await;
                }
                continue;
            }
        };
        let Ok(place) = app.connections.clone().try_acquire_owned() else {
            app.counters.refused.fetch_add(1, Ordering::Relaxed);
            let _ = stream.try_write(TOO_MANY);
            continue;
        };
        let (app, router, hosts, alive) = (app.clone(), router.clone(), hosts.clone(), alive.clone());
        tokio::spawn(async move {
            connection(app, stream, router, hosts).await;
            drop((place, alive));
        });
    }
}

async fn connection(app: Arc<App>, stream: Stream, router: Router, hosts: Arc<Hosts>) {
    let mut stop = app.stop.subscribe();
    let service = service_fn(move |request: Request<Incoming>| {
        let (app, router, hosts) = (app.clone(), router.clone(), hosts.clone());
        async move { Ok::<_, Infallible>(respond(&app, router, &hosts, request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_headers(HEADERS_MAX)
        .max_buf_size(HEAD_MAX)
        .serve_connection(TokioIo::new(Patient { stream, patience: STALLED, stalled: None }), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stopped(&mut stop) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(e) = ended {
        tracing::debug!("a connection ended: {e}");
    }
}

/// Answers one request, if it was sent to us.
async fn respond(app: &App, mut router: Router, hosts: &Hosts, request: Request<Incoming>) -> Response {
    let (parts, body) = request.into_parts();
    let answer = match sent_here(&parts, hosts) {
        Err(problem) => problem.reply(),
        Ok(()) => match router.call(Request::from_parts(parts, Body::new(body))).await {
            Ok(answer) => answer,
            Err(never) => match never {},
        },
    };
    app.counters.answered(answer.status().as_u16());
    reply::finish(answer)
}

/// A stream that gives up when nothing is taken of what is sent. Otherwise one that does not read holds its place for ever.
struct Patient<S> {
    stream: S,
    patience: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S> Patient<S> {
    fn waited<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let patience = self.patience;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        match stalled.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.waited(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.waited(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_connection_too_many_is_told_is_as_long_as_it_says() {
        let text = std::str::from_utf8(TOO_MANY).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{}", body.len());
        serde_json::from_str::<serde_json::Value>(body).unwrap();
    }

    #[tokio::test]
    async fn a_stream_that_nobody_reads_is_given_up() {
        use tokio::io::AsyncWriteExt as _;
        let (ours, _theirs) = tokio::io::duplex(8);
        let mut ours = Patient { stream: ours, patience: Duration::from_millis(20), stalled: None };
        ours.write_all(b"12345678").await.unwrap();
        assert_eq!(ours.write_all(b"9").await.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
