//! Alerts as those who are told see them: each once, with its end, whatever happens to the controller or to other targets.

use crate::fleet::{Controller, failure};
use aws_lc_rs::hmac;
use fleetward_api::controller::{AlertTargetView, AlertView, Role, Status};
use fleetward_model::ErrorCode;
use fleetward_model::audit::AuditRecord;
use http::Method;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

/// Some looks. Each takes no more than a fiftieth of the time, so on a busy machine there are few.
const LOOKS: Duration = Duration::from_secs(120);
const SECRET: &str = "a secret of some length";
const OK: &str = "HTTP/1.1 204 No Content\r\n\r\n";

/// A POST as it came.
#[derive(Debug, Clone)]
struct Post {
    head: String,
    body: Vec<u8>,
}

impl Post {
    fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        let found = lines.find(|(named, _)| named.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value)
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }
}

/// A server that answers every request with the same bytes; with none it says nothing.
#[derive(Clone)]
struct Sink {
    url: String,
    posts: Arc<Mutex<Vec<Post>>>,
}

impl Sink {
    async fn start(answer: Option<&'static str>, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let scheme = if tls.is_some() { "https" } else { "http" };
        let sink = Self {
            url: format!("{scheme}://{address}/T0/secret-path"),
            posts: Arc::default(),
        };
        let posts = sink.posts.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.expect("a connection");
                let (posts, tls) = (posts.clone(), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => serve(stream, answer, &posts).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                serve(stream, answer, &posts).await;
                            }
                        }
                    }
                });
            }
        });
        sink
    }

    fn posts(&self) -> Vec<Post> {
        self.posts.lock().expect("no panic").clone()
    }

    /// All that was told, in its order.
    fn told(&self) -> Vec<AlertView> {
        let posts = self.posts().into_iter();
        let alerts = posts.flat_map(|post| {
            let alerts = post.json()["alerts"].take();
            serde_json::from_value::<Vec<AlertView>>(alerts).expect("alerts")
        });
        alerts.collect()
    }

    fn told_of(&self, code: ErrorCode, subject: &str) -> Vec<AlertView> {
        let told = self.told().into_iter();
        told.filter(|alert| alert.code == code && alert.subject == subject)
            .collect()
    }
}

async fn serve(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    answer: Option<&'static str>,
    posts: &Mutex<Vec<Post>>,
) {
    let mut bytes = Vec::new();
    let mut piece = [0; 4096];
    let post = loop {
        match stream.read(&mut piece).await {
            Ok(0) | Err(_) => return,
            Ok(read) => bytes.extend_from_slice(&piece[..read]),
        }
        let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
            continue;
        };
        let post = Post {
            head: String::from_utf8_lossy(&bytes[..end]).into_owned(),
            body: bytes[end + 4..].to_vec(),
        };
        let length = post.header("content-length").expect("a length");
        if post.body.len() == length.parse::<usize>().expect("a number") {
            break post;
        }
    };
    posts.lock().expect("no panic").push(post);
    match answer {
        Some(answer) => {
            let _ = stream.write_all(answer.as_bytes()).await;
            let _ = stream.shutdown().await;
        }
        None => std::future::pending().await,
    }
}

/// A certificate for the loopback address, and its key, PEM.
fn certificate() -> (String, rcgen::KeyPair, rcgen::Certificate) {
    let key = rcgen::KeyPair::generate().expect("a key");
    let params = rcgen::CertificateParams::new(["127.0.0.1".to_owned()]).expect("names");
    let certificate = params.self_signed(&key).expect("a certificate");
    (certificate.pem(), key, certificate)
}

async fn add_webhook(controller: &Controller, name: &str, sink: &Sink) -> AlertTargetView {
    let way = json!({ "webhook": { "url": sink.url, "secret": SECRET } });
    let body = json!({ "name": name, "way": way });
    controller.post("/v1/alert-targets", &body).await
}

async fn targets(controller: &Controller) -> Vec<AlertTargetView> {
    controller.get("/v1/alert-targets").await
}

async fn target(controller: &Controller, name: &str) -> AlertTargetView {
    let mut all = targets(controller).await.into_iter();
    let found = all.find(|target| target.name.as_str() == name);
    found.expect("the target")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alert_and_its_end_are_told_once_over_kills_and_signed() {
    let holds = tempfile::tempdir().expect("directory");
    let mut controller = Controller::spawn(holds.path()).await;
    let sink = Sink::start(Some(OK), None).await;
    let added = add_webhook(&controller, "pager", &sink).await;
    assert!(
        added.secret && !added.to.contains("secret-path"),
        "{added:?}"
    );
    let (a, b) = tokio::join!(
        controller.join("a", "default"),
        controller.join("b", "default")
    );
    // A kill between a message and the note that it was taken lets the same come once more, with the same id.
    let away = |host: &str| {
        let told = sink.told_of(ErrorCode::HostUnreachable, &format!("host {host}"));
        let same = |a: &AlertView, b: &AlertView| (a.id, a.ended) == (b.id, b.ended);
        let mut once: Vec<AlertView> = Vec::new();
        for alert in &told {
            let times = told.iter().filter(|other| same(other, alert)).count();
            assert!(times <= 2, "once for a kill: {told:?}");
            if !once.iter().any(|other| same(other, alert)) {
                once.push(alert.clone());
            }
        }
        once
    };
    a.silence(true);
    controller
        .wait_within(LOOKS, "word of host a", async || !away("a").is_empty())
        .await;
    let now: Vec<AlertView> = controller.get("/v1/alerts").await;
    assert!(
        now.iter().any(|alert| alert.id == away("a")[0].id),
        "{now:?}"
    );

    controller.kill_and_restart(holds.path(), || ()).await;
    b.silence(true);
    controller
        .wait_within(LOOKS, "word of host b", async || !away("b").is_empty())
        .await;
    assert_eq!(away("a").len(), 1, "a second time");
    controller.kill_and_restart(holds.path(), || ()).await;
    a.silence(false);
    controller
        .wait_within(LOOKS, "the end", async || away("a").len() == 2)
        .await;
    let [begin, end] = &away("a")[..] else {
        panic!("told {:?}", away("a"));
    };
    assert_eq!(
        (begin.id, begin.ended, begin.since),
        (end.id, None, end.since)
    );
    assert!(end.ended.is_some() && begin.fix.contains("fleetward host show a"));
    b.silence(false);
    controller
        .wait_within(LOOKS, "the other end", async || away("b").len() == 2)
        .await;
    assert_eq!(away("a").len(), 2, "{:?}", away("a"));

    let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes());
    for post in sink.posts() {
        assert!(post.head.starts_with("POST /T0/secret-path HTTP/1.1"));
        let signature = post.header("fleetward-signature").expect("signed");
        let (at, mac) = signature.split_once(",v1=").expect("both");
        let at = at.strip_prefix("t=").expect("a time");
        let signed = [at.as_bytes(), b".", &post.body].concat();
        hmac::verify(&key, &signed, &hex::decode(mac).expect("hex")).expect("our signature");
        let id = post.json()["message"].clone();
        assert_eq!(id.as_str(), post.header("fleetward-message"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn targets_that_hang_lie_or_send_elsewhere_are_named_and_hold_up_no_other() {
    let controller = Controller::start().await;
    let (pem, key, certificate) = certificate();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .expect("a server");
    let tls = TlsAcceptor::from(Arc::new(config));
    let (good, hangs) = (
        Sink::start(Some(OK), Some(tls)).await,
        Sink::start(None, None).await,
    );
    let garbage = Sink::start(Some("\0\u{1b}[2J220 mail.test ESMTP\r\n\r\n"), None).await;
    let moved = Sink::start(
        Some("HTTP/1.1 307 Temporary Redirect\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n"),
        None,
    )
    .await;
    add_webhook(&controller, "hangs", &hangs).await;
    add_webhook(&controller, "garbage", &garbage).await;
    add_webhook(&controller, "moved", &moved).await;
    // Nobody vouches for its certificate.
    add_webhook(&controller, "untrusted", &good).await;
    let way = json!({ "webhook": { "url": good.url, "ca": pem } });
    let body = json!({ "name": "good", "way": way });
    let _: AlertTargetView = controller.post("/v1/alert-targets", &body).await;
    for (name, why) in [
        ("garbage", "garbage did not"),
        ("moved", "307"),
        ("untrusted", "certificate"),
    ] {
        let path = format!("/v1/alert-targets/{name}/test");
        let refused = controller.refusal(Method::POST, &path, &json!({})).await;
        assert_eq!(refused.code, ErrorCode::AlertTargetFailing, "{refused}");
        assert!(!refused.to_string().contains("secret-path"), "{refused}");
        assert!(!refused.because.contains('\u{1b}'), "{refused}");
        assert!(
            name == "garbage" || refused.because.contains(why),
            "{refused}"
        );
    }
    let _: AlertTargetView = (controller.post("/v1/alert-targets/good/test", &json!({}))).await;
    assert_eq!(good.posts()[0].json()["test"], json!(true));

    let a = controller.join("a", "default").await;
    a.look(|inner| {
        inner.facts.pools[0].available = fleetward_model::ByteSize::gib(1);
        inner.tell_facts();
    });
    let told = async || !good.told_of(ErrorCode::NoSpace, "host a").is_empty();
    controller
        .wait_within(LOOKS, "word of the pool", told)
        .await;
    // What does not arrive somewhere is told elsewhere, and in the status.
    let told = async || {
        ["garbage", "moved", "untrusted"].iter().all(|name| {
            let subject = format!("alert target {name}");
            !good
                .told_of(ErrorCode::AlertTargetFailing, &subject)
                .is_empty()
        })
    };
    controller
        .wait_within(LOOKS, "word of the targets", told)
        .await;
    let status: Status = controller.get("/v1/status").await;
    let named = status
        .findings
        .iter()
        .filter(|f| f.code == ErrorCode::AlertTargetFailing);
    let fixes: Vec<_> = named.map(|finding| finding.fix.as_str()).collect();
    assert!(
        fixes
            .iter()
            .any(|fix| fix.contains("fleetward alert test moved")),
        "{fixes:?}"
    );
    assert!(target(&controller, "moved").await.failure.is_some());
    assert!(target(&controller, "hangs").await.waiting > 0);
    assert_eq!(target(&controller, "good").await.failure, None);
    let metrics = controller.metrics().await;
    for line in [
        "fleetward_alert_target_failing{target=\"moved\"} 1",
        "fleetward_alert_target_failing{target=\"good\"} 0",
        "fleetward_alerts{code=\"NO_SPACE\"} 1",
    ] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
}

/// Debian's own, for which the package python3-aiosmtpd is.
const PYTHON: &str = "/usr/bin/python3";

struct MailServer {
    process: Child,
    port: u16,
    file: PathBuf,
    authority: String,
}

impl MailServer {
    /// None where aiosmtpd is not installed.
    fn start(dir: &Path, password: &str) -> Option<Self> {
        let has = Command::new(PYTHON)
            .args(["-c", "import aiosmtpd"])
            .status();
        if !has.is_ok_and(|status| status.success()) {
            println!("skipped: needs python3-aiosmtpd");
            return None;
        }
        let (pem, key, _) = certificate();
        let (chain, key_file) = (dir.join("smtp.pem"), dir.join("smtp.key"));
        std::fs::write(&chain, &pem).expect("written");
        std::fs::write(&key_file, key.serialize_pem()).expect("written");
        let file = dir.join("mails");
        std::fs::write(&file, "").expect("written");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/controller/smtp_server.py");
        let mut process = Command::new(PYTHON)
            .args([&script, &chain, &key_file])
            .args(["kim", password])
            .arg(&file)
            .stdout(Stdio::piped())
            .spawn()
            .expect("a process");
        let mut line = String::new();
        let out = process.stdout.take().expect("its output");
        BufReader::new(out).read_line(&mut line).expect("its port");
        Some(Self {
            process,
            port: line.trim().parse().expect("a port"),
            file,
            authority: pem,
        })
    }

    fn mails(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(&self.file).expect("mails");
        let lines = text.lines();
        // Long headers are folded, and long lines of the body, too.
        lines
            .map(|line| line.replace("\\r\\n ", " ").replace("=\\r\\n", ""))
            .map(|line| serde_json::from_str(&line).expect("JSON"))
            .collect()
    }
}

impl Drop for MailServer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mail_goes_over_tls_with_a_login_and_no_text_of_a_host_becomes_a_header() {
    let dir = tempfile::tempdir().expect("directory");
    let Some(server) = MailServer::start(dir.path(), "pass word") else {
        return;
    };
    let controller = Controller::start().await;
    let way = |password: &str, believes: bool| {
        json!({ "mail": {
            "to": ["ops@example.org", "Kim <kim@example.org>"],
            "from": "fleetward@example.org",
            "smtp": format!("127.0.0.1:{}", server.port),
            "user": "kim",
            "password": password,
            "ca": believes.then(|| server.authority.clone()),
        }})
    };
    for (name, way) in [
        ("ops", way("pass word", true)),
        ("wrong", way("pass w0rd", true)),
        ("untrusted", way("pass word", false)),
    ] {
        let body = json!({ "name": name, "way": way, "codes": ["HOST_WARNING"] });
        let added: AlertTargetView = controller.post("/v1/alert-targets", &body).await;
        assert_eq!(added.to, "ops@example.org, Kim <kim@example.org>");
    }
    for (name, why) in [("wrong", "535"), ("untrusted", "certificate")] {
        let path = format!("/v1/alert-targets/{name}/test");
        let refused = controller.refusal(Method::POST, &path, &json!({})).await;
        assert_eq!(refused.code, ErrorCode::AlertTargetFailing, "{refused}");
        assert!(refused.because.contains(why), "{refused}");
        assert!(!refused.to_string().contains("pass w"), "{refused}");
    }
    assert_eq!(server.mails(), [0; 0], "nobody was believed");
    let _: AlertTargetView = controller
        .post("/v1/alert-targets/ops/test", &json!({}))
        .await;
    assert_eq!(server.mails().len(), 1);

    let a = controller.join("a", "default").await;
    a.look(|inner| {
        let hostile = "its disk\r\nBcc: eve@example.org\r\n\r\n.\r\nMAIL FROM:<eve@example.org>\u{202e}\u{1b}[2J \u{e9}\u{1f600}";
        inner.facts.warnings = vec![hostile.into()];
        inner.tell_facts();
    });
    let told = async || server.mails().len() > 1;
    controller.wait_within(LOOKS, "a mail", told).await;
    let mail = &server.mails()[1];
    let text = mail["content"].as_str().expect("text");
    assert_eq!(mail["to"], json!(["ops@example.org", "kim@example.org"]));
    assert_eq!(
        (&mail["from"], &mail["tls"]),
        (&json!("fleetward@example.org"), &json!(true))
    );
    let (head, body) = text.split_once("\r\n\r\n").expect("a head and a body");
    assert!(head.contains("HOST_WARNING host a"), "{head}");
    assert!(head.contains("Auto-Submitted: auto-generated"), "{head}");
    assert!(!head.to_lowercase().contains("bcc"), "{head}");
    assert!(body.contains("its disk  Bcc: eve@example.org"), "{body}");
    assert!(!text.contains(['\u{1b}', '\u{202e}']), "{text:?}");

    a.look(|inner| {
        inner.facts.warnings.clear();
        inner.tell_facts();
    });
    let told = async || server.mails().len() > 2;
    controller.wait_within(LOOKS, "its end", told).await;
    let end = server.mails()[2]["content"]
        .as_str()
        .expect("text")
        .to_owned();
    assert!(end.contains("over: HOST_WARNING host a"), "{end}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_job_is_told_until_one_like_it_succeeds() {
    let controller = Controller::start().await;
    let sink = Sink::start(Some(OK), None).await;
    add_webhook(&controller, "pager", &sink).await;
    let a = controller.join("a", "default").await;
    crate::jobs::create(&controller, json!({ "name": "web", "tpm": false })).await;
    a.fail_once("start", ErrorCode::HypervisorFailed);
    let path = "/v1/vms/web/start";
    let failed = controller.job(Method::POST, path, &json!({})).await;
    assert!(failed.failure.is_some(), "{failed:#?}");
    let subject = "job vm-start of web";
    let told = || sink.told_of(ErrorCode::JobFailed, subject);
    controller
        .wait_within(LOOKS, "word of the job", async || told().len() == 1)
        .await;
    let fix = format!("fleetward job show {}", failed.id);
    assert!(told()[0].fix.contains(&fix), "{:?}", told());
    controller.done(Method::POST, path, &json!({})).await;
    controller
        .wait_within(LOOKS, "its end", async || told().len() == 2)
        .await;
    assert!(told()[1].ended.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_of_targets_are_in_one_private_file_and_gone_with_their_target() {
    let controller = Controller::start().await;
    let sink = Sink::start(Some(OK), None).await;
    add_webhook(&controller, "pager", &sink).await;
    let file = controller.data().join("alert-targets.json");
    let mode = std::fs::metadata(&file)
        .expect("the file")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let said = serde_json::to_string(&targets(&controller).await).expect("JSON");
    let records: Vec<AuditRecord> = controller.get("/v1/audit").await;
    assert!(
        records
            .iter()
            .any(|one| one.reason.starts_with("pager, webhook to http://127"))
    );
    let audit = serde_json::to_string(&records).expect("JSON");
    for text in [&said, &audit] {
        assert!(
            !text.contains(SECRET) && !text.contains("secret-path"),
            "{text}"
        );
    }
    let viewer = controller.admin("eve", Role::Viewer).await;
    let _: Vec<AlertView> = viewer
        .get("/v1/alerts")
        .await
        .expect("a viewer sees alerts");
    let (status, _) = failure(&viewer, Method::GET, "/v1/alert-targets", &json!({})).await;
    assert_eq!(status, 403);
    let again = json!({ "name": "pager", "way": { "webhook": { "url": sink.url } } });
    let taken = controller
        .refusal(Method::POST, "/v1/alert-targets", &again)
        .await;
    assert_eq!(taken.code, ErrorCode::NameTaken);

    let controller = controller.restart().await;
    let _: AlertTargetView = (controller.post("/v1/alert-targets/pager/test", &json!({}))).await;
    let removed = controller
        .local
        .request(Method::DELETE, "/v1/alert-targets/pager");
    removed.send().await.expect("removed");
    for entry in std::fs::read_dir(controller.data()).expect("the data") {
        let path = entry.expect("an entry").path();
        let Ok(bytes) = std::fs::read(&path) else {
            continue; // a directory or a socket
        };
        let found = bytes
            .windows(SECRET.len())
            .any(|some| some == SECRET.as_bytes());
        assert!(!found, "{} has the secret", path.display());
    }
    assert_eq!(targets(&controller).await, []);
}
