//! The model's errors as D-Bus errors, both ways. The table of kinds is the model's; here is only the name's prefix.

use zbus::message::{Header, Message};
use zbus::names::ErrorName;

use super::ERROR_PREFIX;
use crate::model::{Error, ErrorKind};

/// An answer that is not the one asked for.
#[derive(Debug)]
pub struct Refusal {
    name: ErrorName<'static>,
    error: Error,
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        let name = ErrorName::try_from(format!("{ERROR_PREFIX}{}", error.kind.as_str()))
            .unwrap_or_else(|_| ErrorName::from_static_str_unchecked("org.freedesktop.DBus.Error.Failed"));
        Self { name, error }
    }
}

impl zbus::DBusError for Refusal {
    fn create_reply(&self, call: &Header<'_>) -> zbus::Result<Message> {
        Message::error(call, self.name()).build(&(self.error.message.as_str(),))
    }

    fn name(&self) -> ErrorName<'_> {
        self.name.as_ref()
    }

    fn description(&self) -> Option<&str> {
        Some(&self.error.message)
    }
}

/// What the client makes of an error: ours with its kind and sentence, a lost connection as [`ErrorKind::Unavailable`].
pub fn from_bus(error: zbus::Error) -> Error {
    match error {
        zbus::Error::MethodError(name, message, _) => from_named(name.as_str(), message.unwrap_or_default()),
        zbus::Error::InputOutput(e) => {
            Error::new(ErrorKind::Unavailable, format!("the connection to the instance is lost: {e}"))
        }
        zbus::Error::FDO(e) => from_named(
            zbus::DBusError::name(&*e).as_str(),
            zbus::DBusError::description(&*e).unwrap_or_default().to_owned(),
        ),
        zbus::Error::Handshake(e) => {
            Error::new(ErrorKind::Unavailable, format!("the instance did not accept the connection: {e}"))
        }
        e => Error::internal(format!("the instance's answer cannot be read: {e}")),
    }
}

fn from_named(name: &str, message: String) -> Error {
    let ours = name.strip_prefix(ERROR_PREFIX);
    if let Some(kind) = ErrorKind::ALL.iter().find(|k| ours == Some(k.as_str())) {
        return Error::new(*kind, message);
    }
    let kind = match name.strip_prefix("org.freedesktop.DBus.Error.") {
        Some("InvalidArgs" | "InconsistentMessage") => ErrorKind::InvalidArgument,
        Some("AccessDenied" | "AuthFailed") => ErrorKind::NotAuthorized,
        Some("Disconnected" | "NoReply" | "ServiceUnknown" | "NameHasNoOwner") => ErrorKind::Unavailable,
        Some("UnknownObject") => ErrorKind::NoSuchRun,
        _ => ErrorKind::Internal,
    };
    Error::new(kind, format!("{message} ({name})"))
}

#[cfg(test)]
mod tests {
    use zbus::DBusError;

    use super::*;

    #[test]
    fn every_kind_comes_back_as_it_went() {
        for kind in ErrorKind::ALL {
            let refusal = Refusal::from(Error::new(*kind, "why"));
            assert_eq!(from_named(refusal.name().as_str(), "why".into()), Error::new(*kind, "why"));
        }
    }

    #[test]
    fn an_error_of_another_program_keeps_its_name() {
        let e = from_named("org.example.Odd", "hm".into());
        assert_eq!(e, Error::internal("hm (org.example.Odd)"));
    }
}
