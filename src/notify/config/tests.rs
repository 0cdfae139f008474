use std::path::Path;
use std::time::Duration;

use super::*;

fn refused(text: &str) -> Vec<String> {
    let problems = Config::parse(Path::new("n.toml"), text).unwrap_err().0;
    problems.iter().map(|p| p.to_string().strip_prefix("n.toml:").unwrap().to_owned()).collect()
}

const GOOD: &str = r#"
[delivery]
give_up_after = "2h"
retry_max = "1m"
outbox_max = 500

[channel.hook]
type = "webhook"
url = "https://example.org/hook"
secret_file = "/etc/guardian/hook"
timeout = "3s"
template = "{run}: {sentence}"

[channel.chat]
type = "slack"
credential = "slack"

[channel.mail]
type = "email"
server = "mail.example.org"
from = "Guardian <guardian@example.org>"
to = "ops@example.org"
user = "guardian"
credential = "mail"

[channel.page]
type = "exec"
command = ["/usr/bin/page", "--now"]

[channel.alerts]
type = "alertmanager"
url = "http://127.0.0.1:9093"
allow_private = true

[[route]]
workflow = ["build*", "lina"]
severity = "warning"
events = ["critical", "killed"]
channels = ["hook", "chat"]
dedup_window = "1m"
group_window = "30s"
quiet_hours = "22:00-07:00"

[[route]]
name = "rest"
channels = "mail"
"#;

#[test]
fn a_configuration_says_what_goes_where() {
    let config = Config::parse(Path::new("n.toml"), GOOD).unwrap();
    assert_eq!(config.delivery.give_up_after, Duration::from_secs(7200));
    assert_eq!((config.channels.len(), config.routes.len()), (5, 2));
    assert_eq!(
        (config.channels["hook"].timeout, config.channels["page"].timeout.as_secs()),
        (Duration::from_secs(3), 30)
    );
    let Target::Email(mail) = &config.channels["mail"].target else { panic!() };
    assert_eq!((mail.port, mail.tls, mail.login.is_some()), (587, MailTls::Starttls, true));
    let [first, rest] = &config.routes[..] else { panic!() };
    assert_eq!((first.name.as_str(), first.events.as_ref().unwrap().len()), ("route 1", 2));
    assert_eq!((rest.name.as_str(), rest.severity, rest.events.is_none()), ("rest", Severity::Info, true));
    assert!(Config::parse(Path::new("n.toml"), "").unwrap().routes.is_empty());
}

#[test]
fn every_mistake_is_named_with_its_place_and_a_way_out() {
    let text = r#"
[channel.hook]
type = "webhook"
ulr = "https://example.org"

[channel.chat]
type = "slak"

[channel.talk]
type = "discord"
url = "https://discord.com/api/webhooks/1/x"

[channel.alerts]
type = "alertmanager"
url = "http://example.org:9093"
template = "{rum}"

[[route]]
channels = ["hoook"]
severity = "bad"
quiet_hours = "all"
"#;
    let expected = [
        "2:10: channel.hook: has no address: write url = \"https://…\"",
        "4:1: channel.hook.ulr: is not a key of it: did you mean url?",
        "7:8: channel.chat.type: \"slak\" is none of those that can stand here: did you mean slack?",
        "11:7: channel.talk.url: is a secret: put it into a file, and write url_file = \"PATH\" or credential = \"NAME\"",
        "15:7: channel.alerts.url: is not encrypted: write https://, or allow_private = true for a server in a network of \
         your own",
        "16:12: channel.alerts.template: has {rum}, which is no placeholder: did you mean run?",
        "19:12: route 1.channels: there is no channel \"hoook\": did you mean hook?",
        "20:12: route 1.severity: \"bad\" is none of those that can stand here: known here are info, warning, critical",
        "21:15: route 1.quiet_hours: \"all\" is not a part of the day: write it as \"22:00-07:00\", in local time",
    ];
    assert_eq!(refused(text), expected);
}

#[test]
fn what_makes_no_sense_is_refused() {
    let channel = |rest: &str| format!("[channel.a]\n{rest}\n[[route]]\nchannels = [\"a\"]\n");
    let exec = "type = \"exec\"\ncommand = ";
    let mail = "type = \"email\"\nserver = \"m\"\nto = \"a@b.c\"\n";
    for bad in [
        "channel = 1".to_owned(),
        "route = 1".to_owned(),
        "x = 1".to_owned(),
        "[delivery]\ngive_up_after = \"1s\"".to_owned(),
        "[delivery]\noutbox_max = 0".to_owned(),
        "[channel.a]\ntype = \"slack\"\ncredential = \"x\"".to_owned(),
        "[channel.\"a b\"]\ntype = \"exec\"\ncommand = [\"/x\"]\n[[route]]\nchannels = [\"a b\"]".to_owned(),
        "[[route]]\nchannels = [\"a\"]".to_owned(),
        channel(""),
        channel("type = \"webhook\"\nurl = \"ftp://example.org\""),
        channel("type = \"webhook\"\nurl = \"https://\""),
        channel("type = \"webhook\"\nurl = \"https://user:pw@example.org\""),
        channel("type = \"webhook\"\nurl = \"https://e.org\"\nurl_file = \"/x\""),
        channel("type = \"webhook\"\nurl_file = \"x\""),
        channel("type = \"slack\"\ncredential = \"../x\""),
        channel("type = \"slack\"\ncredential = \"x\"\ntimeout = \"1h\""),
        channel(&format!("{exec}\"/bin/true\"")),
        channel(&format!("{exec}[\"true\"]")),
        channel(&format!("{exec}[]")),
        channel(&format!("{exec}[\"/x\"]\nallow_private = true")),
        channel(&format!("{mail}from = \"nobody\"")),
        channel(&format!("{mail}from = \"a@b.c\"\nuser = \"x\"")),
        channel(&format!("{mail}from = \"a@b.c\"\nuser = \"x\"\ncredential = \"x\"\ntls = \"none\"")),
    ] {
        assert_eq!(refused(&bad).len(), 1, "{bad}: {:?}", Config::parse(Path::new("n.toml"), &bad));
    }
    assert!(refused("[channel\n")[0].starts_with("1:"));
}
