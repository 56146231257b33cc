//! What a guest says of itself, as far as it is shown: short, printable, and only about cards that the VM has.

use core::net::IpAddr;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Longest host name and name of a system that are shown, characters.
const LONGEST: usize = 128;
/// Most addresses of a card that are shown.
const MOST_ADDRESSES: usize = 16;

/// A running guest, by its own word or by what its host saw of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GuestObserved {
    /// Whether an agent in the guest answers.
    pub agent: bool,
    /// The guest's own word, which proves nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_name: Option<String>,
    /// Its operating system, by its own word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub os: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nics: Vec<GuestNic>,
}

/// The addresses of one network card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GuestNic {
    pub mac: String,
    #[schema(value_type = Vec<String>)]
    pub addresses: Vec<IpAddr>,
}

impl GuestObserved {
    /// Addresses of the card with that MAC.
    pub fn addresses(&self, mac: &str) -> &[IpAddr] {
        let mut nics = self.nics.iter();
        let found = nics.find(|nic| nic.mac.eq_ignore_ascii_case(mac));
        found.map_or(&[], |nic| &nic.addresses)
    }

    /// The address to show where there is room for one: of version 4 rather than of version 6.
    pub fn first_address(&self) -> Option<IpAddr> {
        let all = || self.nics.iter().flat_map(|nic| &nic.addresses);
        all()
            .find(|address| address.is_ipv4())
            .or_else(|| all().next())
            .copied()
    }
}

/// A name that a guest tells, as it is shown: without anything that moves a cursor or turns the direction of writing.
pub fn shown_name(told: &str) -> Option<String> {
    let kept: String = told
        .chars()
        .filter(|c| !c.is_control() && !turns(*c))
        .take(LONGEST)
        .collect();
    let kept = kept.trim();
    (!kept.is_empty()).then(|| kept.to_owned())
}

/// Marks of direction and of invisible joins, line separators.
const fn turns(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// The addresses that are shown of those told for each card: real ones, each once, of cards that the VM has.
pub fn shown_nics<'a>(
    cards: impl Iterator<Item = &'a str>,
    told: &[(String, Vec<String>)],
) -> Vec<GuestNic> {
    let nics = cards.map(|mac| {
        let mut addresses: Vec<IpAddr> = Vec::new();
        for (_, told) in told
            .iter()
            .filter(|(card, _)| card.eq_ignore_ascii_case(mac))
        {
            for address in told.iter().filter_map(|text| text.parse().ok()) {
                if reaches_it(address) && !addresses.contains(&address) {
                    addresses.push(address);
                }
            }
        }
        addresses.truncate(MOST_ADDRESSES);
        GuestNic {
            mac: mac.to_owned(),
            addresses,
        }
    });
    nics.filter(|nic| !nic.addresses.is_empty()).collect()
}

fn reaches_it(address: IpAddr) -> bool {
    !(address.is_loopback() || address.is_unspecified() || address.is_multicast())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_name_is_cut_short_and_cannot_move_the_cursor() {
        assert_eq!(shown_name("web-01").as_deref(), Some("web-01"));
        assert_eq!(shown_name("a\x1b[2Jb\r\nc\0").as_deref(), Some("a[2Jbc"));
        assert_eq!(
            shown_name("abc\u{202e}cod.exe").as_deref(),
            Some("abccod.exe")
        );
        assert_eq!(shown_name(" \u{200b}\n ").as_deref(), None);
        assert_eq!(
            shown_name(&"x".repeat(1 << 20)).map(|name| name.len()),
            Some(LONGEST)
        );
        assert_eq!(shown_name("経理").as_deref(), Some("経理"));
    }

    #[test]
    fn only_real_addresses_of_cards_that_the_vm_has_are_shown() {
        let mine = ["52:54:00:00:00:01", "52:54:00:00:00:02"];
        let many = (0..=255u8).map(|n| format!("10.0.0.{n}")).collect();
        let told = [
            ("52:54:00:00:00:01".to_owned(), many),
            ("52:54:00:00:00:0A".to_owned(), vec!["10.9.9.9".to_owned()]),
            (
                "52:54:00:00:00:02".to_owned(),
                [
                    "127.0.0.1",
                    "::",
                    "224.0.0.1",
                    "10.0.0.1\x1b[2J",
                    "fe80::1",
                    "fe80::1",
                ]
                .map(str::to_owned)
                .to_vec(),
            ),
        ];
        let nics = shown_nics(mine.into_iter(), &told);
        assert_eq!(nics.len(), 2);
        assert_eq!(nics[0].addresses.len(), MOST_ADDRESSES);
        assert_eq!(
            nics[1].addresses,
            ["fe80::1".parse::<IpAddr>().expect("one")]
        );
    }
}
