//! Conversions of images over the agent's real API, with a converter that knows one format.

use crate::support::{Fleet, Node, refusal};
use fleetward_api::agent::{CONVERSIONS, ConversionLine, ConverterState};
use fleetward_model::{ErrorCode, Failure};
use futures_util::TryStreamExt;
use http::Method;
use std::time::{Duration, Instant};

/// The disk that came of the file, or the refusal.
async fn convert(node: &Node, content: &[u8]) -> Result<(Vec<String>, Vec<u8>), Failure> {
    let request = node.client.request(Method::POST, CONVERSIONS);
    let length = Some(content.len() as u64);
    let request = request.upload(std::io::Cursor::new(content.to_vec()), length);
    let response = request.send().await.map_err(refusal)?;
    let mut lines = response.lines();
    loop {
        match lines.next_json().await.unwrap().expect("a last line") {
            ConversionLine::Progress { permille, .. } => assert!(permille <= 1000),
            ConversionLine::Failed { failure } => return Err(failure),
            ConversionLine::Done { size, found } => {
                let pieces: Vec<_> = lines.into_rest().try_collect().await.unwrap();
                let disk = pieces.concat();
                assert_eq!(disk.len() as u64, size);
                return Ok((found, disk));
            }
        }
    }
}

/// Waits until nothing is left of any conversion.
async fn nothing_is_left(node: &Node) {
    let directory = node.config.data_dir.join("conversions");
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        // An agent that has just begun removes the directory and makes it anew before it answers.
        let state: ConverterState = node.client.get(CONVERSIONS).await.unwrap();
        let left: Vec<_> = std::fs::read_dir(&directory).unwrap().flatten().collect();
        if left.is_empty() && state.busy == 0 {
            return;
        }
        assert!(Instant::now() < deadline, "{left:?} {state:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_comes_in_and_a_disk_goes_out() {
    let fleet = Fleet::start().await;
    let node = Node::start(&fleet, "a").await;
    let disk: Vec<u8> = (0..3_000_000_u32).map(|n| n as u8).collect();
    let file = [&b"foreign:"[..], &disk].concat();
    let (found, made) = convert(&node, &file).await.unwrap();
    assert_eq!(found, ["vhdx"]);
    assert!(made == disk);
    nothing_is_left(&node).await;
    let refused = convert(&node, b"damaged").await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::ImageInvalid);
    assert_eq!(refused.because, "it is damaged");
    nothing_is_left(&node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_without_the_programs_says_so() {
    let fleet = Fleet::start().await;
    let node = Node::start(&fleet, "a").await;
    let state: ConverterState = node.client.get(CONVERSIONS).await.unwrap();
    assert_eq!(state.unable, None);
    node.fake.with(|state| state.cannot_convert = true);
    let state: ConverterState = node.client.get(CONVERSIONS).await.unwrap();
    assert!(state.unable.unwrap().contains("bwrap"));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_left_when_the_controller_hangs_up_or_the_agent_dies() {
    let fleet = Fleet::start().await;
    let mut node = Node::start(&fleet, "a").await;
    let directory = node.config.data_dir.join("conversions");
    let begin = async |node: &Node| {
        let request = node.client.request(Method::POST, CONVERSIONS);
        let request = request.upload(&b"slow"[..], Some(4));
        let mut lines = request.send().await.unwrap().lines();
        let first: Option<ConversionLine> = lines.next_json().await.unwrap();
        assert!(matches!(first, Some(ConversionLine::Progress { .. })));
        lines
    };
    let lines = begin(&node).await;
    assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 1);
    drop(lines);
    nothing_is_left(&node).await;

    // As kill -9 leaves it.
    let _lines = begin(&node).await;
    let left = directory.join("00000000-0000-0000-0000-000000000001");
    std::fs::create_dir(&left).unwrap();
    std::fs::write(left.join("source"), b"rest").unwrap();
    node.down().await;
    assert!(left.exists());
    node.up().await;
    nothing_is_left(&node).await;
}
