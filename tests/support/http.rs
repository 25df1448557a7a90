//! A client of HTTP servers on this machine.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
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

/// The body of the response to `GET path`.
///
/// # Errors
/// If there is none, or its status is not 200: then, its body.
pub fn body(server: SocketAddr, path: &str) -> Result<String, String> {
    match get(server, path) {
        Ok((200, body)) => Ok(body),
        Ok((status, body)) => Err(format!("{status}: {body}")),
        Err(error) => Err(error.to_string()),
    }
}

/// Status and body of the response to a document.
///
/// # Errors
/// If there is none.
pub fn post(server: SocketAddr, path: &str, content_type: &str, body: &str) -> io::Result<(u16, String)> {
    let head = format!("POST {path} HTTP/1.1\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n", body.len());
    request(server, &head, body)
}

/// Status and body of the response to `DELETE path`.
///
/// # Errors
/// If there is none.
pub fn delete(server: SocketAddr, path: &str) -> io::Result<(u16, String)> {
    request(server, &format!("DELETE {path} HTTP/1.1\r\n"), "")
}

fn request(server: SocketAddr, head: &str, body: &str) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(server)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(format!("{head}Host: {server}\r\nConnection: close\r\n\r\n{body}").as_bytes())?;
    let mut response = BufReader::new(stream);
    let mut line = String::new();
    response.read_line(&mut line)?;
    let status = line.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or(io::ErrorKind::InvalidData)?;
    let mut length = None;
    loop {
        line.clear();
        if response.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match line.trim_end().split_once(':') {
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => length = value.trim().parse().ok(),
            Some(_) => {}
            None => break,
        }
    }
    // Some servers leave the connection open.
    let mut body = String::new();
    response.take(length.unwrap_or(u64::MAX)).read_to_string(&mut body)?;
    if length.is_some_and(|length| length != body.len() as u64) {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok((status, body))
}
