//! Unix sockets named as PostgreSQL names them: bound safely, removed again, peers checked.

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixStream};

/// `sockaddr_un.sun_path` holds 108 bytes, with the terminating zero (unix(7)).
const PATH_BYTES_MAX: usize = 107;

/// A listening socket could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The path does not fit into a socket address.
    #[error(
        "bind {path}: the path has {length} bytes, a Unix socket's at most {PATH_BYTES_MAX}; \
         choose a shorter data directory"
    )]
    TooLong {
        /// The socket.
        path: PathBuf,
        /// Its length in bytes.
        length: usize,
    },
    /// Another process listens there.
    #[error("bind {path}: another process listens there; stop it, or choose another port")]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something that is not a socket is in the way.
    #[error("bind {path}: a file that is not a socket is in the way; move it away")]
    NotASocket {
        /// The file.
        path: PathBuf,
    },
    /// The operating system refused.
    #[error("bind {path}")]
    Io {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Removes the socket's file when it is dropped.
#[derive(Debug)]
pub(crate) struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // A file that is left behind is recognised as stale at the next start.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Binds `<dir>/.s.PGSQL.<port>`; a file that nobody listens at any more is replaced.
///
/// Everybody may connect as far as the file's mode is concerned: who is let in is judged by
/// [`check_peer`], since the daemon and PostgreSQL run as different users.
pub(crate) fn bind(dir: &Path, port: u16) -> Result<(UnixListener, SocketFile), SocketError> {
    let path = dir.join(format!(".s.PGSQL.{port}"));
    let length = path.as_os_str().len();
    if length > PATH_BYTES_MAX {
        return Err(SocketError::TooLong { path, length });
    }
    let io = |source| SocketError::Io { path: path.clone(), source };
    match std::fs::symlink_metadata(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(source) => return Err(io(source)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(SocketError::NotASocket { path });
        }
        Ok(_) => match std::os::unix::net::UnixStream::connect(&path) {
            Ok(_) => return Err(SocketError::InUse { path }),
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(&path).map_err(io)?;
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(io(source)),
        },
    }
    let listener = UnixListener::bind(&path).map_err(io)?;
    let file = SocketFile(path.clone());
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)).map_err(io)?;
    Ok((listener, file))
}

/// Whether the process at the other end belongs to one of these users (SO_PEERCRED); else why not.
pub(crate) fn check_peer(stream: &UnixStream, allowed_uids: &[u32]) -> Result<(), String> {
    let uid = match stream.peer_cred() {
        Ok(credentials) => credentials.uid(),
        Err(error) => return Err(format!("cannot tell whose process connects: {error}")),
    };
    if allowed_uids.contains(&uid) {
        return Ok(());
    }
    Err(format!("processes of user id {uid} may not connect to this socket"))
}
