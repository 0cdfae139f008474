//! What is held open for a run.

use std::sync::Arc;

use super::super::published::UsageCell;
use crate::kernel::{Exec, Kernel};

/// The descriptors of one run.
pub struct Held<K: Kernel> {
    /// What is to be executed, for a detached run that is not yet contained.
    pub exec: Option<Exec>,
    /// The main process; holds the gate of a detached run until it is opened.
    pub main: Option<K::Process>,
    /// The client of a foreground run.
    pub client: Option<K::Process>,
    /// What holds it together.
    pub container: Option<K::Container>,
    /// What its container could not do as asked, until it is contained.
    pub notices: Vec<String>,
    /// What it is to execute is kept in a file.
    pub is_kept: bool,
    /// What it uses.
    pub usage: Arc<UsageCell>,
}

impl<K: Kernel> Held<K> {
    /// The processes of a foreground run that is to be contained, or of one that is adopted.
    pub fn new(main: Option<K::Process>, client: Option<K::Process>) -> Self {
        Self { exec: None, main, client, container: None, notices: Vec::new(), is_kept: false, usage: Arc::default() }
    }

    /// What a detached run is to execute.
    pub fn detached(exec: Exec) -> Self {
        Self { exec: Some(exec), ..Self::new(None, None) }
    }
}
