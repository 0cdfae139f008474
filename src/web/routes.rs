//! The table of all paths: what each takes, who may, and who answers. The router is made of it, and the OpenAPI document.
//!
//! A request goes through [`answer`]: token and role, then the form of what is sent, then the values, then the handler. So no
//! handler can forget one of them.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{FromRequestParts as _, Query, RawPathParams, Request};
use axum::http::{HeaderMap, header};
use axum::response::Response;
use axum::routing::{MethodFilter, on};
use http_body_util::{BodyExt as _, Limited};

use super::arguments::{Arguments, Field, Kind, NUMBER_MAX};
use super::door::{self, Who};
use super::reply::Problem;
use super::tokens::Role;
use super::{App, act, assets, events, metrics, openapi, read, start};
use crate::bus::client::RunFilter;

/// The longest body.
const BODY_MAX: usize = 64 * 1024;
/// How long a body may take to arrive.
const BODY: Duration = Duration::from_secs(10);

/// What a handler gives.
pub type Answer = Result<Response, Problem>;
type Answering = Pin<Box<dyn Future<Output = Answer> + Send>>;

/// A request that may be answered.
pub struct Call {
    /// Everything.
    pub app: Arc<App>,
    /// Who asks; nobody where anybody may.
    pub who: Option<Who>,
    /// What is asked.
    pub arguments: Arguments,
    /// The headers.
    pub headers: HeaderMap,
}

impl Call {
    /// Who asks.
    pub fn who(&self) -> Result<&Who, Problem> {
        self.who.as_ref().ok_or_else(|| Problem::unauthorized("this needs a token"))
    }
}

/// How a path is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// To read.
    Get,
    /// To change.
    Post,
}

/// What an answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// JSON of this schema.
    Json(&'static str),
    /// Something of this media type.
    Other(&'static str),
}

/// A path.
pub struct Route {
    /// How.
    pub verb: Verb,
    /// Where.
    pub path: &'static str,
    /// Its name for programs.
    pub name: &'static str,
    /// What it does.
    pub about: &'static str,
    /// Who may; nobody in particular where there is none.
    pub needs: Option<Role>,
    /// What the path says.
    pub path_fields: &'static [Field],
    /// What the query may say.
    pub query: &'static [Field],
    /// What the body says.
    pub body: &'static [Field],
    /// Of these values of the body just one has to be there, where any are named.
    pub one_of: &'static [&'static str],
    /// What is answered.
    pub shape: Shape,
    /// What else is answered, beside 400, 401, 403, 422, 429 and 503 where they can be.
    pub statuses: &'static [u16],
    handler: fn(Call) -> Answering,
}

const RUN: Field = Field::must("id", Kind::Run, "The run");
const EXECUTOR: Field =
    Field::must("executor", Kind::Workflow, "The executor of the run: local, or one of the configuration");
/// Within what the instance takes, in whatever letters, with the name of the token beside it.
const REASON: Field = Field::may("reason", Kind::Text(1000), "Why; goes on record");
const LIMIT: Field = Field::may("limit", Kind::Number(1, RunFilter::MAX_LIMIT as u64), "At most so many");
const SINCE: Field = Field::may("since_usec", Kind::Number(0, NUMBER_MAX), "From this time on, in µs since 1970");
const AFTER: Field = Field::may("after", Kind::Number(0, NUMBER_MAX), "Rows after the one with this number");
const FINISHED: Field = Field::may("finished", Kind::Flag, "The finished ones too");
const PHASE: Field = Field::may("phase", Kind::Phase, "In this phase");
const HEALTH: Field = Field::may("health", Kind::Health, "With this health");
const VIEWER: Option<Role> = Some(Role::Viewer);
const OPERATOR: Option<Role> = Some(Role::Operator);
const STARTER: Option<Role> = Some(Role::Starter);
const CURSOR: Field = Field::may("cursor", Kind::Cursor, "After the page that gave this as its next_cursor");
const WORKFLOW: Field = Field::may("workflow", Kind::Workflow, "Of this workflow");

macro_rules! handler {
    ($handler:expr) => {
        |call| Box::pin($handler(call))
    };
}

macro_rules! route {
    ($verb:ident $path:literal, $name:literal: $about:literal, needs $needs:expr, path [$($field:expr),*],
     query [$($query:expr),*], body [$($body:expr),*] $(one of [$($one:literal),*])?, gives $shape:expr,
     and [$($status:literal),*], by $handler:expr) => {
        Route {
            verb: Verb::$verb, path: $path, name: $name, about: $about, needs: $needs, path_fields: &[$($field),*],
            query: &[$($query),*], body: &[$($body),*], one_of: &[$($($one),*)?], shape: $shape, statuses: &[$($status),*],
            handler: handler!($handler),
        }
    };
}

/// Every path.
#[rustfmt::skip] // A paragraph for each.
pub static ROUTES: &[Route] = &[
    route!(Get "/api/v1/whoami", "whoami": "Who asks, and what is looked at",
        needs VIEWER, path [], query [], body [], gives Shape::Json("Who"), and [], by read::whoami),
    route!(Post "/api/v1/login", "login": "Opens a session for a token, or for the one-time code of `guardian web`",
        needs None, path [], query [],
        body [Field::may("token", Kind::Text(256), "A token"), Field::may("code", Kind::Text(256), "The code of a link")]
        one of ["token", "code"], gives Shape::Json("Who"), and [401], by act::login),
    route!(Post "/api/v1/logout", "logout": "Closes the session",
        needs VIEWER, path [], query [], body [], gives Shape::Json("Nothing"), and [], by act::logout),
    route!(Get "/api/v1/runs", "listRuns": "Runs, newest first",
        needs VIEWER, path [],
        query [FINISHED, WORKFLOW, PHASE, HEALTH, SINCE, LIMIT], body [], gives Shape::Json("Runs"), and [], by read::runs),
    route!(Get "/api/v1/runs/{id}", "showRun": "One run, read anew, with its processes",
        needs VIEWER, path [RUN], query [], body [], gives Shape::Json("Run"), and [404], by read::run),
    route!(Get "/api/v1/runs/{id}/explain", "explainRun": "What a run waits for, or waited for when it was ended",
        needs VIEWER, path [RUN], query [], body [], gives Shape::Json("Explanation"), and [404, 409], by read::explain),
    route!(Get "/api/v1/runs/{id}/samples", "samplesOfRun": "What a run used over time",
        needs VIEWER, path [RUN], query [SINCE], body [], gives Shape::Json("Samples"), and [404], by read::samples),
    route!(Get "/api/v1/runs/{id}/audit", "auditOfRun": "The audit of a run",
        needs VIEWER, path [RUN], query [], body [], gives Shape::Json("Events"), and [404], by read::audit_of),
    route!(Post "/api/v1/runs/{id}/extend", "extendRun": "Gives a limit of a run more time",
        needs OPERATOR, path [RUN], query [],
        body [Field::must("limit", Kind::Limit, "The limit"),
              Field::must("by_usec", Kind::Number(1, NUMBER_MAX), "How much longer, in µs"), REASON],
        gives Shape::Json("Deadline"), and [404, 409], by act::extend),
    route!(Post "/api/v1/runs/{id}/freeze", "freezeRun": "Pauses a run",
        needs OPERATOR, path [RUN], query [], body [REASON], gives Shape::Json("Nothing"), and [404, 409], by act::freeze),
    route!(Post "/api/v1/runs/{id}/thaw", "thawRun": "Lets a paused run go on",
        needs OPERATOR, path [RUN], query [], body [REASON], gives Shape::Json("Nothing"), and [404, 409], by act::thaw),
    route!(Post "/api/v1/workflows/{executor}/run/{id}/kill", "killRun": "Ends a run, and waits for its end",
        needs OPERATOR, path [EXECUTOR, RUN],
        query [Field::may("force", Kind::Flag, "At once, without SIGTERM and grace period")], body [REASON],
        gives Shape::Json("Kill"), and [202, 404, 409], by act::kill),
    route!(Post "/api/v1/workflows/{executor}/run/{workflow}", "startRun": "Starts a run, or queues it",
        needs STARTER, path [EXECUTOR, Field::must("workflow", Kind::Workflow, "The workflow")], query [],
        body [Field::may("command", Kind::Texts, "The command and its arguments"),
              Field::may("prompt", Kind::Text(32_768), "What an agent is asked to do, in the place of a command"),
              Field::may("name", Kind::Text(128), "A name for people"),
              Field::may("cwd", Kind::Text(4096), "The working directory; else the home directory of its user"),
              Field::may("workspace_path", Kind::Text(4096), "Another name of cwd"),
              Field::may("env", Kind::Variables, "Variables"),
              Field::may("limits", Kind::Object(start::LIMITS), "What it is held to, beside what its workflow is"),
              Field::may("uid", Kind::Number(1, u32::MAX as u64 - 1), "Whose run it is to be"), REASON],
        gives Shape::Json("Started"), and [], by start::start),
    route!(Get "/api/v1/workflows/{executor}/runs", "listRunsOfExecutor": "Runs of an executor, newest first, a page at a time",
        needs VIEWER, path [EXECUTOR], query [FINISHED, WORKFLOW, PHASE, HEALTH, SINCE, LIMIT, CURSOR], body [],
        gives Shape::Json("Runs"), and [], by read::page),
    route!(Get "/api/v1/workflows/{executor}/run/{id}/status", "statusOfRun": "How a run is, in short",
        needs VIEWER, path [EXECUTOR, RUN], query [], body [], gives Shape::Json("Status"), and [404], by read::status),
    route!(Get "/api/v1/monitoring/health", "health": "How everything is: as bad as the worst of it",
        needs VIEWER, path [], query [], body [], gives Shape::Json("Health"), and [], by read::health),
    route!(Get "/api/v1/audit", "audit": "The audit",
        needs VIEWER, path [], query [AFTER, LIMIT, Field::may("kind", Kind::Event, "Of this kind")], body [],
        gives Shape::Json("Events"), and [], by read::audit),
    route!(Get "/api/v1/statistics", "statistics": "What the runs that are over say of their workflows",
        needs VIEWER, path [], query [WORKFLOW, SINCE], body [],
        gives Shape::Json("Statistics"), and [], by read::statistics),
    route!(Get "/api/v1/events", "events": "What happens, as server-sent events: audit, run, instance and unavailable",
        needs VIEWER, path [], query [AFTER], body [], gives Shape::Other("text/event-stream"), and [], by events::events),
    route!(Get "/api/v1/openapi.json", "openapi": "This document",
        needs VIEWER, path [], query [], body [], gives Shape::Json("Document"), and [], by openapi::document),
    route!(Get "/metrics", "metrics": "What Prometheus scrapes",
        needs None, path [], query [], body [], gives Shape::Other("application/openmetrics-text"), and [],
        by metrics::metrics),
    route!(Get "/healthz", "healthz": "Whether the instance answers",
        needs None, path [], query [], body [], gives Shape::Other("text/plain"), and [], by read::healthz),
    route!(Get "/", "dashboard": "The dashboard",
        needs None, path [], query [], body [], gives Shape::Other("text/html"), and [304], by page),
    route!(Get "/assets/{name}", "asset": "A file of the dashboard",
        needs None, path [Field::must("name", Kind::Text(100), "The file")], query [], body [],
        gives Shape::Other("*/*"), and [304, 404], by asset),
];

async fn page(call: Call) -> Answer {
    assets::file("index.html", &call.headers)
}

async fn asset(call: Call) -> Answer {
    assets::file(call.arguments.text("name"), &call.headers)
}

/// The router of all paths. What it is asked was sent to one of our names.
pub fn router(app: &Arc<App>) -> Router {
    let router = ROUTES.iter().fold(Router::new(), |router, route| {
        let app = app.clone();
        let filter = match route.verb {
            Verb::Get => MethodFilter::GET,
            Verb::Post => MethodFilter::POST,
        };
        let serve = move |request: Request| {
            let app = app.clone();
            async move { answer(app, route, request).await.unwrap_or_else(|problem| problem.reply()) }
        };
        // The router knows one name for what is at one place.
        router.route(&route.path.replace("/run/{workflow}", "/run/{id}"), on(filter, serve))
    });
    let unknown =
        || async { Problem::not_found("there is nothing at this path: /api/v1/openapi.json has all").reply() };
    router.fallback(unknown).method_not_allowed_fallback(|| async { Problem::not_allowed().reply() })
}

async fn answer(app: Arc<App>, route: &'static Route, request: Request) -> Answer {
    let (mut parts, body) = request.into_parts();
    let who = match route.needs {
        None => None,
        Some(role) => {
            let who = door::who(&app, &parts.headers)?;
            if who.role < role {
                return Err(Problem::forbidden(format!(
                    "the token {} is a {}'s, and this needs the role {role}: `guardian token new --role {role} NAME` makes one",
                    who.name, who.role
                )));
            }
            Some(who)
        }
    };
    door::may_change(&parts, who.as_ref())?;
    let mut arguments = Arguments::default();
    let path = RawPathParams::from_request_parts(&mut parts, &()).await;
    let path = path.map_err(|e| Problem::malformed(format!("the path cannot be read: {e}")))?;
    // In the order of the path, whatever the router calls them.
    let names = route.path_fields.iter().map(|field| field.name);
    arguments.take(route.path_fields, &owned(names.zip(path.iter().map(|(_, value)| value))))?;
    let query = Query::<Vec<(String, String)>>::try_from_uri(&parts.uri);
    let Query(query) = query.map_err(|_| Problem::malformed("the query cannot be read"))?;
    // To the page and its files whoever links to them may add what they like.
    if route.path.starts_with("/api/") {
        arguments.take(route.query, &query)?;
    }
    if route.verb == Verb::Post {
        let bytes = read_body(&parts.headers, body).await?;
        arguments.take_body(route.body, &bytes)?;
        arguments.just_one(route.one_of)?;
    }
    let call = Call { app, who, arguments, headers: parts.headers };
    let answering = (route.handler)(call);
    match route.verb {
        // These wait for what they change; each has its own patience.
        Verb::Post => answering.await,
        Verb::Get => {
            let late = |_| Problem::busy(format!("the instance did not answer in {} s", read::PATIENCE.as_secs()));
            tokio::time::timeout(read::PATIENCE, answering).await.map_err(late)?
        }
    }
}

fn owned<'a>(pairs: impl Iterator<Item = (&'a str, &'a str)>) -> Vec<(String, String)> {
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

async fn read_body(headers: &HeaderMap, body: Body) -> Result<Vec<u8>, Problem> {
    let said = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if said.is_some_and(|length| length > BODY_MAX) {
        return Err(Problem::too_large(BODY_MAX));
    }
    match tokio::time::timeout(BODY, Limited::new(body, BODY_MAX).collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes().to_vec()),
        Ok(Err(e)) if e.is::<http_body_util::LengthLimitError>() => Err(Problem::too_large(BODY_MAX)),
        Ok(Err(e)) => Err(Problem::malformed(format!("the body cannot be read: {e}"))),
        Err(_) => Err(Problem::too_slow(BODY)),
    }
}
