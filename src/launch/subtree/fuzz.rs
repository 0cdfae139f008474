//! The readers of a shim's record and of its orders, for the targets of the launch.

use super::orders::Orders;
use super::record::{Entries, parse};

pub fn entries(data: &[u8]) -> Entries {
    parse(data)
}

/// Orders, written again, are read as the same.
pub fn orders(data: &[u8]) {
    let Some(orders) = Orders::parse(data) else { return };
    let words = orders.candidates.iter().chain(&orders.argv).chain(&orders.env);
    assert!(words.map(|word| word.as_bytes_with_nul().len()).sum::<usize>() <= data.len());
    let again = orders.write().ok().and_then(Orders::read);
    assert_eq!(again, Some(orders));
}
