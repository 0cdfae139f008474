//! Debian's Prometheus, with the alert rules that are packaged, before real runs: and the dashboard for Grafana, as far as it can
//! be had without Grafana.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::common::*;
use crate::rig::*;

/// Prometheus that scrapes a guardian-web each second.
struct Prometheus {
    _process: Process,
    _dir: tempfile::TempDir,
    at: SocketAddr,
}

impl Prometheus {
    fn before(web: &Web) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let rules = std::path::absolute("packaging/prometheus/guardian.rules.yml").unwrap();
        let config = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: [\"{}\"]\n\
             scrape_configs: [{{job_name: guardian, static_configs: [{{targets: [\"{}\"]}}]}}]\n",
            rules.display(),
            web.at
        );
        let file = dir.path().join("prometheus.yml");
        std::fs::write(&file, config).unwrap();
        // Taken just now and free again: whoever else takes it makes this test fail, and nothing else.
        let at = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut command = Command::new("prometheus");
        command
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", dir.path().join("data").display()))
            .arg(format!("--web.listen-address={at}"))
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(dir.path().join("log")).unwrap());
        Self { _process: Process(command.spawn().unwrap()), _dir: dir, at }
    }

    /// What it answers, once it does.
    fn ask(&self, path: &str) -> Option<Value> {
        let mut stream = std::net::TcpStream::connect(self.at).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        std::io::Write::write_all(&mut stream, Ask::new(self.at, "GET", path).text().as_bytes()).ok()?;
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut stream, &mut bytes).ok()?;
        let reply = Reply::parse(&bytes)?;
        // What is long comes in chunks, each with a line for its size.
        let from = reply.body.find('{')?;
        let to = reply.body.rfind('}')?;
        serde_json::from_str(&reply.body[from..=to]).ok()
    }

    /// The series that an expression gives; an expression that makes no sense fails the test.
    fn query(&self, expression: &str) -> Vec<Value> {
        let encoded: String = expression.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let Some(told) = self.ask(&format!("/api/v1/query?query={encoded}")) else { return Vec::new() };
        assert_eq!(told["status"], "success", "{expression}: {told}");
        told["data"]["result"].as_array().unwrap().clone()
    }

    /// The alert that fires for a workflow.
    fn alert(&self, workflow: &str) -> Option<Value> {
        let alerts = self.ask("/api/v1/alerts")?;
        let all = alerts["data"]["alerts"].as_array()?.clone();
        all.into_iter().find(|a| a["labels"]["workflow"] == workflow && a["state"] == "firing")
    }
}

#[test]
fn prometheus_scrapes_it_and_an_alert_fires_for_a_stuck_run() {
    crate::needs_program!("prometheus");
    let web = Web::new();
    let prometheus = Prometheus::before(&web);
    let well = web.sleeper("builder");
    eventually("it has scraped the run", || {
        let series = prometheus.query("guardian_runs{workflow=\"builder\"}");
        (series.first()?["value"][1] == "1").then_some(())
    });
    let options = ["-w", "lina", "--init-timeout", "1s", "--init-action", "warn", "--readiness", "notify"];
    let stuck = web.world.detach(&options, &["sleep", "1000"]);
    let firing = eventually("the alert fires", || prometheus.alert("lina"));
    assert_eq!(
        (&firing["labels"]["alertname"], &firing["labels"]["severity"]),
        (&"GuardianRunCritical".into(), &"critical".into())
    );
    assert!(prometheus.alert("builder").is_none(), "{firing}");
    web.world.guardian(["kill", "--force", &stuck, &well]).exits(0);
    eventually("it is over", || prometheus.alert("lina").is_none().then_some(()));
}

fn dashboard() -> Value {
    serde_json::from_str(&std::fs::read_to_string("packaging/grafana/guardian.json").unwrap()).unwrap()
}

fn array(value: &Value) -> &[Value] {
    value.as_array().unwrap_or_else(|| panic!("no list: {value}"))
}

/// The words that follow a mark: `$NAME` of variables, `{{NAME}}` of labels.
fn named<'a>(text: &'a str, mark: &str) -> BTreeSet<&'a str> {
    let is_of_a_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.split(mark).skip(1).map(|rest| &rest[..rest.find(|c| !is_of_a_name(c)).unwrap_or(rest.len())]).collect()
}

/// Each panel draws something, whatever is chosen above: Grafana writes all that is chosen of a variable as alternatives.
#[test]
fn every_panel_of_the_dashboard_for_grafana_draws_what_live_runs_give() {
    crate::needs_program!("prometheus");
    let web = Web::new();
    let prometheus = Prometheus::before(&web);
    web.sleeper("builder");
    web.world.guardian(["kill", "--force", &web.sleeper("lina")]).exits(0);
    let deaf = "trap '' TERM; echo deaf; while :; do sleep 1; done";
    let ending = web.world.detach(&["-w", "lina", "--grace", "1h"], &["sh", "-c", deaf]);
    let log = |run: &str| web.world.guardian(["logs", run]).stdout;
    eventually("it is deaf", || log(&ending).contains("deaf").then_some(()));
    // It waits in vain for its end, and ends with its connection.
    let kill = web.post(&web.kill_path(&ending), "{}").bearer(&web.operator);
    let mut connection = connect(web.at);
    std::io::Write::write_all(&mut connection, kill.text().as_bytes()).unwrap();

    let dashboard = dashboard();
    let chosen = |expression: &str| {
        array(&dashboard["templating"]["list"]).iter().filter(|v| v["type"] == "query").try_fold(
            expression.to_owned(),
            |text, variable| {
                let asked = variable["query"]["query"].as_str()?.strip_prefix("label_values(")?.strip_suffix(')')?;
                let (metric, label) = asked.split_once(", ")?;
                let values = prometheus.ask(&format!("/api/v1/label/{label}/values?match[]={metric}"))?;
                let values: Vec<String> =
                    values["data"].as_array()?.iter().map(|v| v.as_str().unwrap().replace('.', "\\\\.")).collect();
                let name = format!("${}", variable["name"].as_str()?);
                (!values.is_empty()).then(|| text.replace(&name, &format!("({})", values.join("|"))))
            },
        )
    };
    for panel in array(&dashboard["panels"]) {
        for target in array(&panel["targets"]) {
            let (title, expression) = (&panel["title"], target["expr"].as_str().unwrap());
            let series = eventually(&format!("{title} draws {expression}"), || {
                let series = prometheus.query(&chosen(expression)?);
                (!series.is_empty()).then_some(series)
            });
            for label in named(target["legendFormat"].as_str().unwrap(), "{{") {
                assert!(series.iter().all(|one| one["metric"][label].is_string()), "{title}: no {label} in {series:?}");
            }
            assert!(series.iter().all(|one| one["value"][1] != "NaN"), "{title}: {series:?}");
        }
    }
    web.world.guardian(["kill", "--force", &ending]).exits(0);
}

/// What Grafana takes for granted of a dashboard that is imported.
#[test]
fn the_dashboard_for_grafana_is_whole() {
    let dashboard = dashboard();
    // Before 36 a data source was named, and not by its uid as here: Grafana would take it for an older one.
    assert!(dashboard["schemaVersion"].as_u64().is_some_and(|version| version >= 36), "{}", dashboard["schemaVersion"]);
    assert!(dashboard["uid"].as_str().is_some_and(|uid| (1..=40).contains(&uid.len())) && dashboard["id"].is_null());
    let variables = array(&dashboard["templating"]["list"]);
    let names: BTreeSet<&str> = variables.iter().map(|variable| variable["name"].as_str().unwrap()).collect();
    assert_eq!(variables.iter().filter(|v| v["type"] == "datasource" && v["query"] == "prometheus").count(), 1);
    let (mut ids, mut taken) = (BTreeSet::new(), BTreeSet::new());
    for panel in array(&dashboard["panels"]) {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "the id of {panel} is there twice");
        assert!(panel["title"].as_str().is_some_and(|title| !title.is_empty()), "{panel}");
        assert!(matches!(panel["type"].as_str(), Some("stat" | "timeseries")), "{panel}");
        let [x, y, w, h] = ["x", "y", "w", "h"].map(|key| panel["gridPos"][key].as_u64().unwrap());
        assert!(w > 0 && h > 0 && x + w <= 24, "{} has no room", panel["title"]);
        for cell in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
            assert!(taken.insert(cell), "{} lies over another", panel["title"]);
        }
        let mut references = BTreeSet::new();
        for target in array(&panel["targets"]) {
            assert!(references.insert(target["refId"].as_str().unwrap()), "{}", panel["title"]);
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{}", panel["title"]);
            let expression = target["expr"].as_str().unwrap();
            assert!(named(expression, "$").is_subset(&names), "{expression}: which of {names:?}?");
        }
    }
    assert!(ids.len() >= 10);
}
