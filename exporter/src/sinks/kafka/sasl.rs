//! How a client authenticates: PLAIN (RFC 4616) and SCRAM (RFC 5802, RFC 7677).

use std::{num::NonZeroU32, path::PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use ring::{
    digest, hmac, pbkdf2,
    rand::{SecureRandom as _, SystemRandom},
};
use serde::Deserialize;

/// Iterations that a server may ask for; Kafka's maximum is 16384.
const MOST_ITERATIONS: u32 = 200_000;

/// A user, and how it is authenticated.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SaslConfig {
    pub mechanism: Mechanism,
    pub username: String,
    pub password_file: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Mechanism {
    #[serde(rename = "PLAIN")]
    Plain,
    #[serde(rename = "SCRAM-SHA-256")]
    ScramSha256,
    #[serde(rename = "SCRAM-SHA-512")]
    ScramSha512,
}

impl Mechanism {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::ScramSha512 => "SCRAM-SHA-512",
        }
    }
}

/// The only message of PLAIN.
pub fn plain(username: &str, password: &str) -> Vec<u8> {
    format!("\0{username}\0{password}").into_bytes()
}

/// The client's part of an exchange of SCRAM, without channel binding, which Kafka lacks.
#[derive(Debug)]
pub struct Scram<'a> {
    mechanism: Mechanism,
    password: &'a str,
    nonce: String,
    first_bare: String,
}

impl<'a> Scram<'a> {
    pub fn new(mechanism: Mechanism, username: &str, password: &'a str) -> Result<Self> {
        let mut nonce = [0; 18];
        SystemRandom::new().fill(&mut nonce).ok().context("the system has no random numbers")?;
        Ok(Self::with_nonce(mechanism, username, password, STANDARD.encode(nonce)))
    }

    fn with_nonce(mechanism: Mechanism, username: &str, password: &'a str, nonce: String) -> Self {
        let first_bare = format!("n={},r={nonce}", username.replace('=', "=3D").replace(',', "=2C"));
        Self { mechanism, password, nonce, first_bare }
    }

    /// The first message.
    pub fn first(&self) -> Vec<u8> {
        format!("n,,{}", self.first_bare).into_bytes()
    }

    /// The last message, and what the server must answer to show that it knows the password, too.
    pub fn last(&self, server_first: &[u8]) -> Result<(Vec<u8>, String)> {
        let (hash, hmac, pbkdf2) = match self.mechanism {
            Mechanism::ScramSha256 => (&digest::SHA256, hmac::HMAC_SHA256, pbkdf2::PBKDF2_HMAC_SHA256),
            Mechanism::ScramSha512 => (&digest::SHA512, hmac::HMAC_SHA512, pbkdf2::PBKDF2_HMAC_SHA512),
            Mechanism::Plain => bail!("PLAIN has one message"),
        };
        let server_first = std::str::from_utf8(server_first)?;
        let attribute = |name| server_first.split(',').find_map(|part| part.strip_prefix(name));
        let missing = || format!("the broker's answer is not one of {}", self.mechanism.name());
        let nonce = attribute("r=").filter(|nonce| nonce.starts_with(&self.nonce)).with_context(missing)?;
        let salt = STANDARD.decode(attribute("s=").with_context(missing)?).with_context(missing)?;
        let iterations: NonZeroU32 = attribute("i=").and_then(|count| count.parse().ok()).with_context(missing)?;
        ensure!(iterations.get() <= MOST_ITERATIONS, "the broker asks for {iterations} iterations");

        let sign = |key: &[u8], text: &str| hmac::sign(&hmac::Key::new(hmac, key), text.as_bytes());
        let mut salted = vec![0; hash.output_len()];
        pbkdf2::derive(pbkdf2, iterations, &salt, self.password.as_bytes(), &mut salted);
        let client_key = sign(&salted, "Client Key");
        let unproved = format!("c=biws,r={nonce}");
        let exchange = format!("{},{server_first},{unproved}", self.first_bare);
        let signature = sign(digest::digest(hash, client_key.as_ref()).as_ref(), &exchange);
        let proof: Vec<u8> = client_key.as_ref().iter().zip(signature.as_ref()).map(|(key, bits)| key ^ bits).collect();
        let server = sign(sign(&salted, "Server Key").as_ref(), &exchange);
        let last = format!("{unproved},p={}", STANDARD.encode(proof));
        Ok((last.into_bytes(), format!("v={}", STANDARD.encode(server))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONCE: &str = "rOprNGfwEbeRWgbNEkqO";
    const SERVER_FIRST: &str = "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";

    #[test]
    fn an_exchange_is_that_of_the_rfc() {
        // RFC 7677, section 3.
        let scram = Scram::with_nonce(Mechanism::ScramSha256, "user", "pencil", NONCE.to_owned());
        assert_eq!(scram.first(), b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO");
        let (last, server) = scram.last(SERVER_FIRST.as_bytes()).expect("it is valid");
        assert_eq!(
            String::from_utf8_lossy(&last),
            "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
        );
        assert_eq!(server, "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
    }

    #[test]
    fn a_server_that_lies_is_an_error() {
        let scram = Scram::with_nonce(Mechanism::ScramSha512, "a,b=c", "", NONCE.to_owned());
        assert_eq!(scram.first(), b"n,,n=a=2Cb=3Dc,r=rOprNGfwEbeRWgbNEkqO");
        for (of, by) in [("rOpr", "rOpR"), ("i=4096", "i=0"), ("i=4096", "i=4000000000"), ("W22Z", "*"), ("s=", "x=")] {
            let answer = SERVER_FIRST.replace(of, by);
            scram.last(answer.as_bytes()).expect_err(&answer);
        }
    }
}
