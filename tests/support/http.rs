//! A client of HTTP servers on this machine.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

/// How long a response may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Status and body of the response to `GET path`.
///
/// # Errors
/// If there is none.
pub fn get(server: SocketAddr, path: &str) -> io::Result<(u16, String)> {
    request(server, &format!("GET {path} HTTP/1.1\r\n"), "")
}

/// Status and body of the response to a document.
///
/// # Errors
/// If there is none.
pub fn post(server: SocketAddr, path: &str, content_type: &str, body: &str) -> io::Result<(u16, String)> {
    let head = format!("POST {path} HTTP/1.1\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n", body.len());
    request(server, &head, body)
}

fn request(server: SocketAddr, head: &str, body: &str) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(server)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(format!("{head}Host: {server}\r\nConnection: close\r\n\r\n{body}").as_bytes())?;
    let mut response = String::new();
    stream.read_to_string(&mut response)?;
    let (head, body) = response.split_once("\r\n\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or(io::ErrorKind::InvalidData)?;
    Ok((status, body.to_owned()))
}
