//! What is fuzzed here: the files of a configuration, one over the other, and each kind of value.

use std::fmt::Debug;
use std::path::Path;
use std::time::Duration;

use super::load::text_of;
use super::{
    Config, check_workflow, parse_count_or_off, parse_duration_or_off, parse_percent_or_off, parse_size_or_off,
};
use crate::model::fuzz::{Target, check_sentence};
use crate::model::valid_workflow_name;

pub const TARGETS: &[Target] = &[("config", config), ("config_values", values)];

/// As many files are read over each other.
const LAYERS: usize = 4;

/// A configuration is shown as what loads to the same, and is within its bounds; or each mistake is told in a line.
fn config(data: &[u8]) {
    let file = Path::new("config.toml");
    let layers = data.splitn(LAYERS, |byte| *byte == 0).map(|layer| (file, text_of(file, layer.to_vec())));
    match Config::of(layers) {
        Ok(config) => {
            let shown = config.to_string();
            assert_eq!(Config::of([(file, Ok(shown.clone()))].into_iter()), Ok(config.clone()), "{shown}");
            let (instance, seconds) = (&config.instance, Duration::from_secs);
            assert!((seconds(1)..=seconds(60)).contains(&instance.sample_interval));
            assert!((1..=1_000_000).contains(&instance.max_runs) && instance.log_max_bytes >= 64 << 10);
            assert!(config.workflows.keys().all(|name| valid_workflow_name(name).is_ok()));
        }
        Err(mistakes) => {
            assert!(!mistakes.0.is_empty());
            for mistake in mistakes.0 {
                assert!(mistake.place.is_none_or(|(line, column)| line > 0 && column > 0));
                check_sentence(&mistake.to_string());
            }
        }
    }
}

fn values(data: &[u8]) {
    let text = &*String::from_utf8_lossy(data);
    check_value(text, parse_duration_or_off(text).map(|time| time.is_none_or(|time| !time.is_zero())));
    check_value(text, parse_size_or_off(text).map(|size| size.is_none_or(|size| i64::try_from(size).is_ok())));
    check_value(text, parse_count_or_off(text).map(|count| count.is_none_or(|count| i64::try_from(count).is_ok())));
    check_value(text, parse_percent_or_off(text).map(|of| of.is_none_or(|of| (1..=100_000).contains(&of))));
    check_value(text, check_workflow(text).map(|()| valid_workflow_name(text).is_ok()));
}

fn check_value(text: &str, read: Result<bool, impl AsRef<str> + Debug>) {
    match read {
        Ok(is_in_bounds) => assert!(is_in_bounds, "{text:?}"),
        Err(told) => check_sentence(told.as_ref()),
    }
}
