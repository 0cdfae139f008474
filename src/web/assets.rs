//! The files of the dashboard, which are compiled in.

use std::sync::LazyLock;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;
use sha2::{Digest as _, Sha256};

use super::reply::{Problem, with_type};

macro_rules! assets {
    ($($name:literal),* $(,)?) => {
        /// Name and content of each.
        const FILES: &[(&str, &[u8])] = &[$(($name, include_bytes!(concat!("assets/", $name)))),*];
    };
}

assets![
    "alerts.js",
    "api.js",
    "app.css",
    "app.js",
    "audit.js",
    "charts.js",
    "dialogs.js",
    "dom.js",
    "history.js",
    "icon.svg",
    "index.html",
    "limits.js",
    "live.js",
    "login.js",
    "overview.js",
    "pages.css",
    "run.js",
    "stats.js",
    "store.js",
    "table.js",
    "text.js",
    "timeline.js",
];

/// The tag of each file: the beginning of its hash.
static TAGS: LazyLock<Vec<HeaderValue>> = LazyLock::new(|| {
    let tag = |content: &[u8]| {
        let hash: String = Sha256::digest(content).iter().take(12).map(|b| format!("{b:02x}")).collect();
        HeaderValue::from_str(&format!("\"{hash}\"")).unwrap_or(HeaderValue::from_static("\"\""))
    };
    FILES.iter().map(|(_, content)| tag(content)).collect()
});

fn type_of(name: &str) -> &'static str {
    match name.rsplit_once('.').map_or("", |(_, ending)| ending) {
        "html" => "text/html; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "js" => "text/javascript; charset=utf-8",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "json" | "webmanifest" => "application/json",
        _ => "application/octet-stream",
    }
}

/// The file with this name, or 304 to who has it.
pub fn file(name: &str, headers: &HeaderMap) -> Result<Response, Problem> {
    let known = FILES.iter().zip(TAGS.iter()).find(|((known, _), _)| *known == name);
    let ((_, content), tag) = known.ok_or_else(|| Problem::not_found("there is no such file of the dashboard"))?;
    let has = headers.get_all(header::IF_NONE_MATCH).iter().any(|value| {
        let tags = value.to_str().unwrap_or_default().split(',').map(str::trim);
        tags.map(|t| t.strip_prefix("W/").unwrap_or(t)).any(|t| t.as_bytes() == tag.as_bytes())
    });
    let mut reply = with_type(type_of(name), if has { Body::empty() } else { Body::from(*content) });
    if has {
        *reply.status_mut() = StatusCode::NOT_MODIFIED;
        reply.headers_mut().remove(header::CONTENT_TYPE);
    }
    reply.headers_mut().insert(header::ETAG, tag.clone());
    // Kept, and asked about each time: a new version is a new page at once.
    reply.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    Ok(reply)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_of_the_dashboard_is_compiled_in_and_typed() {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/src/web/assets");
        let mut there: Vec<String> =
            std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        there.sort();
        let mut served: Vec<&str> = FILES.iter().map(|(name, _)| *name).collect();
        served.sort_unstable();
        assert_eq!(served, there);
        assert!(served.iter().all(|name| type_of(name) != "application/octet-stream"), "{served:?}");
    }

    #[test]
    fn who_has_a_file_is_not_sent_it_again() {
        let first = file("index.html", &HeaderMap::new()).unwrap();
        assert_eq!(first.headers()["content-type"], "text/html; charset=utf-8");
        let mut headers = HeaderMap::new();
        headers.insert(header::IF_NONE_MATCH, first.headers()["etag"].clone());
        assert_eq!(file("index.html", &headers).unwrap().status(), StatusCode::NOT_MODIFIED);
        headers.insert(header::IF_NONE_MATCH, HeaderValue::from_static("\"other\""));
        assert_eq!(file("index.html", &headers).unwrap().status(), StatusCode::OK);
        assert_eq!(file("../tokens.rs", &headers).unwrap_err().status, StatusCode::NOT_FOUND);
    }
}
