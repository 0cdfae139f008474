//! Answers: JSON, refusals, and the headers that every answer has.

use std::time::Duration;

use axum::body::Body;
use axum::http::header::{self, HeaderName};
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;
use serde_json::{Value, json};

use crate::json::inert;
use crate::model::{Error, ErrorKind};

/// What the page may load: what comes from here, and nothing inline.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
                      form-action 'none'; base-uri 'none'; frame-ancestors 'none'";

/// Headers of every answer.
const ALWAYS: [(HeaderName, &str); 6] = [
    (header::CONTENT_SECURITY_POLICY, POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

/// Why a request is refused: a status, a name for programs and a sentence for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The status.
    pub status: StatusCode,
    /// Its name.
    pub kind: &'static str,
    /// What, why, and what next.
    pub message: String,
    /// When to come again.
    pub after: Option<Duration>,
}

impl Problem {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self { status, kind, message: message.into(), after: None }
    }

    /// 400: not the HTTP or the JSON that was expected.
    pub fn malformed(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequest", message)
    }

    /// 401: no token, or one that does not hold.
    pub fn unauthorized(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "Unauthorized", message)
    }

    /// 403: known, and not allowed.
    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "Forbidden", message)
    }

    /// 404.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "NotFound", message)
    }

    /// 405.
    pub fn not_allowed() -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "MethodNotAllowed",
            "this path takes another method: Allow says which",
        )
    }

    /// 408: a body that does not arrive.
    pub fn too_slow(within: Duration) -> Self {
        let message = format!("the body did not arrive within {} s", within.as_secs());
        Self::new(StatusCode::REQUEST_TIMEOUT, "RequestTimeout", message)
    }

    /// 413: a body that is too long.
    pub fn too_large(most: usize) -> Self {
        let message = format!("a body has at most {most} bytes here");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "PayloadTooLarge", message)
    }

    /// 429: come again.
    pub fn too_many(message: impl Into<String>, after: Duration) -> Self {
        let problem = Self::new(StatusCode::TOO_MANY_REQUESTS, "TooManyRequests", message);
        Self { after: Some(after), ..problem }
    }

    /// 503: not now.
    pub fn busy(message: impl Into<String>) -> Self {
        let problem = Self::new(StatusCode::SERVICE_UNAVAILABLE, ErrorKind::Unavailable.as_str(), message);
        Self { after: Some(Duration::from_secs(1)), ..problem }
    }

    /// As an answer.
    pub fn reply(&self) -> Response {
        let mut reply = json_with(self.status, &json!({"error": self.kind, "message": self.message}));
        let headers = reply.headers_mut();
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(after) = self.after {
            // Whole seconds, and never too early.
            headers.insert(header::RETRY_AFTER, HeaderValue::from(after.as_millis().div_ceil(1000) as u64));
        }
        reply
    }
}

impl From<Error> for Problem {
    fn from(e: Error) -> Self {
        let status = StatusCode::from_u16(e.kind.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let after = (status == StatusCode::SERVICE_UNAVAILABLE).then_some(Duration::from_secs(1));
        Self { status, kind: e.kind.as_str(), message: e.message, after }
    }
}

/// JSON as it goes out: no character of it steers a terminal, and none opens a tag where somebody shows it as a page.
pub fn text_of(value: &Value) -> String {
    // Only strings have such characters, so that the escapes mean the same.
    inert(&value.to_string()).replace('<', "\\u003c")
}

/// 200 with JSON.
pub fn json(value: &Value) -> Response {
    json_with(StatusCode::OK, value)
}

/// JSON with this status.
pub fn json_with(status: StatusCode, value: &Value) -> Response {
    let mut reply = with_type("application/json", text_of(value));
    *reply.status_mut() = status;
    reply
}

/// 200 with a body of this type, which nobody keeps.
pub fn with_type(content_type: &'static str, body: impl Into<Body>) -> Response {
    let mut reply = Response::new(body.into());
    let headers = reply.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    reply
}

/// Adds what every answer has.
pub fn finish(mut reply: Response) -> Response {
    let headers = reply.headers_mut();
    for (name, value) in ALWAYS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    reply
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_run_calls_itself_is_live_in_an_answer() {
        let value = json!({"name": "<script>\u{1b}[2J\u{202e}\u{9b}\u{7f}</script>"});
        let text = text_of(&value);
        assert!(text.is_ascii() && !text.contains(['<', '\u{1b}', '\u{7f}']), "{text}");
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), value);
    }

    #[test]
    fn a_refusal_has_the_status_of_its_kind() {
        let problem = Problem::from(Error::no_such_run("run_1"));
        assert_eq!((problem.status.as_u16(), problem.kind), (404, "NoSuchRun"));
        let busy = Problem::from(Error::new(ErrorKind::Unavailable, "no")).reply();
        assert_eq!((busy.status().as_u16(), &busy.headers()["retry-after"]), (503, &HeaderValue::from(1)));
        let many = Problem::too_many("no", Duration::from_millis(1001)).reply();
        assert_eq!(many.headers()["retry-after"], "2");
    }
}
