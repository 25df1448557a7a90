//! Whether a program may connect to a server. A program of the same pod that has a token answers, over a Unix socket.
//!
//! A question is an address and the end of the line, on a connection of its own. The answer is a line: `yes`, or why not.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, ToSocketAddrs as _},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

/// How long an answer may be used.
pub const AGE: Duration = Duration::from_secs(10);
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest answer, in bytes.
const LONGEST: u64 = 1024;

/// The program may not connect, or it is not known whether it may.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The name of the server has no address now.
    #[error("{host}")]
    Name {
        /// The server.
        host: String,
        /// Why.
        source: io::Error,
    },
    /// There is no answer.
    #[error("it cannot be asked whether {host} is allowed")]
    Unknown {
        /// The server.
        host: String,
        /// Why.
        source: io::Error,
    },
    /// An address of the server is not allowed.
    #[error("{host}: {reason}")]
    Forbidden {
        /// The server.
        host: String,
        /// The answer.
        reason: String,
    },
}

/// Asks by the socket for each address that the server has, and returns them. Each must be allowed. It blocks, for some seconds at most for
/// each address.
pub fn check(socket: &Path, host: &str, port: u16) -> Result<Vec<IpAddr>, Refusal> {
    let name = |source| Refusal::Name { host: host.to_owned(), source };
    let addresses: Vec<IpAddr> = (host, port).to_socket_addrs().map_err(name)?.map(|address| address.ip()).collect();
    for address in &addresses {
        let answer = ask(socket, &format!("{address}\n"));
        let answer = answer.map_err(|source| Refusal::Unknown { host: host.to_owned(), source })?;
        if answer != "yes" {
            return Err(Refusal::Forbidden { host: host.to_owned(), reason: answer });
        }
    }
    Ok(addresses)
}

fn ask(socket: &Path, question: &str) -> io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(question.as_bytes())?;
    let mut answer = String::new();
    stream.take(LONGEST).read_to_string(&mut answer)?;
    answer.strip_suffix('\n').map(str::to_owned).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::net::UnixListener, thread};

    use super::*;
    use crate::telemetry::with_causes;

    #[test]
    fn each_address_of_a_server_must_be_allowed() {
        let socket = std::env::temp_dir().join(format!("podtap-permit-{}.sock", std::process::id()));
        let check = |host| check(&socket, host, 9092).map_err(|refusal| with_causes(&refusal).to_string());
        let error = check("192.0.2.7").expect_err("nothing answers");
        assert!(error.starts_with("it cannot be asked whether 192.0.2.7 is allowed: "), "{error}");
        let listener = UnixListener::bind(&socket).expect("the path is free");
        let server = thread::spawn(move || {
            let mut questions = String::new();
            for answer in ["yes\n", "no, because\n", "ye"] {
                let (mut stream, _) = listener.accept().expect("a question");
                let mut buffer = [0; 64];
                let length = stream.read(&mut buffer).expect("a question");
                questions += std::str::from_utf8(&buffer[..length]).expect("text");
                stream.write_all(answer.as_bytes()).expect("it waits");
            }
            questions
        });
        assert_eq!(check("192.0.2.7"), Ok(vec![[192, 0, 2, 7].into()]));
        assert_eq!(check("::1"), Err("::1: no, because".to_owned()));
        assert!(check("192.0.2.8").is_err(), "half an answer is none");
        assert_eq!(server.join().expect("no panic"), "192.0.2.7\n::1\n192.0.2.8\n");
        fs::remove_file(&socket).expect("it exists");
    }
}
