//! A connection to a broker.

use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use kafka_protocol::{
    ResponseError,
    messages::{
        ApiKey, InitProducerIdRequest, InitProducerIdResponse, MetadataRequest, MetadataResponse, ProduceRequest,
        ProduceResponse, RequestHeader, ResponseHeader, SaslAuthenticateRequest, SaslAuthenticateResponse,
        SaslHandshakeRequest, SaslHandshakeResponse,
    },
    protocol::{Decodable, Encodable, HeaderVersion, StrBytes, encode_request_header_into_buffer},
};
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

use super::sasl::{self, Mechanism, SaslConfig, Scram};
use crate::http::secret;

/// What a client calls, in a version that all brokers from Kafka 2.2 on have.
pub trait Call: Encodable + HeaderVersion {
    const KEY: ApiKey;
    const VERSION: i16;
    type Answer: Decodable + HeaderVersion;
}

macro_rules! calls {
    ($($request:ty, $answer:ty, $key:ident, $version:literal;)*) => {
        $(impl Call for $request {
            const KEY: ApiKey = ApiKey::$key;
            const VERSION: i16 = $version;
            type Answer = $answer;
        })*
    };
}

calls! {
    MetadataRequest, MetadataResponse, Metadata, 7;
    InitProducerIdRequest, InitProducerIdResponse, InitProducerId, 1;
    ProduceRequest, ProduceResponse, Produce, 7;
    SaslHandshakeRequest, SaslHandshakeResponse, SaslHandshake, 1;
    SaslAuthenticateRequest, SaslAuthenticateResponse, SaslAuthenticate, 1;
}

/// Longest answer that is read. One with the partitions of a topic has some 50 bytes for each.
const LARGEST_ANSWER: u32 = 8 << 20;

/// How a client connects to each broker.
#[derive(Clone, Debug)]
pub struct Access {
    pub tls: Option<Arc<ClientConfig>>,
    pub sasl: Option<SaslConfig>,
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// A connection that is authenticated. One call at a time.
pub struct Connection {
    stream: Box<dyn Stream>,
    calls: i32,
}

impl Connection {
    pub async fn open(host: &str, port: u16, access: &Access) -> Result<Self> {
        let stream = TcpStream::connect((host, port)).await?;
        stream.set_nodelay(true)?;
        let stream: Box<dyn Stream> = match &access.tls {
            None => Box::new(stream),
            Some(config) => {
                let name = ServerName::try_from(host.to_owned())?;
                let connector = TlsConnector::from(Arc::clone(config));
                Box::new(connector.connect(name, stream).await.context("TLS")?)
            }
        };
        let mut connection = Self { stream, calls: 0 };
        if let Some(sasl) = &access.sasl {
            connection.authenticate(sasl).await.with_context(|| format!("SASL {}", sasl.mechanism.name()))?;
        }
        Ok(connection)
    }

    async fn authenticate(&mut self, config: &SaslConfig) -> Result<()> {
        let SaslConfig { mechanism, username, password_file } = config;
        let password = secret(password_file).map_err(|failure| anyhow!(failure.message))?;
        let handshake = SaslHandshakeRequest::default().with_mechanism(StrBytes::from_static_str(mechanism.name()));
        let answer = self.call(&handshake).await?;
        if let Some(error) = ResponseError::try_from_code(answer.error_code) {
            let offered: Vec<&str> = answer.mechanisms.iter().map(StrBytes::as_str).collect();
            bail!("{error}; the broker takes {}", offered.join(", "));
        }
        if *mechanism == Mechanism::Plain {
            self.exchange(sasl::plain(username, &password)).await?;
            return Ok(());
        }
        let scram = Scram::new(*mechanism, username, &password)?;
        let server_first = self.exchange(scram.first()).await?;
        let (last, expected) = scram.last(&server_first)?;
        let server_last = self.exchange(last).await?;
        ensure!(server_last == expected.as_bytes(), "the broker does not know the password itself");
        Ok(())
    }

    async fn exchange(&mut self, message: Vec<u8>) -> Result<Vec<u8>> {
        let answer = self.call(&SaslAuthenticateRequest::default().with_auth_bytes(message.into())).await?;
        match ResponseError::try_from_code(answer.error_code) {
            None => Ok(answer.auth_bytes.into()),
            Some(error) => bail!("{error}: {}", answer.error_message.unwrap_or_default().as_str()),
        }
    }

    pub async fn call<C: Call>(&mut self, call: &C) -> Result<C::Answer> {
        self.calls = self.calls.wrapping_add(1);
        let header = RequestHeader::default()
            .with_request_api_key(C::KEY as i16)
            .with_request_api_version(C::VERSION)
            .with_correlation_id(self.calls)
            .with_client_id(Some(StrBytes::from_static_str("podtap-exporter")));
        let mut request = vec![0; 4];
        encode_request_header_into_buffer(&mut request, &header)?;
        call.encode(&mut request, C::VERSION)?;
        let length = u32::try_from(request.len() - 4)?;
        request[..4].copy_from_slice(&length.to_be_bytes());
        self.stream.write_all(&request).await?;
        self.stream.flush().await?;
        drop(request);

        let closed = "the broker has closed the connection: it may expect TLS or SASL";
        let length = self.stream.read_u32().await.map_err(|error| anyhow!(error).context(closed))?;
        ensure!(length <= LARGEST_ANSWER, "an answer of {length} bytes is none of Kafka: the broker may expect TLS");
        let mut answer = Vec::new();
        (&mut self.stream).take(length.into()).read_to_end(&mut answer).await?;
        ensure!(answer.len() == length as usize, closed);
        let mut answer = &answer[..];
        let header = ResponseHeader::decode(&mut answer, C::Answer::header_version(C::VERSION))?;
        ensure!(header.correlation_id == self.calls, "the broker answers another request");
        C::Answer::decode(&mut answer, C::VERSION)
    }
}
