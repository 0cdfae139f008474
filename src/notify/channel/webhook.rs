//! The generic webhook: JSON with each event and its run, signed.
//!
//! `Guardian-Signature: t=SECONDS,v1=HEX`, where HEX is the HMAC-SHA256, with the secret, of `SECONDS.BODY`. Whoever checks it
//! also checks that the time is not long ago. `Guardian-Delivery` and the `id` of each event are the same in every try.

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

use super::{Failure, json_body};
use crate::notify::config::Channel;
use crate::notify::event::{Notice, body};
use crate::notify::http::post;
use crate::notify::secret::Secret;

pub(super) fn deliver(
    channel: &Channel,
    url: &Secret,
    secret: Option<&Secret>,
    notices: &[Notice],
) -> Result<(), Failure> {
    let body = json_body(&body(notices));
    let delivery = match notices {
        [one] => one.id.clone(),
        [first, .., last] => format!("{}..{}", first.id, last.id),
        [] => String::new(),
    };
    let mut headers = vec![("Content-Type", "application/json"), ("Guardian-Delivery", &*delivery)];
    let signature;
    if let Some(secret) = secret {
        let key = secret.read().map_err(Failure::of_channel)?;
        signature = sign(&key, jiff::Timestamp::now().as_second(), &body);
        headers.push(("Guardian-Signature", &signature));
    }
    post(channel, url, "", &headers, &body)
}

fn sign(key: &str, at: i64, body: &[u8]) -> String {
    // A key of any length is one: no error comes of it.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key.as_bytes()) else { return String::new() };
    mac.update(format!("{at}.").as_bytes());
    mac.update(body);
    let hex: String = mac.finalize().into_bytes().iter().map(|b| format!("{b:02x}")).collect();
    format!("t={at},v1={hex}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signature_is_over_time_and_body() {
        // printf '1700000000.{}' | openssl dgst -sha256 -hmac key
        let expected = "t=1700000000,v1=9d713ed406bb7076d4123f0dc2c39d2df5c654ed4b0cd56b52c8b4c940bd63ae";
        assert_eq!(sign("key", 1_700_000_000, b"{}"), expected);
    }
}
