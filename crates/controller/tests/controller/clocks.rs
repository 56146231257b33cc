//! A controller whose clock is at 2010 or 2040, as it looks from there: all hosts have another time.

use crate::fleet::{Controller, Joining, failure, library_of_clocks};
use fleetward_api::controller::{HostView, JobView, Status, TokenView, VmView};
use fleetward_api::tpm::TpmVersion;
use fleetward_model::ErrorCode;
use fleetward_model::vm::VmState;
use http::Method;
use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};

const YEARS: Duration = Duration::days(14 * 365);

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_of_another_decade_says_so_with_both_times() {
    let controller = Controller::start().await;
    let (a, b) = tokio::join!(
        controller.join("a", "default"),
        controller.join("b", "default")
    );
    let status = async || -> Status { controller.get("/v1/status").await };
    let apart = async || {
        let findings = status().await.findings;
        let found = findings
            .into_iter()
            .find(|f| f.code == ErrorCode::ClocksApart);
        found.map(|found| found.what)
    };
    let shown = async |name: &str| -> Vec<String> {
        let host: HostView = controller.get(&format!("/v1/hosts/{name}")).await;
        let warnings = host.warnings.into_iter();
        warnings
            .filter(|one| one.contains("CLOCKS_APART"))
            .collect()
    };
    let year = |ahead: Duration| format!("{}-", (OffsetDateTime::now_utc() + ahead).year());
    assert_eq!(apart().await, None);
    assert!(shown("a").await.is_empty());
    for ahead in [YEARS, -YEARS] {
        for host in [&a, &b] {
            host.look(|inner| inner.clock_ahead = ahead);
        }
        let told = async || {
            apart()
                .await
                .is_some_and(|what| what.contains(&year(ahead)))
        };
        controller.wait("both times", told).await;
        let what = apart().await.expect("a finding");
        assert!(what.contains(&year(Duration::ZERO)), "{what}");
        assert!(what.contains("2 of 2 hosts"), "{what}");
        let warned = async || {
            shown("b")
                .await
                .iter()
                .any(|one| one.contains(&year(ahead)))
        };
        controller.wait("a warning of the host", warned).await;
    }
    // One host alone is at fault itself.
    a.look(|inner| inner.clock_ahead = Duration::ZERO);
    let gone = async || apart().await.is_none();
    controller
        .wait("the controller to be right again", gone)
        .await;
    assert!(!shown("b").await.is_empty());
    let right = async || shown("a").await.is_empty();
    controller.wait("host a to be right again", right).await;
}

/// Started under 2040 for a while, then with the right clock again.
#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_was_started_under_another_decade_goes_on_as_before() {
    if library_of_clocks().is_none() {
        println!("skipped: needs libfaketime");
        return;
    }
    let holds = tempfile::tempdir().expect("directory");
    let mut controller = Controller::spawn(holds.path()).await;
    let a = controller.join("a", "default").await;
    let body = json!({"name": "web", "host": "a", "start": true, "tpm": true});
    controller.done(Method::POST, "/v1/vms", &body).await;
    let jobs: Vec<JobView> = controller.get("/v1/jobs").await;
    let versions = async |controller: &Controller| -> Vec<TpmVersion> {
        controller.get("/v1/vms/web/tpm/history").await
    };
    let before = versions(&controller).await;
    assert!(!before.is_empty());

    controller.restart_under(Some("+14y"), holds.path()).await;
    let apart = async |controller: &Controller| {
        let status: Status = controller.get("/v1/status").await;
        let mut all = status.findings.into_iter();
        all.find(|found| found.code == ErrorCode::ClocksApart)
    };
    controller
        .wait("the clock to be doubted", async || {
            apart(&controller).await.is_some()
        })
        .await;
    let what = apart(&controller).await.expect("a finding").what;
    let year = OffsetDateTime::now_utc().year();
    for year in [year, year + 14] {
        assert!(what.contains(&format!("{year}-")), "{what}");
    }
    // No certificate of a host is good any more: the way back is told, and the doubt with it.
    let shown: HostView = controller.get("/v1/hosts/a").await;
    let told = shown.warnings.join("; ");
    assert!(told.contains("fleetward host rejoin a"), "{told}");
    assert!(
        told.contains("if the controller's clock is right"),
        "{told}"
    );
    let late: TokenView = controller.token("b", "default").await;

    controller.restart_under(None, holds.path()).await;
    controller.wait_online(&a.host, true).await;
    assert!(apart(&controller).await.is_none());
    let vm: VmView = controller.get("/v1/vms/web").await;
    assert_eq!(vm.state, VmState::Running);
    let after = versions(&controller).await;
    assert!(before.iter().all(|kept| after.contains(kept)), "{after:?}");
    let now: Vec<JobView> = controller.get("/v1/jobs").await;
    for job in jobs {
        assert!(now.iter().any(|one| one.id == job.id), "{job:?}");
    }
    let mut body = Joining::new("b").body(&late.token, "127.0.0.1:1");
    body.clock = Some(OffsetDateTime::now_utc());
    let client = controller.anonymous();
    let (_, refused) = failure(&client, Method::POST, "/v1/join", &body).await;
    assert_eq!(refused.code, ErrorCode::ClocksApart, "{refused}");
    assert!(refused.fix.contains("fleetward host token b"), "{refused}");
    let _: Value = controller.get("/v1/audit/verify").await;
}
