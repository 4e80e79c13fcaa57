//! Whose address a request has, when proxies stand before the function.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

use ipnet::IpNet;

/// Most addresses of `X-Forwarded-For` that are looked at, from the right.
const MAX_HOPS: usize = 32;

/// The networks whose word on `X-Forwarded-For` is taken.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Proxies(Vec<IpNet>);

/// Not an address or a network.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is neither an address nor a network like 10.0.0.0/8")]
pub struct ProxiesError(String);

impl FromStr for Proxies {
    type Err = ProxiesError;

    /// Addresses and networks between commas.
    fn from_str(text: &str) -> Result<Self, ProxiesError> {
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        let network = |part: &str| {
            let address = part.parse::<IpAddr>().map(|address| IpNet::from(address.to_canonical()));
            address.or_else(|_| part.parse()).map_err(|_| ProxiesError(part.to_owned()))
        };
        parts.map(network).collect::<Result<_, _>>().map(Self)
    }
}

impl Proxies {
    /// The address of whoever sent a request that came from `peer`.
    ///
    /// `forwarded` are the values of `X-Forwarded-For`, in their order. Each proxy adds at the right
    /// the address that it got the request from; so the rightmost one that is no proxy of ours is the
    /// last that somebody we trust has seen. What stands left of it, the caller may have made up.
    ///
    /// ```
    /// # use std::net::IpAddr;
    /// let proxies: sanderling_admission::Proxies = "10.0.0.0/8".parse()?;
    /// let peer = IpAddr::from([10, 0, 0, 1]);
    /// let sender = proxies.sender(peer, ["6.6.6.6, 192.0.2.7", "10.0.0.2"].into_iter());
    /// assert_eq!(sender, IpAddr::from([192, 0, 2, 7]));
    /// # Ok::<(), sanderling_admission::ProxiesError>(())
    /// ```
    pub fn sender<'a>(
        &self,
        peer: IpAddr,
        forwarded: impl DoubleEndedIterator<Item = &'a str>,
    ) -> IpAddr {
        let mut sender = peer.to_canonical();
        let hops = forwarded.rev().flat_map(|value| value.rsplit(','));
        for hop in hops.take(MAX_HOPS) {
            if !self.trust(sender) {
                break;
            }
            let Some(address) = address(hop.trim()) else { break };
            sender = address;
        }
        sender
    }

    fn trust(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(&address))
    }
}

/// An address as proxies write it: alone, or with a port.
fn address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let address = bare.parse::<IpAddr>().ok();
    let with_port = || text.parse::<SocketAddr>().ok().map(|socket| socket.ip());
    address.or_else(with_port).map(|address| address.to_canonical())
}

/// What one subscriber has of addresses: an IPv4 address, the /64 of an IPv6 address.
pub(crate) fn subscriber(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sender(proxies: &str, peer: &str, forwarded: &[&str]) -> String {
        let proxies: Proxies = proxies.parse().unwrap();
        proxies.sender(peer.parse().unwrap(), forwarded.iter().copied()).to_string()
    }

    #[test]
    fn the_last_address_that_somebody_trusted_has_seen_counts() {
        let cases: [(&str, &str, &str, &[&str], &str); 12] = [
            ("nobody is trusted", "", "10.0.0.1", &["1.1.1.1"], "10.0.0.1"),
            ("the peer is no proxy", "10.0.0.0/8", "9.9.9.9", &["1.1.1.1"], "9.9.9.9"),
            ("one proxy", "10.0.0.0/8", "10.0.0.1", &["1.1.1.1"], "1.1.1.1"),
            ("made up at the left", "10.0.0.1", "10.0.0.1", &["6.6.6.6, 1.1.1.1"], "1.1.1.1"),
            ("two proxies", "10.0.0.0/8", "10.0.0.1", &["1.1.1.1, 10.0.0.2"], "1.1.1.1"),
            ("two headers", "10.0.0.0/8", "10.0.0.1", &["6.6.6.6", "1.1.1.1,10.1.1.1"], "1.1.1.1"),
            ("no header", "10.0.0.0/8", "10.0.0.1", &[], "10.0.0.1"),
            ("only proxies", "10.0.0.0/8", "10.0.0.1", &["10.0.0.2"], "10.0.0.2"),
            ("garbage", "10.0.0.0/8", "10.0.0.1", &["1.1.1.1, <script>"], "10.0.0.1"),
            ("a port", "10.0.0.0/8", "10.0.0.1", &["1.1.1.1:81"], "1.1.1.1"),
            ("IPv6 with a port", "::1", "::1", &["[2001:db8::7]:81"], "2001:db8::7"),
            ("IPv4 in IPv6", "10.0.0.0/8", "::ffff:10.0.0.1", &["::ffff:1.1.1.1"], "1.1.1.1"),
        ];
        for (name, proxies, peer, forwarded, expected) in cases {
            assert_eq!(sender(proxies, peer, forwarded), expected, "{name}");
        }
    }

    #[test]
    fn what_is_no_network_is_named() {
        let error = "10.0.0.0/8, 10.0.0.0/33".parse::<Proxies>().unwrap_err();
        let message = "\"10.0.0.0/33\" is neither an address nor a network like 10.0.0.0/8";
        assert_eq!(error.to_string(), message);
    }

    #[test]
    fn a_subscriber_has_all_of_a_64() {
        let subscriber = |text: &str| subscriber(text.parse().unwrap()).to_string();
        assert_eq!(subscriber("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_eq!(subscriber("192.0.2.7"), "192.0.2.7");
    }
}
