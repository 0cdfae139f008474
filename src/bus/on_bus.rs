//! The instance on a message bus.

use std::io;
use std::sync::Arc;

use super::{Bus, Services};

/// Serves on the bus, under the well-known name, until the connection is lost.
pub async fn serve_on(bus: Bus, _services: Arc<Services>) -> io::Result<()> {
    let address =
        bus.address().ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("there is no {bus:?} bus")))?;
    Err(io::Error::new(io::ErrorKind::Unsupported, address))
}
