//! Which addresses are public.
//!
//! Sources: the IANA special-purpose registries
//! (iana.org/assignments/iana-ipv4-special-registry, …/iana-ipv6-special-registry), RFC 6890, and
//! Microsoft's 168.63.129.16, the platform's own address in every Azure machine
//! (learn.microsoft.com/azure/virtual-network/what-is-ip-address-168-63-129-16).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

const fn v4(a: u8, b: u8, c: u8, d: u8, prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix)
}

const fn v6(a: u16, b: u16, c: u16, prefix: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0), prefix)
}

const DENIED_V4: [Ipv4Net; 20] = [
    v4(0, 0, 0, 0, 8),
    v4(10, 0, 0, 0, 8),
    v4(100, 64, 0, 0, 10),
    v4(127, 0, 0, 0, 8),
    v4(168, 63, 129, 16, 32),
    v4(169, 254, 0, 0, 16),
    v4(172, 16, 0, 0, 12),
    v4(192, 0, 0, 0, 24),
    v4(192, 0, 2, 0, 24),
    v4(192, 31, 196, 0, 24),
    v4(192, 52, 193, 0, 24),
    v4(192, 88, 99, 0, 24),
    v4(192, 168, 0, 0, 16),
    v4(192, 175, 48, 0, 24),
    v4(198, 18, 0, 0, 15),
    v4(198, 51, 100, 0, 24),
    v4(203, 0, 113, 0, 24),
    v4(224, 0, 0, 0, 4),
    v4(240, 0, 0, 0, 4),
    // Within the block above; here by name, so that nobody narrows that one and lets it out.
    v4(255, 255, 255, 255, 32),
];

/// All that is routed; what lies outside of it (loopback, unique local, link local, multicast,
/// NAT64, IPv4-compatible) is denied without a word.
const GLOBAL_V6: Ipv6Net = v6(0x2000, 0, 0, 3);

const DENIED_V6: [Ipv6Net; 5] = [
    // Protocol assignments: Teredo (an IPv4 address inside), benchmarking, ORCHID.
    v6(0x2001, 0, 0, 23),
    v6(0x2001, 0xdb8, 0, 32),
    // 6to4: an IPv4 address inside.
    v6(0x2002, 0, 0, 16),
    v6(0x2620, 0x4f, 0x8000, 48),
    v6(0x3fff, 0, 0, 20),
];

/// Whether a stranger may make us connect to `address`.
pub(super) fn is_public(address: IpAddr) -> bool {
    // ::ffff:10.0.0.1 reaches 10.0.0.1.
    match address.to_canonical() {
        IpAddr::V4(address) => !DENIED_V4.iter().any(|net| net.contains(&address)),
        IpAddr::V6(address) => GLOBAL_V6.contains(&address) && !DENIED_V6.iter().any(|net| net.contains(&address)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn public(address: &str) -> bool {
        is_public(address.parse().unwrap())
    }

    /// Per block: one before, the first, the last, one after. Written out by hand, so that a slip
    /// in the table is not repeated here; `*` marks a neighbour that another block denies.
    #[test]
    fn each_block_is_denied_to_its_edges_and_no_further() {
        let blocks = [
            ["*", "0.0.0.0", "0.255.255.255", "1.0.0.0"],
            ["9.255.255.255", "10.0.0.0", "10.255.255.255", "11.0.0.0"],
            ["100.63.255.255", "100.64.0.0", "100.127.255.255", "100.128.0.0"],
            ["126.255.255.255", "127.0.0.0", "127.255.255.255", "128.0.0.0"],
            ["168.63.129.15", "168.63.129.16", "168.63.129.16", "168.63.129.17"],
            ["169.253.255.255", "169.254.0.0", "169.254.255.255", "169.255.0.0"],
            ["172.15.255.255", "172.16.0.0", "172.31.255.255", "172.32.0.0"],
            ["191.255.255.255", "192.0.0.0", "192.0.0.255", "192.0.1.0"],
            ["192.0.1.255", "192.0.2.0", "192.0.2.255", "192.0.3.0"],
            ["192.31.195.255", "192.31.196.0", "192.31.196.255", "192.31.197.0"],
            ["192.52.192.255", "192.52.193.0", "192.52.193.255", "192.52.194.0"],
            ["192.88.98.255", "192.88.99.0", "192.88.99.255", "192.88.100.0"],
            ["192.167.255.255", "192.168.0.0", "192.168.255.255", "192.169.0.0"],
            ["192.175.47.255", "192.175.48.0", "192.175.48.255", "192.175.49.0"],
            ["198.17.255.255", "198.18.0.0", "198.19.255.255", "198.20.0.0"],
            ["198.51.99.255", "198.51.100.0", "198.51.100.255", "198.51.101.0"],
            ["203.0.112.255", "203.0.113.0", "203.0.113.255", "203.0.114.0"],
            ["223.255.255.255", "224.0.0.0", "239.255.255.255", "*"],
            ["*", "240.0.0.0", "255.255.255.255", "*"],
            ["*", "::", "1fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "2000::"],
            [
                "2000:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
                "2001::",
                "2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff",
                "2001:200::",
            ],
            [
                "2001:db7:ffff:ffff:ffff:ffff:ffff:ffff",
                "2001:db8::",
                "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff",
                "2001:db9::",
            ],
            ["2001:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "2002::", "2002:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "2003::"],
            [
                "2620:4f:7fff:ffff:ffff:ffff:ffff:ffff",
                "2620:4f:8000::",
                "2620:4f:8000:ffff:ffff:ffff:ffff:ffff",
                "2620:4f:8001::",
            ],
            [
                "3ffe:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
                "3fff::",
                "3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff",
                "3fff:1000::",
            ],
            ["3fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "4000::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "*"],
        ];
        for [before, first, last, after] in blocks {
            for outside in [before, after] {
                assert!(outside == "*" || public(outside), "{outside} is denied");
            }
            for inside in [first, last] {
                assert!(!public(inside), "{inside} is taken for public");
            }
        }
        for inside in
            ["::1", "fe80::1", "fc00::1", "fd00:ec2::254", "ff02::1", "64:ff9b::a00:1", "::10.0.0.1", "100::1"]
        {
            assert!(!public(inside), "{inside} is taken for public");
        }
        for fine in ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "2a00:1450:4001::1"] {
            assert!(public(fine), "{fine} is denied");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        #[test]
        fn an_embedded_address_is_never_more_public_than_itself(bits in any_v4()) {
            let inner = Ipv4Addr::from_bits(bits);
            let [a, b, c, d] = inner.octets().map(u16::from);
            let (high, low) = (a << 8 | b, c << 8 | d);
            let mapped = inner.to_ipv6_mapped();
            prop_assert_eq!(is_public(mapped.into()), is_public(inner.into()));
            for embedded in [
                Ipv6Addr::new(0, 0, 0, 0, 0, 0, high, low),
                Ipv6Addr::new(0, 0, 0, 0, 0xffff, 0, high, low),
                Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low),
                Ipv6Addr::new(0x64, 0xff9b, 1, 0, 0, 0, high, low),
                Ipv6Addr::new(0x2002, high, low, 0, 0, 0, 0, 1),
                Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, !high, !low),
                Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0x5efe, high, low),
            ] {
                prop_assert!(!is_public(embedded.into()), "{} hides in {}", inner, embedded);
            }
        }

        #[test]
        fn ours_is_never_looser_than_http_acl(v4 in any_v4(), v6 in any_v6()) {
            let acl = http_acl::HttpAcl::builder().ip_acl_default(true).build();
            for address in [IpAddr::from(Ipv4Addr::from_bits(v4)), Ipv6Addr::from_bits(v6).into()] {
                // It denies all mapped ones, and we judge them by what they reach.
                let address = address.to_canonical();
                if acl.is_ip_allowed(&address).is_denied() {
                    prop_assert!(!is_public(address), "http-acl denies {}", address);
                }
            }
        }
    }

    /// Uniform addresses hardly ever meet a /24, so half of them lie around an edge of a block.
    fn any_v4() -> impl Strategy<Value = u32> {
        let edge = (0..DENIED_V4.len(), -2_i64..3, any::<bool>()).prop_map(|(index, offset, end)| {
            let net = DENIED_V4[index];
            let base = if end { net.broadcast() } else { net.network() };
            u32::try_from((i64::from(base.to_bits()) + offset).rem_euclid(1 << 32)).unwrap()
        });
        prop_oneof![any::<u32>(), edge]
    }

    fn any_v6() -> impl Strategy<Value = u128> {
        let near = (0..DENIED_V6.len(), any::<u128>(), 0_u32..128)
            .prop_map(|(index, noise, keep)| DENIED_V6[index].network().to_bits() ^ (noise >> keep));
        prop_oneof![any::<u128>(), near, any_v4().prop_map(|v4| Ipv4Addr::from_bits(v4).to_ipv6_mapped().to_bits())]
    }
}
