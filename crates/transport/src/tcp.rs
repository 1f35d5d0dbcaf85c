//! What every one of our TCP connections has.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use rustix::net::sockopt;
use tokio::net::TcpStream;

/// A lost packet is sent again after a round trip and this. The kernel's own 200 ms, doubled at each
/// further loss, spend a lease of three seconds on four losses in a row, and as each connection delivers
/// in order, everything behind the lost packet waits with it. Above the 40 ms for which a
/// receiver may hold an acknowledgement back (`TCP_ATO_MIN`), so nothing is sent twice for that.
const RETRANSMISSION_MIN: Duration = Duration::from_millis(50);

/// Since Linux 6.15, `include/uapi/linux/tcp.h`.
const TCP_RTO_MIN_US: libc::c_int = 45;

/// Sets the options: no waiting for fuller packets, a bound for unacknowledged data, and quick, steady
/// retransmission, because our messages are small and late ones cost a lease.
pub(crate) fn configure_tcp(tcp: &TcpStream, user_timeout: Duration) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    let millis = u32::try_from(user_timeout.as_millis()).unwrap_or(u32::MAX);
    sockopt::set_tcp_user_timeout(tcp.as_fd(), millis)?;
    sockopt::set_tcp_thin_linear_timeouts(tcp.as_fd(), true)?;
    retransmit_early(tcp)
}

/// An older kernel does not know the option; there the pace is the route's (`ip route ... rto_min`).
#[allow(unsafe_code)]
fn retransmit_early(tcp: &TcpStream) -> io::Result<()> {
    let micros = RETRANSMISSION_MIN.as_micros() as libc::c_int;
    // SAFETY: the descriptor lives as long as `tcp`; the kernel reads as many bytes of a value on our
    // stack as it is told, and keeps no pointer to it.
    let set = unsafe {
        libc::setsockopt(
            tcp.as_raw_fd(),
            libc::IPPROTO_TCP,
            TCP_RTO_MIN_US,
            (&raw const micros).cast(),
            size_of_val(&micros) as libc::socklen_t,
        )
    };
    if set == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() == Some(libc::ENOPROTOOPT) { Ok(()) } else { Err(error) }
}
