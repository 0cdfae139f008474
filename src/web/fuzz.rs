//! What is fuzzed here: the file of the tokens, and what a request says in its address, its headers and its body.

use std::net::SocketAddr;

use axum::extract::Query;
use axum::http::{HeaderValue, Request, header};

use super::arguments::{Arguments, Kind};
use super::door::{Hosts, may_change, sent_here, session_id};
use super::reply::Problem;
use super::routes::ROUTES;
use super::tokens;
use crate::model::fuzz::{Target, check_sentence};

pub const TARGETS: &[Target] = &[("web_tokens", tokens), ("web_requests", requests)];

/// Tokens are written as what reads back as the same; or the mistake is told with its line, and not the secret.
fn tokens(data: &[u8]) {
    let text = &*String::from_utf8_lossy(data);
    match tokens::parse(text) {
        Ok(all) => {
            let written: String = all.iter().map(|token| format!("{token}\n")).collect();
            assert_eq!(tokens::parse(&written), Ok(all), "{written}");
        }
        Err(told) => check_sentence(&told),
    }
}

fn refused(problem: &Problem) {
    assert!(problem.status.is_client_error(), "{problem:?}");
    check_sentence(&problem.message);
}

/// The host, the origin, the cookies, the query and the body, each ended by a NUL: nothing passes that is not exactly ours,
/// and what a route takes is within its bounds.
fn requests(data: &[u8]) {
    let mut parts = data.splitn(5, |byte| *byte == 0);
    let mut next = || parts.next().unwrap_or_default();
    let (host, origin, cookies, query, body) = (next(), next(), next(), next(), next());
    let at = SocketAddr::from(([127, 0, 0, 1], 8080));
    let hosts = Hosts::of_address(at, &["guardian.example".to_owned()]);
    let mut head = Request::new(()).into_parts().0;
    for (name, value) in [(header::HOST, host), (header::ORIGIN, origin), (header::COOKIE, cookies)] {
        if let Ok(value) = HeaderValue::from_bytes(value) {
            head.headers.append(name, value);
        }
    }
    if let Err(problem) = sent_here(&head, &hosts) {
        refused(&problem);
    } else {
        let ours = ["127.0.0.1:8080", "localhost:8080", "guardian.example", "guardian.example:8080"];
        let is_ours = |text: &str| ours.iter().any(|name| name.eq_ignore_ascii_case(text));
        assert!(std::str::from_utf8(host).is_ok_and(is_ours));
        let origin = std::str::from_utf8(origin).unwrap_or_default();
        let page = origin.split_once("://").map_or(origin, |(_, page)| page);
        assert!(!head.headers.contains_key(header::ORIGIN) || is_ours(page), "{origin}");
    }
    let _ = may_change(&head, None).map_err(|problem| refused(&problem));
    assert!(session_id(&head.headers).is_none_or(|id| !id.contains([';', '='])) || cookies.contains(&b'='));

    let uri = format!("/?{}", String::from_utf8_lossy(query)).parse();
    let pairs = uri.ok().and_then(|uri| Query::<Vec<(String, String)>>::try_from_uri(&uri).ok());
    for route in ROUTES {
        let mut arguments = Arguments::default();
        let _ = pairs.as_ref().map(|Query(pairs)| arguments.take(route.query, pairs).map_err(|p| refused(&p)));
        let _ = arguments.take_body(route.body, body).map_err(|problem| refused(&problem));
        // As many characters as a text may have at most, of four bytes each.
        for field in route.query.iter().chain(route.body) {
            if let (Kind::Text(most), Some(text)) = (field.kind, arguments.some_text(field.name)) {
                assert!(text.len() <= 4 * most, "{}", field.name);
            }
        }
    }
}
