//! Images from elsewhere: which host converts, what becomes of the disk, and that nothing is left of what went wrong.

use crate::fleet::Controller;
use crate::fleet::agent::{FakeAgent, FakeConversion};
use fleetward_api::controller::{ImageView, ImportView};
use fleetward_link::ClientError;
use fleetward_model::host::Formats;
use fleetward_model::{ErrorCode, Failure};
use http::Method;

/// What begins like a VHDX; the hosts here convert anything.
const FOREIGN: &[u8] = b"vhdxfile and the rest of it";

fn qcow2() -> Vec<u8> {
    let mut disk = vec![0; 300_000];
    disk[..4].copy_from_slice(b"QFI\xfb");
    disk[7] = 3;
    disk[23] = 16;
    disk[24..32].copy_from_slice(&(64_u64 << 20).to_be_bytes());
    disk
}

async fn import(controller: &Controller, query: &str, file: &[u8]) -> Result<ImageView, Failure> {
    let path = format!("/v1/images/win{query}");
    let length = Some(file.len() as u64);
    let request = controller.local.request(Method::PUT, &path);
    let sent = request.upload(std::io::Cursor::new(file.to_vec()), length);
    match sent.response_timeout(None).send().await {
        Ok(response) => Ok(response.json().await.expect("an image")),
        Err(ClientError::Status { body, .. }) => {
            Err(serde_json::from_slice(&body).expect("a failure"))
        }
        Err(error) => panic!("{error:?}"),
    }
}

async fn refused(controller: &Controller, query: &str, file: &[u8]) -> Failure {
    let refused = import(controller, query, file).await.expect_err("refused");
    assert_eq!(files(controller), 0, "{refused}");
    refused
}

fn files(controller: &Controller) -> usize {
    let directory = controller.data().join("images");
    std::fs::read_dir(directory).expect("directory").count()
}

fn converts(agent: &FakeAgent, change: impl FnOnce(&mut FakeConversion)) {
    agent.look(|inner| {
        inner.conversion.disk = qcow2();
        change(&mut inner.conversion);
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_converts_and_the_disk_becomes_the_image() {
    let controller = Controller::start().await;
    let a = controller.join("a", "default").await;
    let b = controller.join("b", "default").await;
    converts(&a, |a| a.busy = 1);
    converts(&b, |_| {});
    let image = import(&controller, "?format=vhdx&disk=d", FOREIGN)
        .await
        .expect("imported");
    assert_eq!(image.format, "qcow2");
    assert_eq!(image.virtual_size_bytes, 64 << 20);
    let source = image.source.clone().expect("a source");
    assert_eq!(source.found, ["vhdx"]);
    assert_eq!(source.host.as_str(), "b", "the other one is busy");
    assert_eq!(source.size_bytes, FOREIGN.len() as u64);
    let asked = b.look(|inner| inner.conversion.asked.clone());
    assert_eq!(asked, [("format=vhdx&disk=d".to_owned(), FOREIGN.to_vec())]);
    // The same file again needs no conversion; another one is refused.
    assert_eq!(import(&controller, "", FOREIGN).await, Ok(image.clone()));
    let other = import(&controller, "", b"vhdxfile of another").await;
    assert_eq!(other.expect_err("taken").code, ErrorCode::NameTaken);
    assert_eq!(b.look(|inner| inner.conversion.asked.len()), 1);

    let controller = controller.restart().await;
    let images: Vec<ImageView> = controller.get("/v1/images").await;
    assert_eq!(images, [image]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_no_host_can_convert_is_refused_with_every_reason() {
    let controller = Controller::start().await;
    let nobody = refused(&controller, "", FOREIGN).await;
    assert_eq!(nobody.code, ErrorCode::NoConverter);
    let a = controller.join("a", "default").await;
    let b = controller.join("b", "default").await;
    converts(&a, |a| a.unable = Some("bwrap is not installed".to_owned()));
    converts(&b, |b| b.room = 10);
    let unable = refused(&controller, "", FOREIGN).await;
    assert_eq!(unable.code, ErrorCode::NoConverter);
    for word in ["a: bwrap is not installed", "b: 54 bytes are needed"] {
        assert!(unable.because.contains(word), "{unable}");
    }
    for agent in [&a, &b] {
        agent.look(|inner| {
            inner.facts.formats = Formats {
                operations: Formats::DEVICES,
                ..Formats::KNOWN
            };
            inner.tell_facts();
        });
    }
    controller
        .wait("the old formats", async || {
            let refused = import(&controller, "", FOREIGN).await.expect_err("refused");
            refused.code == ErrorCode::AgentTooOld
        })
        .await;
    assert!(a.look(|inner| inner.conversion.asked.is_empty()));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_left_of_a_conversion_that_fails_or_breaks_off() {
    let controller = Controller::start().await;
    let a = controller.join("a", "default").await;
    let failure =
        Failure::new(ErrorCode::ImageNeedsOtherFiles, "the conversion").because("a parent");
    converts(&a, |a| a.fails = Some(failure));
    let told = refused(&controller, "", FOREIGN).await;
    assert_eq!(told.code, ErrorCode::ImageNeedsOtherFiles);
    assert_eq!(
        (told.what.as_str(), told.because.as_str()),
        ("image win cannot be converted", "a parent")
    );
    converts(&a, |a| (a.fails, a.cut) = (None, true));
    let cut = refused(&controller, "", FOREIGN).await;
    assert!(
        matches!(cut.code, ErrorCode::LinkLost | ErrorCode::InvalidRequest),
        "{cut}"
    );
    // A host that sends something else than a disk is not believed.
    converts(&a, |a| {
        (a.cut, a.disk) = (false, b"vhdxfile again".to_vec())
    });
    assert_eq!(
        refused(&controller, "", FOREIGN).await.code,
        ErrorCode::ImageInvalid
    );
    converts(&a, |_| {});
    import(&controller, "", FOREIGN)
        .await
        .expect("imported in the end");
}

#[tokio::test(flavor = "multi_thread")]
async fn how_far_an_import_is_can_be_asked() {
    let controller = Controller::start().await;
    let a = controller.join("a", "default").await;
    converts(&a, |a| a.waits = true);
    let path = "/v1/images/win/import";
    let none = controller.refusal(Method::GET, path, &()).await;
    assert_eq!(none.code, ErrorCode::ImageNotFound);
    let imported = import(&controller, "", FOREIGN);
    let looked = async {
        controller
            .wait("the conversion", async || {
                let request = controller.local.request(Method::GET, path);
                let Ok(response) = request.send().await else {
                    return false;
                };
                let view: ImportView = response.json().await.expect("a view");
                let text = serde_json::to_value(&view).expect("JSON");
                text["stage"] == "converting" && text["host"] == "a" && view.done == 420
            })
            .await;
        a.look(|inner| inner.conversion.waits = false);
    };
    let (imported, ()) = tokio::join!(imported, looked);
    imported.expect("imported");
    assert_eq!(
        controller.refusal(Method::GET, path, &()).await.code,
        ErrorCode::ImageNotFound
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_what_was_asked_for_or_it_is_refused() {
    let controller = Controller::start().await;
    let digest = format!("?sha256={}", "0".repeat(64));
    assert_eq!(
        refused(&controller, &digest, &qcow2()).await.code,
        ErrorCode::DigestDiffers
    );
    assert_eq!(
        refused(&controller, "?format=exe", FOREIGN).await.code,
        ErrorCode::InvalidArgument
    );
    assert_eq!(
        refused(&controller, "?format=vhdx", &qcow2()).await.code,
        ErrorCode::ImageInvalid
    );
    assert_eq!(
        refused(&controller, "?disk=x", &qcow2()).await.code,
        ErrorCode::InvalidArgument
    );
    import(&controller, "", &qcow2()).await.expect("imported");
}
