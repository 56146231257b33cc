//! How fast a relayed Unix socket is, beside the same bytes over plain TCP on the same loopback.
//!
//! Prints the two rates and their ratio; `cargo run --release -p fleetward-link --example throughput [MiB]`.

#![allow(
    clippy::disallowed_methods,
    reason = "a measurement, whose files need not last"
)]

use async_trait::async_trait;
use fleetward_link::authority::MEMBER_LIFETIME;
use fleetward_link::tunnel::{
    IncomingTunnel, Traffic, TunnelDialer, TunnelHeader, TunnelService, TunnelTarget, UnixRelay,
};
use fleetward_link::{
    ClientCertificates, FleetAuthority, Identity, KeyRequest, LiveCredential, ServerTls,
    SocketSpec, TlsServer, Validity,
};
use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;
use time::OffsetDateTime;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

const PIECE: usize = 64 * 1024;

struct ToSocket(PathBuf);

#[async_trait]
impl TunnelService for ToSocket {
    async fn serve(&self, incoming: IncomingTunnel) {
        let own = nix::unistd::geteuid().as_raw();
        let traffic = Traffic::default();
        let carried = incoming.forward_to_unix((&self.0, own), &traffic);
        if let Err(error) = carried.await {
            eprintln!("the tunnel failed: {error}");
        }
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mebibytes: u64 = match std::env::args().nth(1) {
        Some(text) => text.parse()?,
        None => 2048,
    };
    let bytes = mebibytes * 1024 * 1024;
    let plain = over_tcp(bytes).await?;
    let tunnel = over_tunnel(bytes).await?;
    println!(
        "plain TCP {plain:.0} MiB/s, tunnel {tunnel:.0} MiB/s, ratio {:.2}",
        plain / tunnel
    );
    Ok(())
}

async fn over_tcp(bytes: u64) -> Result<f64, Box<dyn Error>> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let sink = tokio::spawn(async move { drain(listener.accept().await?.0).await });
    let begun = Instant::now();
    send(TcpStream::connect(address).await?, bytes).await?;
    rate(bytes, sink.await??, begun)
}

async fn over_tunnel(bytes: u64) -> Result<f64, Box<dyn Error>> {
    let dir = std::env::temp_dir().join(format!("fleetward-throughput-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let measured = over_tunnel_in(&dir, bytes).await;
    std::fs::remove_dir_all(&dir)?;
    measured
}

async fn over_tunnel_in(dir: &std::path::Path, bytes: u64) -> Result<f64, Box<dyn Error>> {
    let authority = FleetAuthority::open(dir, OffsetDateTime::now_utc())?;
    let member = |name: &str| -> Result<_, Box<dyn Error>> {
        let identity = Identity::Host(name.parse()?);
        let request = KeyRequest::generate()?;
        let validity = Validity::starting(OffsetDateTime::now_utc(), MEMBER_LIFETIME);
        let chain = authority.issue(request.csr_pem(), &identity, validity)?;
        Ok((
            identity,
            LiveCredential::new(request.into_credential(&chain)?),
        ))
    };
    let (_, source) = member("source")?;
    let (expected, destination) = member("destination")?;
    let trust = authority.trust().clone();

    let behind = dir.join("behind.sock");
    let listener = UnixListener::bind(&behind)?;
    let sink = tokio::spawn(async move { drain(listener.accept().await?.0).await });
    let tls = ServerTls::new(destination, trust.clone(), ClientCertificates::Required);
    let server = TlsServer::bind("127.0.0.1:0", tls)
        .await?
        .with_tunnels(Arc::new(ToSocket(behind)));
    let address = server.local_addr()?.to_string();
    let stop = CancellationToken::new();
    let serving = tokio::spawn(server.serve(axum::Router::new(), stop.clone()));

    let target = TunnelTarget {
        address,
        expected,
        header: TunnelHeader::new("bytes", "throughput"),
    };
    let dialer = TunnelDialer::new(source, trust);
    let relay = UnixRelay::open(&SocketSpec::new(dir.join("relay.sock")), dialer, target)?;
    let begun = Instant::now();
    send(UnixStream::connect(relay.path()).await?, bytes).await?;
    let measured = rate(bytes, sink.await??, begun)?;
    relay.close().await;
    stop.cancel();
    serving.await??;
    Ok(measured)
}

async fn send(mut stream: impl AsyncWrite + Unpin, mut bytes: u64) -> std::io::Result<()> {
    let piece = vec![0x5a; PIECE];
    while bytes > 0 {
        let n = bytes.min(PIECE as u64);
        stream.write_all(&piece[..n as usize]).await?;
        bytes -= n;
    }
    stream.shutdown().await
}

async fn drain(mut stream: impl AsyncRead + Unpin) -> std::io::Result<u64> {
    let mut buffer = vec![0; 4 * PIECE];
    let mut total = 0;
    loop {
        match stream.read(&mut buffer).await? {
            0 => return Ok(total),
            n => total += n as u64,
        }
    }
}

fn rate(sent: u64, received: u64, begun: Instant) -> Result<f64, Box<dyn Error>> {
    if sent != received {
        return Err(format!("sent {sent} bytes, received {received}").into());
    }
    Ok(sent as f64 / (1024.0 * 1024.0) / begun.elapsed().as_secs_f64())
}
