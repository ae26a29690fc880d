//! Routes of this process's network namespace, over rtnetlink(7).

use std::{fmt, io, net::IpAddr};

use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netdevice::name_to_index,
        netlink::SocketAddrNetlink, recv, sendto, socket_with,
    },
};

/// Addresses that begin with the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefix {
    /// The first of them.
    pub address: IpAddr,
    /// How many bits they share.
    pub length: u8,
}

impl Prefix {
    /// Whether the address, of the same family, is one of them.
    pub fn contains(&self, address: IpAddr) -> bool {
        let (first, address, width) = match (self.address, address) {
            (IpAddr::V4(first), IpAddr::V4(address)) => {
                (u32::from(first).into(), u32::from(address).into(), 32)
            }
            (IpAddr::V6(first), IpAddr::V6(address)) => (u128::from(first), u128::from(address), 128),
            _ => return false,
        };
        (first ^ address).checked_shr(width - u32::from(self.length)).unwrap_or(0) == 0
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

/// Makes addresses this namespace's own as far as an interface is concerned: no packet to them leaves through it, not
/// even from a socket that is bound to the interface. (A route that says "unreachable" does not hold those: with an
/// interface given, IPv4 takes whatever has no route for a neighbour.)
///
/// # Errors
/// There is no such interface, or the kernel refuses a route.
pub fn keep_local(interface: &str, prefixes: &[Prefix]) -> io::Result<()> {
    // Without a protocol it is NETLINK_ROUTE, which is 0.
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    let index = name_to_index(&socket, interface)?;
    for prefix in prefixes {
        let request = local_route(index, prefix);
        sendto(&socket, &request, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
        let mut answer = [0; 1024];
        let (_, length) = recv(&socket, &mut answer[..], RecvFlags::empty())?;
        acknowledged(&answer[..length.min(answer.len())])
            .map_err(|errno| io::Error::new(errno.kind(), format!("{prefix}: {errno}")))?;
    }
    Ok(())
}

const HEADER: usize = 16;
const NEW_ROUTE: u16 = 24;
/// `NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE`.
const FLAGS: u16 = 0x1 | 0x4 | 0x400;

/// `struct nlmsghdr`, `struct rtmsg` and three attributes, in the machine's byte order.
fn local_route(interface: u32, prefix: &Prefix) -> Vec<u8> {
    const TABLE_LOCAL: u8 = 255;
    const PROTOCOL_STATIC: u8 = 4;
    const SCOPE_HOST: u8 = 254;
    const TYPE_LOCAL: u8 = 2;
    const DESTINATION: u16 = 1;
    const INTERFACE: u16 = 4;
    const PRIORITY: u16 = 6;
    /// After the kernel's own, which have 0.
    const AFTER_OTHERS: u32 = 1;
    let (family, address) = match prefix.address {
        IpAddr::V4(address) => (AddressFamily::INET, address.octets().to_vec()),
        IpAddr::V6(address) => (AddressFamily::INET6, address.octets().to_vec()),
    };
    let family = u8::try_from(family.as_raw()).expect("both are small numbers");
    let mut body = vec![family, prefix.length, 0, 0, TABLE_LOCAL, PROTOCOL_STATIC, SCOPE_HOST, TYPE_LOCAL];
    body.extend(0_u32.to_ne_bytes());
    let priority = AFTER_OTHERS.to_ne_bytes();
    for (kind, value) in
        [(DESTINATION, &address[..]), (INTERFACE, &interface.to_ne_bytes()), (PRIORITY, &priority)]
    {
        let length = u16::try_from(4 + value.len()).expect("an address is short");
        body.extend(length.to_ne_bytes());
        body.extend(kind.to_ne_bytes());
        // All three have a multiple of four bytes.
        body.extend(value);
    }
    let length = u32::try_from(HEADER + body.len()).expect("a route is short");
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(NEW_ROUTE.to_ne_bytes());
    message.extend(FLAGS.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    message
}

/// What the kernel said: `struct nlmsghdr`, and a negative error number or 0.
fn acknowledged(answer: &[u8]) -> Result<(), Errno> {
    const ERROR: u16 = 2;
    let kind = answer.get(4..6).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
    let code = answer.get(HEADER..HEADER + 4).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
    match (kind, code) {
        (Some(ERROR), Some(0)) => Ok(()),
        (Some(ERROR), Some(code)) => Err(Errno::from_raw_os_error(-code)),
        _ => Err(Errno::BADMSG),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_zero_is_an_acknowledgement() {
        let answer = |kind: u16, code: i32| {
            let mut bytes = vec![20, 0, 0, 0];
            bytes.extend(kind.to_ne_bytes());
            bytes.extend([0; 10]);
            bytes.extend(code.to_ne_bytes());
            bytes
        };
        assert_eq!(acknowledged(&answer(2, 0)), Ok(()));
        assert_eq!(acknowledged(&answer(2, -1)), Err(Errno::PERM));
        assert_eq!(acknowledged(&answer(24, 0)), Err(Errno::BADMSG));
        assert_eq!(acknowledged(&[]), Err(Errno::BADMSG));
    }

    #[test]
    fn a_route_says_its_length() {
        for (address, length) in [("127.0.0.0", 52), ("fe80::", 64)] {
            let prefix = Prefix { address: address.parse().expect("an address"), length: 8 };
            let message = local_route(2, &prefix);
            assert_eq!(message.len(), length);
            assert_eq!(message[..4], u32::try_from(length).expect("short").to_ne_bytes());
        }
    }
}
