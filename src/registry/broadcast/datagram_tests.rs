//! Every byte string is a datagram or a refusal, and what is written can be read.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

use proptest::prelude::*;

use super::super::seal::Seal;
use super::*;
use crate::registry::settings::Hidden;

pub(in super::super) fn usual() -> Datagram {
    let instance = Arc::new(Instance {
        service: "calculator".to_owned(),
        id: "calculator-host1-40123-00c0ffee00c0ffee".to_owned(),
        incarnation: 0x00c0_ffee_00c0_ffee,
        address: Some("10.1.20.30".parse().unwrap()),
        port: 40123,
        weight: 1,
        zone: Some("eu-west-1a".to_owned()),
        tags: vec!["blue".to_owned()],
        meta: BTreeMap::from([("version".to_owned(), "1.20.3".to_owned())]),
        status: NodeStatus::now(NodeState::Doing, Some("reloading its tables")),
    });
    let sender = Sender { process: u64::MAX, registry: 1 };
    Datagram {
        kind: Kind::Announce,
        period: Duration::from_secs(2),
        sender,
        sequence: 1 << 20,
        replica: false,
        instance,
    }
}

pub(in super::super) fn said(datagram: &mut Datagram) -> &mut Instance {
    Arc::make_mut(&mut datagram.instance)
}

/// Reads it as the first thing that was ever heard.
pub(in super::super) fn decode(bytes: &[u8]) -> Result<Datagram, Refusal> {
    Datagram::decode(bytes, &mut Parsed::default())
}

#[test]
fn a_usual_service_takes_at_most_300_bytes_also_sealed() {
    let body = usual().encode().unwrap();
    let sealed = Seal::new(Some(&Hidden([1; 32]))).unwrap().close(&body).unwrap();
    println!("a usual announcement: {} bytes plain, {} sealed", body.len() + Seal::overhead(false), sealed.len());
    assert!(sealed.len() <= 300, "{} bytes", sealed.len());
}

#[test]
fn the_bytes_of_a_datagram_stay_as_they_are() {
    let mut datagram = usual();
    said(&mut datagram).status.since = Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000));
    let hex: String = datagram.encode().unwrap().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(
        hex,
        "9500cd07d0cfffffffffffffffff01ce001000009dc2aa63616c63756c61746f72d92763616c63756c61746f722d686f7374312d343031\
         32332d30306330666665653030633066666565cf00c0ffee00c0ffeec4040a01141ecd9cbb01aa65752d776573742d316191a4626c756581\
         a776657273696f6ea6312e32302e3302b472656c6f6164696e6720697473207461626c6573ce6553f100"
    );
}

#[test]
fn what_no_honest_sender_sends_is_malformed() {
    let refused = |what: &str, change: &dyn Fn(&mut Datagram)| {
        let mut datagram = usual();
        change(&mut datagram);
        let outcome = decode(&datagram.encode().unwrap());
        assert_eq!(outcome, Err(Refusal::Malformed), "{what}");
    };
    refused("a period too short", &|d| d.period = Duration::from_millis(99));
    refused("a period that makes immortal", &|d| d.period = Duration::from_millis(60_001));
    refused("the longest period of all", &|d| d.period = Duration::MAX);
    refused("no service", &|d| said(d).service.clear());
    refused("a service with a slash", &|d| said(d).service = "a/b".to_owned());
    refused("a long id", &|d| said(d).id = "x".repeat(129));
    refused("an id of several lines", &|d| said(d).id = "a\nb".to_owned());
    refused("port 0", &|d| said(d).port = 0);
    refused("weight 0", &|d| said(d).weight = 0);
    refused("a multicast address", &|d| said(d).address = Some([239, 1, 2, 3].into()));
    refused("everybody's address", &|d| said(d).address = Some([255; 4].into()));
    let mut long = usual();
    said(&mut long).status.reason = Some("x".repeat(MAX_REASON + 1));
    let sent = long.encode().unwrap();
    let read = decode(&sent).unwrap();
    assert_eq!(read.instance.status.reason, Some("x".repeat(MAX_REASON)), "a long reason is cut where it is sent");
    let at = sent.windows(3).position(|part| part == [0xd9, 64, b'x']).unwrap();
    let longer = [&sent[..at], &[0xd9, 65, b'x'], &sent[at + 2..]].concat();
    assert_eq!(decode(&longer), Err(Refusal::Malformed), "and refused where it comes in");
    let good = usual().encode().unwrap();
    assert!(decode(&good).is_ok());
    let more = [&good[..], &[0xc0]].concat();
    assert_eq!(decode(&more), Err(Refusal::Malformed), "something follows");
}

#[test]
fn a_clock_that_is_off_by_an_hour_or_an_age_is_only_shown() {
    for since in [None, Some(SystemTime::UNIX_EPOCH), SystemTime::now().checked_add(Duration::from_secs(3600))] {
        let mut datagram = usual();
        said(&mut datagram).status.since = since;
        assert!(decode(&datagram.encode().unwrap()).is_ok(), "{since:?}");
    }
    let mut body: Vec<u8> = usual().encode().unwrap();
    let at = body.len() - 4;
    body.truncate(at - 1);
    body.extend([0xcf, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
    assert_eq!(decode(&body).unwrap().instance.status.since, None, "later than a clock can show");
}

#[test]
fn the_longest_form_of_an_instance_is_known_beforehand() {
    let mut datagram = usual();
    let longest = longest(&datagram.instance, false).unwrap();
    datagram.sequence = u64::MAX;
    datagram.period = *PERIODS.end();
    datagram.sender.registry = u32::MAX;
    for state in STATES {
        said(&mut datagram).status = NodeStatus::now(state, Some(&"é".repeat(MAX_REASON)));
        let len = datagram.encode().unwrap().len();
        assert!(len <= longest, "{len} of {longest} bytes");
    }
}

fn some_datagram() -> impl Strategy<Value = Datagram> {
    let names = ("[a-zA-Z0-9._@+:-]{1,128}", "[^\\p{Cc}]{1,32}", proptest::option::of(".{0,20}"));
    let lists = (
        proptest::collection::vec(".{0,10}", 0..4),
        proptest::collection::btree_map(".{0,8}", ".{0,16}", 0..4),
        proptest::option::of(".{1,16}"),
    );
    let numbers = (any::<u64>(), any::<u32>(), any::<u64>(), any::<u64>(), 100..=60_000_u64);
    let place = (any::<Option<[u8; 4]>>(), 1..=u16::MAX, 1..=u16::MAX, 0..STATES.len(), any::<Option<u32>>());
    (names, lists, numbers, place, any::<[bool; 2]>()).prop_map(|(names, lists, numbers, place, [leaves, replica])| {
        // A reason as a status has it, without control characters and spaces at its ends.
        let reason = lists.2.and_then(|reason: String| NodeStatus::now(STATES[place.3], Some(&reason)).reason);
        let status = NodeStatus {
            state: STATES[place.3],
            reason,
            since: place.4.map(|since| SystemTime::UNIX_EPOCH + Duration::from_secs(since.into())),
        };
        let usable = |ip: &IpAddr| !ip.is_multicast() && !ip.is_unspecified() && *ip != IpAddr::from([255; 4]);
        let instance = Instance {
            service: names.0,
            id: names.1,
            incarnation: numbers.3,
            address: place.0.map(IpAddr::from).filter(usable),
            port: place.1,
            weight: place.2,
            zone: names.2,
            tags: lists.0,
            meta: lists.1,
            status,
        };
        Datagram {
            kind: if leaves { Kind::Leave } else { Kind::Announce },
            period: Duration::from_millis(numbers.4),
            sender: Sender { process: numbers.0, registry: numbers.1 },
            sequence: numbers.2,
            replica,
            instance: Arc::new(instance),
        }
    })
}

proptest! {
    #[test]
    fn any_bytes_are_a_datagram_or_a_refusal(bytes in proptest::collection::vec(any::<u8>(), 0..MAX_DATAGRAM + 100)) {
        let _ = decode(&bytes);
        for key in [None, Some(Hidden([3; 32]))] {
            let seal = Seal::new(key.as_ref()).unwrap();
            if let Ok(body) = seal.open(&bytes) {
                prop_assert!(key.is_none(), "bytes at random were taken for sealed ones");
                let _ = decode(&body);
            }
        }
        // The same behind a proper header.
        let framed = [b"pm\x02\x00", &bytes[..]].concat();
        if let Ok(body) = Seal::new(None).unwrap().open(&framed) {
            let _ = decode(&body);
        }
    }

    #[test]
    fn a_datagram_with_changed_bytes_is_a_datagram_or_a_refusal(
        datagram in some_datagram(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut body = datagram.encode().unwrap();
        for (at, byte) in changes {
            let at = at.index(body.len());
            body[at] = byte;
        }
        if let Ok(read) = decode(&body) {
            prop_assert!(PERIODS.contains(&read.period));
            prop_assert!(read.instance.check().is_ok());
        }
        let _ = decode(&body[..cut.index(body.len())]);
    }

    #[test]
    fn what_is_written_can_be_read(datagram in some_datagram()) {
        prop_assert_eq!(decode(&datagram.encode().unwrap()).unwrap(), datagram);
    }
}
