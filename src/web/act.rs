//! What is changed: logins, and runs that are ended, extended, frozen and thawed.
//!
//! The instance knows guardian-web alone, and puts it on record as who did it; which token it was for stands in the reason of
//! a kill. The other changes have no reason there: they go to the log, which is the journal.

use std::time::{Duration, Instant};

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use serde_json::{Value, json};

use super::door::{COOKIE, session_id};
use super::read;
use super::reply::{Problem, json as reply, json_with};
use super::routes::{Answer, Call};
use super::sessions::{LASTS, Session};
use crate::json as shapes;
use crate::json::utc_time;
use crate::model::{Error, ErrorKind, KillMode, Phase, Receipt, RunId, RunView, escape, human_duration};

/// The pause before an instance is asked again that is being restarted.
const PAUSE: Duration = Duration::from_millis(100);

/// Opens a session for a token or the one-time code.
pub async fn login(call: Call) -> Answer {
    let now = Instant::now();
    let sessions = &call.app.sessions;
    let given = (call.arguments.some_text("token"), call.arguments.some_text("code"));
    sessions.attempt(now).map_err(|after| {
        Problem::too_many("too many logins are being tried: wait some seconds, and try again", after)
    })?;
    let opened = match given {
        (Some(token), _) => sessions.with_token(&call.app.tokens, token.trim(), now),
        (None, code) => sessions.with_code(code.unwrap_or_default(), now),
    }?;
    let Some((id, session)) = opened else {
        tracing::warn!("a login was refused");
        return Err(Problem::unauthorized(match given {
            (Some(_), _) => "this token does not hold: `guardian token list` shows those that do",
            (None, _) => "this code was used, or is too old: `guardian web` prints a new link",
        }));
    };
    logged_in(&call, &id, session).await
}

async fn logged_in(call: &Call, id: &str, session: Session) -> Answer {
    tracing::info!("{} has logged in as {}", session.name, session.role);
    let instance = match read::describe(call).await {
        Ok(instance) => Value::Object(shapes::instance(&instance)),
        // The code is used up: who has shown it is in, whatever the instance does just now.
        Err(e) => {
            tracing::warn!("the instance does not answer: {}", escape(&e.message));
            Value::Null
        }
    };
    let body = json!({"token": session.name, "role": session.role.as_str(), "instance": instance});
    Ok(with_cookie(reply(&body), id, LASTS))
}

/// Closes the session.
pub async fn logout(call: Call) -> Answer {
    if let Some(id) = session_id(&call.headers) {
        call.app.sessions.close(id);
    }
    Ok(with_cookie(reply(&json!({})), "", Duration::ZERO))
}

fn with_cookie(mut reply: Response, id: &str, lasts: Duration) -> Response {
    let cookie = format!("{COOKIE}={id}; HttpOnly; SameSite=Strict; Path=/; Max-Age={}", lasts.as_secs());
    if let Ok(value) = HeaderValue::from_str(&cookie) {
        reply.headers_mut().insert(header::SET_COOKIE, value);
    }
    reply
}

/// Ends a run, and waits for its end.
pub async fn kill(call: Call) -> Answer {
    let mode = if call.arguments.flag("force") { KillMode::Force } else { KillMode::Graceful };
    let reason = on_record(call.arguments.text("reason"), &call.who()?.name);
    let view = read::show(&call).await?;
    let id = view.spec.id;
    if view.phase == Phase::Finished {
        return Err(Error::already_finished(id).into());
    }
    tracing::info!("token {} ends {id} ({mode})", call.who()?.name);
    let (run, why) = (id.to_string(), reason.as_str());
    let run = run.as_str();
    // Idempotent: a run has one kill, however often it is asked for.
    let answer = call.app.instance.ask(|c| async move { c.kill(run, mode, why).await }).await?;
    let ended = match over(&call, id).await {
        Some(ended) => ended?,
        None => {
            let value = json!({
                "success": null,
                "run_id": id,
                "workflow_name": view.spec.workflow,
                "killed_at": null,
                "kill_method": answer.mode,
                "kill_duration_ms": null,
                "cleanup_status": "pending",
                "message": format!(
                    "the kill of {id} is on record and goes on: it is not over after {}", human_duration(call.app.kill_wait)
                ),
                "receipt": null,
            });
            return Ok(json_with(StatusCode::ACCEPTED, &value));
        }
    };
    Ok(reply(&killed(&ended, answer.mode)))
}

/// What goes on record as the reason: the words of who asked, and the token.
pub(super) fn on_record(reason: &str, token: &str) -> String {
    let by = format!("(token {token}, guardian-web)");
    if reason.is_empty() { by } else { format!("{reason} {by}") }
}

/// The run as it ended; nothing if it has not after the time that is waited. The instance may be restarted meanwhile: the next
/// one finishes what this one began.
async fn over(call: &Call, run: RunId) -> Option<Result<RunView, Error>> {
    let until = Instant::now() + call.app.kill_wait;
    let id = run.to_string();
    let id = id.as_str();
    loop {
        let left = until.saturating_duration_since(Instant::now());
        match call.app.instance.once(|c| async move { c.wait(id, Some(left)).await }).await {
            Ok(view) if view.phase == Phase::Finished => return Some(Ok(view)),
            Err(e) if e.kind == ErrorKind::TimedOut => return None,
            Err(e) if e.kind != ErrorKind::Unavailable => return Some(Err(e)),
            Ok(_) | Err(_) if left.is_zero() => return None,
            Ok(_) | Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

fn killed(view: &RunView, asked: KillMode) -> Value {
    let (id, receipt) = (view.spec.id, view.receipt.as_ref());
    let is_complete = receipt.is_none_or(|r| r.survivors == 0 && r.proved);
    let message = match receipt {
        Some(receipt) => format!("{id} was ended: {receipt}"),
        None if view.started_at.is_none() => format!("{id} was ended before its command was executed"),
        None => format!("{id} ended before anything had to be done to it"),
    };
    json!({
        "success": is_complete,
        "run_id": id,
        "workflow_name": view.spec.workflow,
        "killed_at": view.finished_at.map(utc_time),
        "kill_method": receipt.map_or(asked, |r| r.mode),
        "kill_duration_ms": receipt.map(|r: &Receipt| r.duration_usec.div_ceil(1000)),
        "cleanup_status": if is_complete { "complete" } else { "incomplete" },
        "message": message,
        "receipt": receipt.map(shapes::receipt),
    })
}

/// Gives a timer of a run more time.
pub async fn extend(call: Call) -> Answer {
    let (run, limit) = (call.arguments.run()?, call.arguments.text("limit"));
    let by = Duration::from_micros(call.arguments.number("by_usec").unwrap_or(0));
    let (id, by_text) = (run.to_string(), human_duration(by));
    let id = id.as_str();
    // Not asked twice: a lost answer would extend twice.
    let at = call.app.instance.once(|c| async move { c.extend(id, limit, by).await }).await?;
    logged(&call, &format!("extends {limit} of {run} by {by_text}"))?;
    Ok(reply(&json!({"limit": limit, "deadline": utc_time(at), "deadline_usec": at.0})))
}

/// Pauses a run.
pub async fn freeze(call: Call) -> Answer {
    let id = call.arguments.run()?.to_string();
    let run = id.as_str();
    call.app.instance.ask(|c| async move { c.freeze(run).await }).await?;
    logged(&call, &format!("freezes {run}"))?;
    Ok(reply(&json!({})))
}

/// Lets a paused run go on.
pub async fn thaw(call: Call) -> Answer {
    let id = call.arguments.run()?.to_string();
    let run = id.as_str();
    call.app.instance.ask(|c| async move { c.thaw(run).await }).await?;
    logged(&call, &format!("thaws {run}"))?;
    Ok(reply(&json!({})))
}

fn logged(call: &Call, what: &str) -> Result<(), Problem> {
    let reason = call.arguments.text("reason");
    let why = if reason.is_empty() { String::new() } else { format!(": {}", escape(reason)) };
    tracing::info!("token {} {what}{why}", call.who()?.name);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_on_record_names_the_token() {
        assert_eq!(on_record("enough", "ann"), "enough (token ann, guardian-web)");
        assert_eq!(on_record("", "ann"), "(token ann, guardian-web)");
    }
}
