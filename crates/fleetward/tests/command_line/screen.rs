//! `vm screen` against a screen that misbehaves.

use crate::fake::{Fake, interrupt, spawn};
use axum::Router;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::routing::get;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const SIDE: u8 = 4;
const VERSION: &[u8; 12] = b"RFB 003.008\n";

/// Requests for a picture that reached a server, with its number.
type Asked = Arc<Mutex<Vec<(usize, Vec<u8>)>>>;

/// A picture of one colour, as large as it is.
fn update(colour: u8) -> Vec<u8> {
    let pixels = vec![colour; usize::from(SIDE) * usize::from(SIDE) * 4];
    let head = [0, 0, 0, 1, 0, 0, 0, 0, 0, SIDE, 0, SIDE, 0, 0, 0, 0];
    [&head[..], &pixels].concat()
}

/// Server number `number`: introduces itself, and answers the first request for a picture, but no further one.
async fn serve(mut socket: WebSocket, number: usize, asked: Asked) {
    let say = |bytes: Vec<u8>| Message::Binary(bytes.into());
    let depth = [32, 24, 0, 1, 0, 255, 0, 255, 0, 255, 16, 8, 0, 0, 0, 0];
    let init = [&[0, SIDE, 0, SIDE][..], &depth, &[0, 0, 0, 1, b'x']].concat();
    // One for each message of the viewer's handshake: its version, its choice, whether others may look.
    let mut introduction = vec![init, vec![0; 4], vec![1, 1]];
    let mut answered = false;
    let _ = socket.send(say(VERSION.to_vec())).await;
    while let Some(Ok(message)) = socket.recv().await {
        let Message::Binary(bytes) = message else {
            continue;
        };
        if let Some(next) = introduction.pop() {
            let _ = socket.send(say(next)).await;
            continue;
        }
        // Wishes for a format and for encodings may come before it, in one piece.
        let request = bytes.len().checked_sub(10).map(|at| bytes[at..].to_vec());
        let Some(request) = request.filter(|request| request[0] == 3) else {
            continue;
        };
        asked.lock().unwrap().push((number, request));
        if !answered {
            let _ = socket.send(say(update(number as u8))).await;
        }
        answered = true;
    }
}

/// Of two viewers one got no picture any more after a migration, though its connection was open.
#[test]
fn a_screen_that_has_lost_sight_of_its_viewer_is_opened_again() {
    let asked = Asked::default();
    let opened = Arc::new(AtomicUsize::new(0));
    let screen = {
        let asked = asked.clone();
        move |upgrade: WebSocketUpgrade| {
            let number = opened.fetch_add(1, Ordering::Relaxed) + 1;
            let asked = asked.clone();
            async move { upgrade.on_upgrade(move |socket| serve(socket, number, asked)) }
        }
    };
    let fake = Fake::with(Router::new().route("/v1/vms/web/screen", get(screen)));
    let mut program = spawn(&fake, &["vm", "screen", "web"]);
    let mut address = String::new();
    BufReader::new(program.stdout.as_mut().unwrap())
        .read_line(&mut address)
        .unwrap();

    let mut viewer = TcpStream::connect(address.trim()).unwrap();
    viewer
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    let side = u16::from(SIDE).to_be_bytes();
    let request = |incremental| [&[3, incremental, 0, 0, 0, 0][..], &side, &side].concat();
    assert_eq!(take(&mut viewer, 12), VERSION);
    viewer.write_all(VERSION).unwrap();
    assert_eq!(take(&mut viewer, 2), [1, 1]);
    viewer.write_all(&[1]).unwrap();
    assert_eq!(take(&mut viewer, 4), [0; 4]);
    viewer.write_all(&[1]).unwrap();
    take(&mut viewer, 4 + 16 + 4 + 1);
    viewer.write_all(&request(0)).unwrap();
    let picture = update(1).len();
    assert_eq!(take(&mut viewer, picture), update(1));
    viewer.write_all(&request(1)).unwrap();
    // The viewer's own connection has stayed; what it sees is the second server's.
    assert_eq!(take(&mut viewer, picture), update(2));
    let corner = [3, 0, 0, 0, 0, 0, 0, 1, 0, 1].to_vec();
    let asked = asked.lock().unwrap().clone();
    let expected = [
        (1, request(0)),
        (1, request(1)),
        (1, corner),
        (2, request(0)),
    ];
    assert_eq!(asked, expected);
    drop(viewer);
    interrupt(&program);
    assert!(program.wait().unwrap().success());
    let mut said = String::new();
    let mut stderr = program.stderr.take().unwrap();
    stderr.read_to_string(&mut said).unwrap();
    assert!(said.contains("the screen of web did not answer"), "{said}");
}

fn take(viewer: &mut TcpStream, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    viewer.read_exact(&mut bytes).unwrap();
    bytes
}
