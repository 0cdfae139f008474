//! Addresses of message buses, as the D-Bus specification writes them.

use std::path::Path;

/// The first address of a list that is a unix socket's. `unixexec:` and `autolaunch:` start programs, `tcp:` leads to who
/// knows whom: those are not used.
pub fn usable_bus_address(list: &str) -> Option<&str> {
    list.split(';').find(|a| a.starts_with("unix:path=") || a.starts_with("unix:abstract="))
}

/// The address of a socket: its path, all but a few characters as `%` and two hexadecimal digits.
pub fn bus_address_of(socket: &Path) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_/.\\*".contains(&b);
    let one = |b: &u8| if plain(*b) { char::from(*b).to_string() } else { format!("%{b:02x}") };
    let path: String = socket.as_os_str().as_encoded_bytes().iter().map(one).collect();
    format!("unix:path={path}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sockets_are_used() {
        let list = "tcp:host=example.org,port=1;unix:abstract=/tmp/x;unix:path=/b";
        assert_eq!(usable_bus_address(list), Some("unix:abstract=/tmp/x"));
        for bad in ["autolaunch:", "unixexec:path=/bin/true", "tcp:host=example.org,port=1", "unix:tmpdir=/", ""] {
            assert_eq!(usable_bus_address(bad), None);
        }
    }

    #[test]
    fn a_path_is_escaped() {
        assert_eq!(bus_address_of(Path::new("/run/user/1/b us")), "unix:path=/run/user/1/b%20us");
    }
}
