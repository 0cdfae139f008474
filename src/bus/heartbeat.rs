//! The wire form of what is said for a run, `a{sv}`: as strict as that of a launch.

use std::collections::HashMap;

use zbus::{OwnedVariant, Variant};

use super::launch::{duration, text, wrong};
use crate::model::{Error, Notification, ProgressUpdate};

const KEYS: [&str; 16] = [
    "Ready",
    "Status",
    "Stopping",
    "ExtendTimeoutUSec",
    "Session",
    "Model",
    "Turns",
    "TurnsMax",
    "Tokens",
    "CostMicroUSD",
    "Tool",
    "Repeats",
    "Repeated",
    "Waiting",
    "Success",
    "Report",
];

/// Reads what is said for a run: a heartbeat, unless it is said to be about to end.
pub fn heartbeat(dict: &HashMap<String, OwnedVariant>) -> Result<Notification, Error> {
    let mut said = Notification::default();
    let mut progress = ProgressUpdate::default();
    for (key, value) in dict {
        let value: &Variant<'_> = value;
        match key.as_str() {
            "Ready" => said.ready = truth(key, value)?,
            "Stopping" => said.stopping = truth(key, value)?,
            "Status" => said.status = Some(Notification::status_of(&text(key, value)?)),
            "ExtendTimeoutUSec" => said.extend = Some(duration(key, number(key, value)?)?),
            "Session" => progress.session = Some(text(key, value)?),
            "Model" => progress.model = Some(text(key, value)?),
            "Turns" => progress.turns = Some(number(key, value)?),
            "TurnsMax" => progress.turns_max = Some(number(key, value)?),
            "Tokens" => progress.tokens = Some(number(key, value)?),
            "CostMicroUSD" => progress.cost_micro_usd = Some(number(key, value)?),
            "Tool" => progress.tool = Some(text(key, value)?),
            "Repeats" => progress.repeats = Some(number(key, value)?),
            "Repeated" => progress.repeated = Some(text(key, value)?),
            "Waiting" => progress.waiting = Some(text(key, value)?),
            "Success" => progress.success = Some(truth(key, value)?),
            "Report" => progress.report = Some(text(key, value)?),
            _ => {
                let shown: String = key.chars().take(40).collect();
                let known = KEYS.join(", ");
                return Err(Error::invalid(format!("{shown:?} is not a key of a heartbeat: these are {known}")));
            }
        }
    }
    said.heartbeat = !said.stopping;
    said.progress = (progress != ProgressUpdate::default()).then(|| progress.kept());
    Ok(said)
}

fn truth(key: &str, value: &Variant<'_>) -> Result<bool, Error> {
    let Variant::Bool(truth) = value else { return Err(wrong(key, value, "b")) };
    Ok(*truth)
}

fn number(key: &str, value: &Variant<'_>) -> Result<u64, Error> {
    let Variant::U64(number) = value else { return Err(wrong(key, value, "t")) };
    Ok(*number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(options: &[(&str, Variant<'static>)]) -> Result<Notification, Error> {
        let read = |(key, value): &(&str, Variant<'static>)| {
            (key.to_string(), OwnedVariant::try_from(value.try_clone().unwrap()).unwrap())
        };
        heartbeat(&options.iter().map(read).collect())
    }

    #[test]
    fn an_agent_is_told_of_as_at_its_notify_socket() {
        let heard = said(&[("Turns", 7u64.into()), ("Tool", "Bash\u{1b}".into()), ("Success", true.into())]).unwrap();
        let progress = ProgressUpdate {
            turns: Some(7),
            tool: Some("Bash\u{fffd}".into()),
            success: Some(true),
            ..ProgressUpdate::default()
        };
        let expected = Notification { heartbeat: true, progress: Some(progress), ..Notification::default() };
        assert_eq!(heard, expected);
        assert_eq!(said(&[]).unwrap().progress, None);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let refused = |key: &str, value: Variant<'static>| said(&[(key, value)]).unwrap_err().message;
        assert_eq!(refused("Turns", 7u32.into()), "Turns has the D-Bus type t, not u");
        assert_eq!(refused("Success", "yes".into()), "Success has the D-Bus type b, not s");
        assert!(refused("Colour", 1u64.into()).contains("not a key of a heartbeat: these are Ready, Status"));
        assert!(refused("ExtendTimeoutUSec", u64::MAX.into()).contains("100 years"));
    }
}
