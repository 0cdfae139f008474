//! The OpenAPI document, made of the table of routes: what it says of a path is what that path is held to.

use serde_json::{Map, Value, json};

use super::arguments::{Field, object_schema};
use super::reply::json as reply;
use super::routes::{Answer, Call, ROUTES, Route, Shape, Verb};
use super::tokens::Role;

/// The document.
pub async fn document(_: Call) -> Answer {
    Ok(reply(&made()))
}

fn made() -> Value {
    let mut paths = Map::new();
    for route in ROUTES {
        let verb = match route.verb {
            Verb::Get => "get",
            Verb::Post => "post",
        };
        let path = paths.entry(route.path).or_insert_with(|| json!({}));
        path[verb] = operation(route);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Guardian",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Runs, what happens to them, and how they are ended. Times are µs since 1970 in UTC (`*_usec`) and \
                RFC 3339; durations are µs. Keys are added, never renamed or removed.",
            "license": {"name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": schemas(),
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer", "description": "A token of `guardian token new`"},
                "session": {"type": "apiKey", "in": "cookie", "name": super::door::COOKIE},
            },
        },
    })
}

fn operation(route: &Route) -> Value {
    let place = |place: &'static str| {
        move |field: &Field| {
            json!({
                "name": field.name, "in": place, "required": field.required, "description": field.about,
                "schema": field.kind.schema(),
            })
        }
    };
    let parameters: Vec<Value> =
        route.path_fields.iter().map(place("path")).chain(route.query.iter().map(place("query"))).collect();
    let mut operation = json!({
        "operationId": route.name,
        "summary": route.about,
        "parameters": parameters,
        "responses": responses(route),
        "security": if route.needs.is_some() { json!([{"token": []}, {"session": []}]) } else { json!([]) },
    });
    if let Some(role) = route.needs {
        operation["x-role"] = role.as_str().into();
    }
    if route.verb == Verb::Post {
        operation["requestBody"] = json!({
            "required": true,
            "content": {"application/json": {"schema": body_schema(route)}},
        });
    }
    operation
}

fn body_schema(route: &Route) -> Value {
    let mut schema = object_schema(route.body);
    let one = route.body.iter().filter(|field| route.one_of.contains(&field.name));
    // Not `required` alone: null is as good as nothing.
    let one = one.map(|field| json!({"required": [field.name], "properties": {field.name: field.kind.schema()}}));
    let one: Vec<Value> = one.collect();
    if !one.is_empty() {
        schema["oneOf"] = one.into();
    }
    schema
}

/// Every status that the path can answer with.
fn statuses(route: &Route) -> Vec<u16> {
    // What is started is never done at once.
    let done = if route.needs == Some(Role::Starter) { 202 } else { 200 };
    let mut all = vec![done, 400, 403, 503];
    all.extend(route.statuses);
    if route.needs.is_some() {
        all.push(401);
    }
    if route.path.starts_with("/api/") {
        all.extend([429, 500]);
    }
    if route.path.starts_with("/api/") || !route.path_fields.is_empty() {
        all.push(422);
    }
    if route.verb == Verb::Post {
        all.extend([408, 413]);
    }
    all.sort_unstable();
    all.dedup();
    all
}

fn responses(route: &Route) -> Value {
    let content = match route.shape {
        Shape::Json(name) => json!({"application/json": {"schema": reference(name)}}),
        Shape::Other(media) => json!({media: {"schema": {"type": "string"}}}),
    };
    let refused = json!({"application/json": {"schema": reference("Error")}});
    let one = |status: u16| {
        let (about, content) = match status {
            200 => ("Done", Some(&content)),
            202 => ("On record, and under way", Some(&content)),
            304 => ("As it was", None),
            400 => ("Malformed", Some(&refused)),
            401 => ("No token, or one that does not hold", Some(&refused)),
            403 => ("Not with this role, to this name, or from this page", Some(&refused)),
            404 => ("Not there", Some(&refused)),
            408 => ("The body did not arrive", Some(&refused)),
            409 => ("The run is over already", Some(&refused)),
            413 => ("The body is too long", Some(&refused)),
            422 => ("A value that makes no sense", Some(&refused)),
            429 => ("Too many: Retry-After says when", Some(&refused)),
            503 => ("The instance does not answer", Some(&refused)),
            _ => ("A mistake of Guardian's", Some(&refused)),
        };
        let mut response = json!({"description": about});
        if let Some(content) = content {
            response["content"] = content.clone();
        }
        (status.to_string(), response)
    };
    Value::Object(statuses(route).into_iter().map(one).collect())
}

fn reference(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

/// The shapes of answers, as far as programs rely on them; there may be more keys in each.
fn schemas() -> Value {
    let text = || json!({"type": "string"});
    let time = || json!({"type": ["string", "null"], "format": "date-time"});
    let number = || json!({"type": ["integer", "null"]});
    let list = |name: &str| json!({"type": "array", "items": reference(name)});
    let object = |properties: Value| {
        let required: Vec<&String> = properties.as_object().into_iter().flat_map(Map::keys).collect();
        json!({"type": "object", "required": required, "properties": properties})
    };
    let role = json!({"type": "string", "enum": ["viewer", "operator", "starter"]});
    let phase = super::arguments::Kind::Phase.schema();
    let health = super::arguments::Kind::Health.schema();
    let any = || json!({"type": ["object", "null"]});
    let or_null = |name: &str| json!({"anyOf": [reference(name), {"type": "null"}]});
    let mut run = object(json!({
        "run_id": super::arguments::Kind::Run.schema(), "workflow": text(), "name": {"type": ["string", "null"]},
        "command": {"type": "array", "items": text()}, "uid": {"type": "integer"}, "user": text(),
        "executor": text(), "queue": or_null("Queue"), "phase": phase, "health": health, "health_reasons": {"type": "array", "items": {"type": "object"}},
        "containment": text(), "frozen": {"type": "boolean"}, "limits": {"type": "object"},
        "deadlines": {"type": "array", "items": {"type": "object"}}, "usage": reference("Usage"), "outcome": any(),
        "receipt": or_null("Receipt"), "heartbeats": {"type": "object"},
        "created_at": time(), "created_at_usec": number(), "started_at": time(), "started_at_usec": number(),
        "ready_at": time(), "ready_at_usec": number(), "finished_at": time(), "finished_at_usec": number(),
    }));
    run["properties"]["processes"] = json!({"type": "array", "items": {"type": "object"}});
    let mut runs = object(json!({"runs": list("Run")}));
    runs["properties"]["next_cursor"] = json!({"type": ["string", "null"]});
    let mut events = object(json!({"events": list("Event")}));
    events["properties"]["next_after"] = json!({"type": "integer"});
    json!({
        "Error": object(json!({"error": text(), "message": text()})),
        "Nothing": {"type": "object"},
        "Document": {"type": "object"},
        "Instance": object(json!({
            "version": text(), "instance": text(), "backend": text(), "health": health,
            "health_reasons": {"type": "array", "items": text()}, "runs_active": {"type": "integer"},
            "runs_total": {"type": "integer"}, "kills_total": {"type": "integer"}, "last_seq": {"type": "integer"},
            "started_at": time(), "started_at_usec": number(),
        })),
        "Who": object(json!({
            "token": text(), "role": role, "instance": or_null("Instance"),
        })),
        "Usage": object(json!({
            "cpu_usec": number(), "memory_bytes": number(), "memory_peak_bytes": number(), "tasks": number(),
            "io_read_bytes": number(), "io_write_bytes": number(), "activity_bytes": number(),
        })),
        "Queue": object(json!({"position": {"type": "integer"}, "length": {"type": "integer"}, "reason": text()})),
        "Run": run,
        "Runs": runs,
        "Started": object(json!({
            "success": {"type": "boolean"}, "run_id": super::arguments::Kind::Run.schema(), "workflow_name": text(),
            "executor": text(), "status": {"type": "string", "enum": ["queued", "starting"]}, "queue": or_null("Queue"),
            "message": text(), "links": {"type": "object"},
        })),
        "Receipt": object(json!({
            "run_id": text(), "mode": {"type": "string", "enum": ["graceful", "force"]}, "reason": text(),
            "reason_text": text(), "actor": text(), "requested_at": time(), "requested_at_usec": number(),
            "duration_usec": {"type": "integer"}, "steps": {"type": "array", "items": {"type": "object"}},
            "survivors": {"type": "integer"}, "proved": {"type": "boolean"}, "remains": any(),
        })),
        "Kill": object(json!({
            "success": {"type": ["boolean", "null"]}, "run_id": text(), "workflow_name": text(), "killed_at": time(),
            "kill_method": {"type": "string", "enum": ["graceful", "force"]}, "kill_duration_ms": number(),
            "cleanup_status": {"type": "string", "enum": ["complete", "incomplete", "pending"]}, "message": text(),
            "receipt": or_null("Receipt"),
        })),
        "Status": object(json!({
            "run_id": text(), "workflow_name": text(),
            "status": {"type": "string", "enum": ["queued", "running", "completed", "failed", "killed", "timeout"]},
            "executor": text(), "queue": or_null("Queue"), "phase": phase, "health": health, "started_at": time(), "finished_at": time(),
            "progress": {"type": ["string", "null"]}, "agent": any(), "session_id": {"type": ["string", "null"]},
            "metrics": {"allOf": [reference("Usage"), {"type": "object", "properties": {
                "turns": number(), "tokens": number(), "cost_usd": {"type": ["number", "null"]},
            }}]},
            "result": any(),
        })),
        "Health": object(json!({
            "status": health, "instance": reference("Instance"), "runs_active": {"type": "integer"},
            "unhealthy_runs": list("Run"),
        })),
        "Explanation": object(json!({
            "run_id": text(), "explanation": text(), "kept": {"type": "boolean"}, "seen_at": time(),
            "seen_at_usec": number(),
        })),
        "Samples": object(json!({"samples": {"type": "array", "items": {"allOf": [reference("Usage")]}}})),
        "Event": object(json!({
            "seq": {"type": "integer"}, "kind": text(), "run_id": {"type": ["string", "null"]},
            "workflow": {"type": ["string", "null"]}, "actor": text(), "actor_uid": number(), "reason": text(),
            "hash": text(), "at": time(), "at_usec": number(),
        })),
        "Statistics": object(json!({"workflows": {"type": "array", "items": object(json!({"workflow": text()}))}})),
        "Events": events,
        "Deadline": object(json!({"limit": text(), "deadline": time(), "deadline_usec": number()})),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Every `$ref` in it.
    fn references(value: &Value, into: &mut BTreeSet<String>) {
        match value {
            Value::Object(map) => {
                into.extend(map.get("$ref").and_then(Value::as_str).map(str::to_owned));
                map.values().for_each(|v| references(v, into));
            }
            Value::Array(all) => all.iter().for_each(|v| references(v, into)),
            _ => {}
        }
    }

    #[test]
    fn the_document_has_every_route_and_every_shape_that_it_names() {
        let document = made();
        let operations = |p: &Value| p.as_object().unwrap().len();
        let described: usize = document["paths"].as_object().unwrap().values().map(operations).sum();
        assert_eq!(described, ROUTES.len());
        let names: BTreeSet<&str> = ROUTES.iter().map(|route| route.name).collect();
        assert_eq!(names.len(), ROUTES.len(), "a name is there twice");
        let mut named = BTreeSet::new();
        references(&document, &mut named);
        for reference in &named {
            assert!(document.pointer(reference.strip_prefix('#').unwrap()).is_some(), "{reference}");
        }
        assert!(named.len() > 10);
    }

    #[test]
    fn what_changes_anything_needs_an_operator_and_every_parameter_of_a_path_is_described() {
        for route in ROUTES {
            let is_open = matches!(route.name, "login" | "metrics" | "healthz" | "dashboard" | "asset");
            assert_eq!(route.needs.is_none(), is_open, "{}", route.path);
            let of_session = matches!(route.name, "login" | "logout");
            let changes = route.verb == Verb::Post && !of_session;
            assert_eq!(matches!(route.needs, Some(Role::Operator | Role::Starter)), changes, "{}", route.path);
            let there: Vec<&str> = route.path.split('{').skip(1).map(|rest| rest.split('}').next().unwrap()).collect();
            let described: Vec<&str> = route.path_fields.iter().map(|field| field.name).collect();
            assert_eq!(there, described, "{}", route.path);
        }
    }
}
