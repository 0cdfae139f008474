//! What is packaged says the same as the code: catalog, polkit, D-Bus, units, and the lists of files in Cargo.toml.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use guardian::bus::{BUS_NAME, Right};
use guardian::launch::systemd::slice_of;
use guardian::model::EventKind;

/// What is in one of the packages only, because the distributions have other places for it.
const IN_ONE_ONLY: &[&str] = &[
    "systemd/guardian.preset",
    "target/release/packages/doc/*",
    "packaging/deb/lintian-overrides",
    "CHANGELOG.md",
    "LICENSE",
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// What stands between `open` and the next `close`, wherever it does.
fn between<'a>(text: &'a str, open: &str, close: &str) -> Vec<&'a str> {
    text.split(open).skip(1).map(|rest| rest.split(close).next().unwrap()).collect()
}

/// The values of a key in a unit or a service file of D-Bus, in words.
fn values<'a>(unit: &'a str, key: &str) -> Vec<&'a str> {
    let lines = unit.lines().filter_map(|l| l.strip_prefix(key)?.strip_prefix('='));
    lines.flat_map(str::split_whitespace).collect()
}

fn actions() -> BTreeSet<&'static str> {
    Right::ALL.into_iter().map(Right::action).collect()
}

#[test]
fn the_catalog_has_an_entry_for_each_kind_of_event() {
    let text = read("systemd/catalog/guardian.catalog");
    let (_, text) = text.split_once("\n-- ").unwrap();
    let entries: Vec<_> = text.split("\n-- ").map(|entry| entry.split_once('\n').unwrap()).collect();
    let by_id: BTreeMap<_, _> = entries.iter().copied().collect();
    assert_eq!(by_id.len(), entries.len(), "an id is there twice");
    let kinds: BTreeSet<_> = EventKind::ALL.iter().map(|k| k.message_id()).collect();
    assert_eq!(by_id.keys().copied().collect::<BTreeSet<_>>(), kinds);

    let journal = read("src/daemon/journal.rs");
    for kind in EventKind::ALL {
        let (entry, name) = (by_id[kind.message_id()], kind.as_str());
        let (header, body) = entry.split_once("\n\n").unwrap();
        assert!(header.starts_with("Subject: ") && header.contains("\nDefined-By: Guardian"), "{name}: {header}");
        assert!(body.contains("@GUARDIAN_REASON@"), "{name} gives no reason");
        // Those of an instance have another prefix and no run.
        if !kind.message_id().starts_with("5be7a1f0c1d04c1e8f3c6d0b6c0a1") {
            for field in ["@GUARDIAN_RUN_ID@", "@GUARDIAN_ACTOR@"] {
                assert!(entry.contains(field), "{name} lacks {field}");
            }
        }
        for field in entry.split('@').skip(1).step_by(2) {
            let written = format!("{} = ", field.to_lowercase());
            assert!(journal.contains(&written), "{name} names {field}, which the journal does not get");
        }
    }
}

#[test]
fn the_policy_has_the_actions_of_the_code_and_gives_none_of_them_away() {
    let policy = read("packaging/polkit/org.guardian.Guardian1.policy");
    assert_eq!(between(&policy, "<action id=\"", "\"").into_iter().collect::<BTreeSet<_>>(), actions());
    for kind in ["allow_any", "allow_inactive", "allow_active"] {
        let answers = between(&policy, &format!("<{kind}>"), "<");
        assert_eq!(answers.len(), Right::ALL.len());
        assert!(answers.iter().all(|a| a.starts_with("auth_admin")), "{kind}: {answers:?}");
    }
}

#[test]
fn the_rules_grant_the_group_what_exists_and_never_to_start_runs_as_others() {
    let rules = read("packaging/polkit/org.guardian.Guardian1.rules");
    let code: String = rules.lines().filter(|l| !l.trim_start().starts_with("//")).collect();
    let granted: BTreeSet<_> = between(&code, "\"org.guardian.", "\"").into_iter().collect();
    assert!(!granted.is_empty());
    for action in granted {
        let action = format!("org.guardian.{action}");
        assert!(actions().contains(action.as_str()), "{action} does not exist");
        assert_ne!(action, Right::StartRun.action());
    }
    assert!(!code.contains("start-run"));
    // Two rules, which answer YES once each: to exactly these actions, and this group and this service; and leave everything
    // else to others.
    assert_eq!((code.matches("addRule").count(), code.matches("polkit.Result").count()), (2, 2));
    assert!(code.contains("if (granted.indexOf(action.id) >= 0 && subject.isInGroup(\"guardian\")) {"));
    assert!(code.contains("if (granted.indexOf(action.id) >= 0 && subject.user == \"guardian-web\") {"));
    // The service manages nothing.
    assert_eq!(code.matches(Right::Manage.action()).count(), 1);
    assert_eq!(values(&read("systemd/guardian-web.service"), "User"), ["guardian-web"]);
    let users = read("systemd/guardian.sysusers");
    assert_eq!(users.lines().last(), Some("g guardian -"));
    // The bus lets nobody in whom it does not find among the users of the host.
    for service in ["guardian-web", "guardian-notify"] {
        assert!(users.contains(&format!("\nu {service} - ")), "{users}");
    }
}

#[test]
fn what_tells_people_may_read_and_nothing_else() {
    let rules = read("packaging/polkit/org.guardian.Guardian1.notify.rules");
    let code: String = rules.lines().filter(|l| !l.trim_start().starts_with("//")).collect();
    assert_eq!((code.matches("addRule").count(), code.matches("polkit.Result").count()), (1, 1));
    let condition = format!("action.id == \"{}\" && subject.user == \"guardian-notify\"", Right::ReadAll.action());
    assert!(code.contains(&condition), "{code}");
    let unit = read("systemd/guardian-notify.service");
    assert_eq!((values(&unit, "User"), values(&unit, "DynamicUser")), (vec!["guardian-notify"], vec!["yes"]));
    // Without it people would be told by a service that an upgrade has turned on.
    assert!(!read("systemd/guardian.preset").contains("notify"));
}

#[test]
fn units_and_the_code_name_the_same_slice() {
    // systemd puts a slice with a dash into the one that is named by what is before it.
    let slice = format!("{}.slice", slice_of("builder").split_once('-').unwrap().0);
    let unit = read("systemd/guardiand.service");
    let cgroup = format!("/sys/fs/cgroup/{slice}");
    assert_eq!(values(&unit, "ReadWritePaths"), [cgroup.as_str()]);
    assert!(values(&unit, "Wants").contains(&slice.as_str()) && values(&unit, "After").contains(&slice.as_str()));
    // With these, stopping the slice would stop the service, or the other way round.
    for key in ["Requires", "BindsTo", "PartOf", "Slice", "PropagatesStopTo"] {
        assert!(!unit.contains(&format!("\n{key}=")), "{key}");
    }
    for dir in ["systemd", "systemd/user"] {
        assert!(root().join(dir).join(&slice).exists(), "{dir}");
    }
}

#[test]
fn the_bus_activates_the_service_under_the_name_that_it_asks_for() {
    for kind in ["system", "session"] {
        let service = read(format!("packaging/dbus/{BUS_NAME}.{kind}.service"));
        let unit = read(if kind == "system" { "systemd/guardiand.service" } else { "systemd/user/guardiand.service" });
        assert_eq!((values(&service, "Name"), values(&unit, "BusName")), (vec![BUS_NAME], vec![BUS_NAME]), "{kind}");
        assert_eq!(values(&service, "SystemdService"), ["guardiand.service"]);
        assert_eq!(values(&service, "Exec"), values(&unit, "ExecStart"));
    }
    let policy = read(format!("packaging/dbus/{BUS_NAME}.conf"));
    let names = between(&policy, "send_destination=\"", "\"").into_iter().chain(between(&policy, " own=\"", "\""));
    assert!(names.into_iter().all(|name| name == BUS_NAME));
}

/// A service that is reached from browsers has no network of its own, no rights, and is off until somebody wants it.
#[test]
fn the_web_service_has_its_sockets_from_outside_and_is_not_enabled_by_the_package() {
    let (service, socket) = (read("systemd/guardian-web.service"), read("systemd/guardian-web.socket"));
    for (key, value) in [
        ("DynamicUser", "yes"),
        ("PrivateNetwork", "yes"),
        ("RestrictAddressFamilies", "AF_UNIX"),
        ("CapabilityBoundingSet", ""),
        ("ProtectSystem", "strict"),
    ] {
        let expected: Vec<&str> = value.split_whitespace().collect();
        assert!(service.contains(&format!("\n{key}=")), "{key}");
        assert_eq!(values(&service, key), expected, "{key}");
    }
    let credential = format!("{}:{}", guardian::web::tokens::FILE, guardian::web::tokens::SYSTEM_FILE);
    assert_eq!(values(&service, "LoadCredential"), [credential.as_str()]);
    assert_eq!(values(&socket, "ListenStream"), ["/run/guardian-web.sock", "127.0.0.1:8642"]);
    assert_eq!((values(&socket, "SocketMode"), values(&socket, "SocketGroup")), (vec!["0660"], vec!["guardian"]));
    assert!(!read("systemd/guardian.preset").contains("enable guardian-web"));
    let manifest: toml::Table = read("Cargo.toml").parse().unwrap();
    let units = manifest["package"]["metadata"]["deb"]["systemd-units"].to_string();
    assert!(!units.contains("guardian-web"), "{units}");
}

#[test]
fn what_the_packages_name_exists_and_both_have_the_same() {
    let manifest: toml::Table = read("Cargo.toml").parse().unwrap();
    let metadata = &manifest["package"]["metadata"];
    let text = |value: &toml::Value| value.as_str().unwrap().to_owned();
    let assets = |tool: &str| metadata[tool]["assets"].as_array().unwrap().clone();
    let deb: BTreeMap<_, _> = assets("deb").iter().map(|a| (text(&a[0]), format!("/{}", text(&a[1])))).collect();
    let rpm: BTreeMap<_, _> = assets("generate-rpm").iter().map(|a| (text(&a["source"]), text(&a["dest"]))).collect();
    for source in deb.keys().chain(rpm.keys()) {
        // What is generated is put there by packaging/build.
        let there = source.starts_with("target/release/packages/") || root().join(source).is_file();
        assert!(there, "{source} does not exist");
    }
    let common = |assets: &BTreeMap<String, String>| {
        let mut assets = assets.clone();
        assets.retain(|source, _| !IN_ONE_ONLY.contains(&source.as_str()));
        // Debian has another directory for what packages bring.
        assets.values_mut().for_each(|to| *to = to.replace("zsh/vendor-completions/", "zsh/site-functions/"));
        assets
    };
    assert_eq!(common(&deb), common(&rpm));
    assert_eq!(text(&metadata["deb"]["conf-files"][0]), deb["packaging/etc/config.toml"]);
    for key in ["post_install_script", "pre_uninstall_script", "post_uninstall_script"] {
        assert!(root().join(text(&metadata["generate-rpm"][key])).is_file(), "{key}");
    }
    for file in walk("systemd").into_iter().chain(walk("packaging/dbus")).chain(walk("packaging/polkit")) {
        assert!(rpm.contains_key(&file), "{file} is in no package");
    }
}

/// A promise whose test was renamed or removed is none.
#[test]
fn each_test_that_the_promises_name_exists() {
    let sources: Vec<String> = ["src", "tests"].into_iter().flat_map(walk).collect();
    let code =
        |ends: &[&str]| sources.iter().filter(|f| ends.iter().any(|e| f.ends_with(e))).map(read).collect::<String>();
    let code = code(&[".rs", ".py"]);
    let promises = read("packaging/doc/SAFETY.md");
    // What has four words or more, all of small letters, is the name of a test.
    let is_name = |word: &str| {
        word.matches('_').count() >= 3
            && word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
    };
    let names: BTreeSet<_> = promises.split('`').skip(1).step_by(2).filter(|word| is_name(word)).collect();
    assert!(names.len() > 40, "{names:?}");
    let missing: Vec<_> = names
        .into_iter()
        .filter(|name| !["fn", "def"].iter().any(|define| code.contains(&format!("{define} {name}("))))
        .collect();
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn no_script_of_a_package_stops_runs() {
    for file in walk("packaging/deb").into_iter().chain(walk("packaging/rpm")) {
        for line in read(&file).lines().filter(|l| !l.trim_start().starts_with('#')) {
            let ends = line.contains("stop") && (line.contains("slice") || line.contains("run"));
            assert!(!ends || line.trim_start().starts_with("echo \""), "{file}: {line}");
            assert!(!line.contains("cgroup.kill"), "{file}: {line}");
        }
    }
}

/// The files below a directory of the repository, as paths in it.
/// A rule about a metric of another name never fires, and a panel of it stays empty: nobody would notice.
#[test]
fn rules_and_dashboard_name_only_metrics_that_are_served() {
    let source = read("src/web/metrics.rs");
    let served: BTreeSet<String> = (between(&source, "\"guardian_", "\"").into_iter())
        .flat_map(|name| ["", "_total", "_info"].map(|end| format!("guardian_{name}{end}")))
        .collect();
    for file in ["packaging/prometheus/guardian.rules.yml", "packaging/grafana/guardian.json"] {
        let text = read(file);
        let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let named: BTreeSet<&str> = text.split(|c| !word(c)).filter(|w| w.starts_with("guardian_")).collect();
        assert!(named.len() > 3, "{file} names {named:?}");
        let unknown: Vec<_> = named.iter().filter(|name| !served.contains(**name)).collect();
        assert!(unknown.is_empty(), "{file} names {unknown:?}");
    }
}

/// As Prometheus itself sees it.
#[test]
fn alert_rules_fire_when_they_should() {
    let promtool = |words: &[&str]| {
        let out = std::process::Command::new("promtool").args(words).current_dir(root()).output()?;
        let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        Ok::<_, std::io::Error>((out.status.success(), said))
    };
    for words in [
        ["check", "rules", "packaging/prometheus/guardian.rules.yml"],
        ["test", "rules", "tests/prometheus/guardian.rules.test.yml"],
    ] {
        match promtool(&words) {
            Ok((is_good, said)) => assert!(is_good, "{said}"),
            Err(e) if std::env::var_os("CI").is_some() => panic!("promtool (package prometheus) is needed: {e}"),
            Err(e) => eprintln!("SKIPPED: promtool (package prometheus) cannot be run: {e}"),
        }
    }
}

fn walk(dir: &str) -> Vec<String> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(root().join(dir)).unwrap().flatten() {
        let name = format!("{dir}/{}", entry.file_name().to_str().unwrap());
        if entry.path().is_dir() { files.extend(walk(&name)) } else { files.push(name) }
    }
    files
}
