//! Messages are found whole however they come, wishes are repeated, and foreign bytes do no harm.

use fleetward_rfb::*;
use proptest::prelude::*;

/// An update with a rectangle of 20 by 18 pixels in each encoding that carries data.
fn update() -> Vec<u8> {
    let (width, height) = (20_u16, 18_u16);
    let mut rectangles: Vec<(i32, Vec<u8>)> = vec![
        (0, vec![7; 20 * 18 * 4]),
        (1, vec![0, 1, 0, 2]),
        (-239, vec![1; 20 * 18 * 4 + 3 * 18]),
        (-308, [&[2, 0, 0, 0][..], &[0; 32]].concat()),
        (-307, b"\0\0\0\x03vm1".to_vec()),
        (-261, vec![1]),
        (-257, vec![]),
        // Tight: one colour; JPEG; compressed; two colours with a filter; nothing but a short row
        (7, vec![0x80, 1, 2, 3]),
        (7, [&[0x90, 3][..], b"jpg"].concat()),
        (7, [&[0x00, 0x82, 0x01][..], &[9; 130]].concat()),
        (
            7,
            [&[0x50, 1, 1, 1, 2, 3, 4, 5, 6, 2][..], &[9; 2]].concat(),
        ),
    ];
    // Hextile: four tiles of 16x16, 4x16, 16x2 and 4x2
    let mut tiles = vec![1];
    tiles.extend([5; 16 * 16 * 4]);
    tiles.extend([2, 0, 0, 0, 0]);
    tiles.extend([8 | 16, 2, 1, 1, 1, 1, 0, 0, 2, 2, 2, 2, 0, 0]);
    tiles.extend([4 | 8, 9, 9, 9, 9, 1, 0, 0]);
    rectangles.push((5, tiles));
    let mut bytes = vec![0, 0];
    bytes.extend((rectangles.len() as u16).to_be_bytes());
    for (encoding, data) in rectangles {
        bytes.extend([0; 4]);
        bytes.extend(width.to_be_bytes());
        bytes.extend(height.to_be_bytes());
        bytes.extend(encoding.to_be_bytes());
        bytes.extend(data);
    }
    bytes
}

fn init() -> Init {
    Init {
        width: 20,
        height: 18,
        format: PixelFormat::BGRX,
        name: b"QEMU (web)".to_vec(),
    }
}

fn everything_a_server_says() -> Vec<Vec<u8>> {
    vec![
        update(),
        vec![2],
        [&[3, 0, 0, 0, 0, 0, 0, 4][..], b"text"].concat(),
        [&[1, 0, 0, 0, 0, 2][..], &[0; 12]].concat(),
        update(),
    ]
}

#[test]
fn messages_of_a_server_come_whole_in_whatever_pieces_they_are_sent() {
    let said = everything_a_server_says();
    for size in [1, 3, 100, 1 << 20] {
        let mut messages = ServerMessages::new(PixelFormat::BGRX);
        let mut found = Vec::new();
        for piece in said.concat().chunks(size) {
            messages.push(piece);
            while let Some(message) = messages.take().expect("readable") {
                found.push(message.bytes);
            }
        }
        assert_eq!(found, said);
    }
}

#[test]
fn the_first_data_of_tight_after_a_change_of_servers_begins_anew() {
    let mut messages = ServerMessages::new(PixelFormat::BGRX);
    messages.push(&update());
    let mut message = messages.take().expect("readable").expect("whole");
    assert_eq!(message.size, Some((20, 18)));
    assert!(message.picture);
    let before = message.bytes.clone();
    assert!(message.restart_tight());
    let changed: Vec<(u8, u8)> = before
        .into_iter()
        .zip(message.bytes)
        .filter(|(before, after)| before != after)
        .collect();
    assert_eq!(changed, [(0x80, 0x8f)]);
}

#[test]
fn what_a_viewer_wished_for_is_asked_for_again() {
    let mut wishes = Wishes::of(&init());
    let offered = [7, 16, 5, 6, -239, -223, -224, 0, -27, -312].map(Encoding);
    let mut messages = ViewerMessages::default();
    messages.push(&ViewerMessage::SetEncodings(offered.to_vec()).write());
    let mut format = PixelFormat::BGRX.bytes();
    format[0] = 16;
    let format = PixelFormat::read(format).expect("there is");
    messages.push(&ViewerMessage::SetPixelFormat(format).write());
    while let Some(message) = messages.take().expect("readable") {
        wishes.note(&message);
    }
    let passing = [7, 5, -239, -223, 0, -27].map(Encoding);
    let wanted = [
        ViewerMessage::SetPixelFormat(format).write(),
        ViewerMessage::SetEncodings(passing.to_vec()).write(),
        vec![3, 0, 0, 0, 0, 0, 0, 20, 0, 18],
    ];
    assert_eq!(wishes.again(&init()), wanted.concat());
}

#[test]
fn another_size_is_told_to_a_viewer_that_can_take_it() {
    let larger = Init {
        width: 40,
        ..init()
    };
    let mut wishes = Wishes::of(&init());
    assert_eq!(wishes.resized(&init()), Ok(Vec::new()));
    assert!(wishes.resized(&larger).is_err());
    for encoding in [Encoding::DESKTOP_SIZE, Encoding::EXTENDED_DESKTOP_SIZE] {
        wishes.note(&ViewerMessage::SetEncodings(vec![encoding]));
        let mut messages = ServerMessages::new(PixelFormat::BGRX);
        messages.push(&wishes.resized(&larger).expect("it can"));
        let message = messages.take().expect("readable").expect("whole");
        assert_eq!((message.size, message.picture), (Some((40, 18)), false));
    }
}

#[test]
fn messages_of_a_viewer_pass_unchanged() {
    let said = [
        vec![3, 1, 0, 0, 0, 0, 0, 20, 0, 18],
        vec![4, 1, 0, 0, 0, 0, 0, 97],
        vec![5, 1, 0, 3, 0, 4],
        [&[6, 0, 0, 0, 0, 0, 0, 2][..], b"hi"].concat(),
        [&[255, 0, 0, 1][..], &[0; 8]].concat(),
        [&[251, 0, 0, 40, 0, 18, 1, 0][..], &[0; 16]].concat(),
    ];
    let mut messages = ViewerMessages::default();
    messages.push(&said.concat());
    for wanted in said {
        let found = messages.take().expect("readable").expect("whole");
        assert_eq!(found, ViewerMessage::Other(wanted));
    }
    assert_eq!(messages.take(), Ok(None));
}

#[test]
fn a_length_that_no_message_has_is_refused_before_memory_is_taken() {
    let mut server = ServerMessages::new(PixelFormat::BGRX);
    server.push(&[3, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    assert_eq!(server.take(), Err(Unreadable::TooLong));
    let mut server = ServerMessages::new(PixelFormat::BGRX);
    let rectangle = [0, 0, 0, 1, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0];
    server.push(&rectangle);
    assert_eq!(server.take(), Err(Unreadable::TooLong));
    let mut viewer = ViewerMessages::default();
    viewer.push(&[6, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff]);
    assert_eq!(viewer.take(), Err(Unreadable::TooLong));
}

#[test]
fn versions_are_told_apart() {
    let read = |text: &[u8; 12]| Version::read(*text);
    assert_eq!(read(b"RFB 003.003\n"), Ok(Version::V3_3));
    assert_eq!(read(b"RFB 003.007\n"), Ok(Version::V3_7));
    assert_eq!(read(&VERSION), Ok(Version::V3_8));
    assert_eq!(read(b"RFB 003.889\n"), Ok(Version::V3_8));
    assert_eq!(read(b"RFB 002.001\n"), Err(Unreadable::NoRfb));
    assert_eq!(read(b"SSH-2.0-x\r\n\0"), Err(Unreadable::NoRfb));
}

#[test]
fn a_server_introduces_itself_in_pieces() {
    let bytes = init().write();
    for length in 0..bytes.len() {
        assert_eq!(Init::read(&bytes[..length]), Ok(None));
    }
    assert_eq!(Init::read(&bytes), Ok(Some((init(), bytes.len()))));
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let mut server = ServerMessages::new(PixelFormat::BGRX);
        server.push(&bytes);
        while let Ok(Some(mut message)) = server.take() {
            message.restart_tight();
        }
        let mut viewer = ViewerMessages::default();
        viewer.push(&bytes);
        while let Ok(Some(message)) = viewer.take() {
            message.write();
        }
        let _ = Init::read(&bytes);
    }

    #[test]
    fn mutants_of_a_picture_never_panic_and_end_where_they_say(at in 0_usize..4000, byte in any::<u8>()) {
        let mut bytes = everything_a_server_says().concat();
        let at = at % bytes.len();
        bytes[at] = byte;
        let mut server = ServerMessages::new(PixelFormat::BGRX);
        server.push(&bytes);
        let mut found = Vec::new();
        while let Ok(Some(message)) = server.take() {
            found.extend(message.bytes);
        }
        prop_assert!(bytes.starts_with(&found));
    }
}
