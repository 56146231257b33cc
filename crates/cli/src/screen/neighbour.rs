//! Who is at the other end of a connection over loopback, as the kernel lists it in `/proc/net/tcp`.
//!
//! Loopback is shared by all users of a machine. A viewer is let in when it runs as the same user, as root, or, under sudo,
//! as the user who called it.

use std::net::{IpAddr, SocketAddr};
use tokio::net::TcpStream;

/// Whether the one who connected from `from` may see the screen.
pub(super) fn may_look(from: SocketAddr, stream: &TcpStream) -> bool {
    let Ok(to) = stream.local_addr() else {
        return false;
    };
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(std::fs::read_to_string);
    let owner = tables
        .iter()
        .flatten()
        .find_map(|table| owner(table, from, to));
    let own = nix::unistd::geteuid().as_raw();
    let caller = std::env::var("SUDO_UID").ok().filter(|_| own == 0);
    let caller = caller.and_then(|uid| uid.parse().ok());
    owner.is_some_and(|owner| owner == own || owner == 0 || Some(owner) == caller)
}

/// The user whose open socket is at `from` and connected with `to`, of a table of the kernel.
fn owner(table: &str, from: SocketAddr, to: SocketAddr) -> Option<u32> {
    const OPEN: &str = "01";
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, local, remote, state, _, _, _, uid, ..] = fields[..] else {
            return None;
        };
        let matches = state == OPEN && address(local)? == from && address(remote)? == to;
        matches.then(|| uid.parse().ok()).flatten()
    })
}

/// `0100007F:1F90`: words of the address in the machine's order, the port as it is read.
fn address(text: &str) -> Option<SocketAddr> {
    let (words, port) = text.split_once(':')?;
    if !words.is_ascii() {
        return None;
    }
    let words = words
        .as_bytes()
        .chunks(8)
        .map(|word| {
            let word = std::str::from_utf8(word).ok()?;
            Some(u32::from_str_radix(word, 16).ok()?.to_ne_bytes())
        })
        .collect::<Option<Vec<[u8; 4]>>>()?;
    let ip = match &words[..] {
        [v4] => IpAddr::from(*v4),
        [_, _, _, _] => {
            let bytes: [u8; 16] = words.concat().try_into().ok()?;
            IpAddr::from(bytes).to_canonical()
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_kernel_tells_whose_connection_it_is() {
        for listen in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = tokio::net::TcpListener::bind(listen).await else {
                continue;
            };
            let to = listener.local_addr().expect("bound");
            let viewer = TcpStream::connect(to).await.expect("connected");
            let (stream, from) = listener.accept().await.expect("accepted");
            assert!(may_look(from, &stream));
            drop(viewer);
        }
    }

    #[test]
    fn a_socket_of_somebody_else_is_told_apart() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid\n\
             0: 0100007F:1F90 0100007F:C350 01 00000000:00000000 00:00000000 00000000  1000        0 1\n\
             1: 0100007F:C350 0100007F:1F90 01 00000000:00000000 00:00000000 00000000  1001        0 2\n\
             2: 0100007F:C351 0100007F:1F90 06 00000000:00000000 00:00000000 00000000     0        0 3\n";
        let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
        assert_eq!(owner(table, at(50000), at(8080)), Some(1001));
        assert_eq!(owner(table, at(8080), at(50000)), Some(1000));
        // One that has closed has no owner any more.
        assert_eq!(owner(table, at(50001), at(8080)), None);
    }
}
