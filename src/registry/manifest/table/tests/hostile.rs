//! Members that lie, babble, or want too much.
//!
//! Owns only tests. Look next at `living.rs`.

use super::*;

#[test]
fn only_the_owner_changes_or_frees_a_record() {
    let mut net = Net::new(3);
    net.join(0, 1);
    net.join(1, 2);
    let id = net.add(0, content("mine"));
    net.pass(BEAT);
    let (error, shown) = (net.tables[2].free(id, net.now).unwrap_err(), id.to_string());
    assert!(error.to_string().contains("another member") && error.to_string().contains(&shown), "{error}");

    // The middle one knows the secret and lies, in both directions.
    let body = content("stolen").encode().unwrap();
    let stolen = |incarnation, version| {
        Frame::Change(change(1, incarnation, version, 1 << 40, vec![Put(1, version, body.clone())]))
    };
    for (to, frame) in [(2, stolen(1, 50)), (0, stolen(1, 50)), (2, stolen(9, 1)), (0, stolen(90, 1))] {
        net.forge(1, to, &frame);
        net.pass(BEAT * 6);
        net.everywhere(&["mine"]);
    }
    net.forge(1, 0, &Frame::Change(Change { freed: vec![1], from: 1, ..change(1, 9, 99, 1, vec![]) }));
    net.forge(1, 0, &Frame::Change(Change { gone: true, ..change(1, 1 << 20, 99, 1 << 50, vec![]) }));
    net.forge(1, 2, &Frame::Freed(vec![(id.owner, id.number)]));
    net.forge(1, 2, &Frame::Pulse { full: false, beats: Arc::new(vec![Beat(1, 1, u64::MAX, 7, 7)]) });
    net.forge(1, 0, &Frame::Pulse { full: false, beats: Arc::new(vec![Beat(1, 1, u64::MAX, 7, 7)]) });
    net.pass(BEAT * 6);
    net.everywhere(&["mine"]);
    assert!(net.tables[0].refusals.takeovers >= 4, "{:?}", net.tables[0].refusals);
    assert_eq!(net.tables[2].refusals.takeovers, 1, "the free of a record that is its owner's alone");
}

#[test]
fn a_member_whose_incarnations_are_used_up_takes_another_name() {
    let mut net = Net::new(3);
    net.join(0, 1);
    net.join(1, 2);
    let id = net.add(0, content("mine"));
    net.forge(1, 0, &Frame::Change(change(1, u64::MAX, u64::MAX, u64::MAX, vec![])));
    net.pass(LIFE * 2);
    net.everywhere(&["mine"]);
    assert_ne!(net.tables[0].me, 1);
    net.tables[0].free(id, net.now).unwrap();
    net.settle();
    net.everywhere(&[]);
}

#[test]
fn limits_hold_at_their_edge_and_one_past_it() {
    let mut net = Net::new(2);
    net.join(0, 1);
    let now = net.now;
    for _ in 0..MAX_RECORDS {
        net.tables[0].add(content("x"), now).unwrap();
    }
    net.settle();
    assert_eq!(net.roles(1).len(), MAX_RECORDS);
    let error = net.tables[0].add(content("x"), now).unwrap_err();
    assert!(error.to_string().contains("1024 records"), "{error}");
    // One at the limit may still be changed.
    net.tables[0].set_status(1, &NodeStatus::only(crate::NodeState::Stopped), now);
    net.settle();
    let stopped = net.tables[1].find(|record| record.details.status.state == crate::NodeState::Stopped);
    assert_eq!((stopped.len(), net.tables[1].refusals), (1, Refusals::default()));

    let with = |len| Content::of_details("x", Details { data: vec![7; len], ..Details::default() });
    let mut big = Table::new(9, BEAT, LIFE, now);
    big.add(with(MAX_DATA), now).unwrap();
    assert!(big.add(with(MAX_DATA + 1), now).is_err());
    let held = (1..).find(|_| big.add(with(MAX_DATA), now).is_err()).unwrap();
    assert!((MAX_OWNER_BYTES / (MAX_DATA + 200)..MAX_OWNER_BYTES / MAX_DATA).contains(&held), "{held}");
}

#[test]
fn ten_thousand_records_of_one_peer_are_refused_and_the_rest_keeps_working() {
    let mut net = Net::new(3);
    net.join(0, 1);
    net.join(1, 2);
    net.add(0, content("good"));
    let body = Content::of_details("x", Details::default()).encode().unwrap();
    let of = |count: u64| (1..=count).map(|n| Put(n, n, body.clone())).collect();
    net.forge(0, 1, &Frame::Change(change(50, 1, MAX_RECORDS as u64 + 1, 1, of(MAX_RECORDS as u64 + 1))));
    assert_eq!(net.tables[1].refusals.records, 1);
    // As differences, one after another.
    for from in 0..10_000u64 {
        let put = vec![Put(from + 1, from + 1, body.clone())];
        let frame = Frame::Change(Change { from, ..change(51, 1, from + 1, 1, put) });
        let ((_, _), (_, link)) = net.links[0];
        if net.tables[1].receive(link, bytes_of(&frame), net.now).is_err() {
            break;
        }
    }
    net.settle();
    let of_peer = net.tables[2].find(|record| record.id.owner == 51).len();
    assert_eq!(of_peer, MAX_RECORDS, "what was acceptable was passed on");
    let refused = net.tables[1].refusals.records;
    assert!(refused > 1, "what was not is counted: {refused}");
    net.add(2, content("after"));
    assert_eq!(net.tables[0].find(|record| record.service == "after").len(), 1);
}

#[test]
fn members_past_the_limit_are_refused_and_those_that_have_left_make_room() {
    let mut net = Net::new(3);
    net.join(0, 1);
    net.join(2, 1);
    let body = content("x").encode().unwrap();
    let invent = |net: &mut Net, by, owner| {
        net.forge(by, 1, &Frame::Change(change(owner, 1, 1, 1, vec![Put(1, 1, body.clone())])));
        net.tables[1].find(|record| record.id.owner == owner).len()
    };
    // Its own end of the link is one of those that it brings.
    let brought = 100 + merge::MAX_BROUGHT as u64 - 1;
    for owner in 100..brought {
        assert_eq!(invent(&mut net, 0, owner), 1);
    }
    assert_eq!(invent(&mut net, 0, 99), 0, "one link may not fill the table");
    assert_eq!(net.tables[1].refusals.owners, 1);
    let others = MAX_OWNERS - net.tables[1].owners.len();
    for owner in brought..brought + others as u64 {
        assert_eq!(invent(&mut net, 2, owner), 1, "another link still may bring members");
    }
    assert_eq!(net.tables[1].owners.len(), MAX_OWNERS);
    assert_eq!(invent(&mut net, 2, 99), 0);
    assert_eq!(net.tables[1].refusals.owners, 2);
    let leaves = Change { gone: true, ..change(brought, 1, 2, 2, vec![]) };
    net.forge(2, 1, &Frame::Change(leaves));
    assert_eq!(invent(&mut net, 2, 99), 1);
}

#[test]
fn what_a_member_left_behind_can_be_rewritten_by_others_until_somebody_frees_it() {
    let mut net = Net::new(3);
    net.join(0, 1);
    net.join(1, 2);
    let id = net.add(0, persistent("kept"));
    net.pass(BEAT);
    net.tables[0].leave(net.now);
    net.settle();
    net.cut(0, 1);
    let body = persistent("rewritten").encode().unwrap();
    for (version, gone) in [(8, true), (9, false)] {
        let put = vec![Put(id.number, version, body.clone())];
        net.forge(1, 2, &Frame::Change(Change { gone, ..change(1, 2, version, 9, put) }));
        net.pass(LIFE * 3);
        assert_eq!((net.roles(1), net.roles(2)), (vec!["rewritten".to_owned()], vec!["rewritten".to_owned()]));
    }
    net.tables[1].free(id, net.now).unwrap();
    net.pass(BEAT * 12);
    assert_eq!((net.roles(1), net.roles(2)), (vec![], vec![]));
}

#[test]
fn whose_name_is_taken_elsewhere_takes_another_one_once_per_heartbeat() {
    let mut net = Net::new(2);
    net.join(0, 1);
    let id = net.add(1, content("one"));
    let (_, (_, link)) = net.links[0];
    let taken = || bytes_of(&Frame::Taken);
    assert!(net.tables[1].receive(link, taken(), net.now).is_err(), "the connection is of no more use");
    let second = net.tables[1].me;
    assert_ne!(second, id.owner);
    let _ = net.tables[1].receive(link, taken(), net.now);
    assert_eq!(net.tables[1].me, second);
    assert_eq!(net.tables[1].refusals.takeovers, 2);
}

#[test]
fn records_that_nobody_may_have_change_nothing() {
    let mut net = Net::new(2);
    net.join(0, 1);
    let mut bodies = vec![Bytes::from_static(b"\xc1"), Bytes::new(), Bytes::from(vec![0x91; 500])];
    let mut with = |change: &dyn Fn(&mut Content)| {
        let mut content = content("x");
        change(&mut content);
        let mut out = BytesMut::new();
        crate::message::encode(&content, &mut out).unwrap();
        bodies.push(out.freeze());
    };
    with(&|content| content.service = "a/b".to_owned());
    with(&|content| content.service = "x".repeat(129));
    with(&|content| content.instance = "x".repeat(129));
    with(&|content| content.weight = 0);
    with(&|content| content.address = Some("0.0.0.0".parse().unwrap()));
    with(&|content| content.address = Some("255.255.255.255".parse().unwrap()));
    with(&|content| content.address = Some("224.0.0.1".parse().unwrap()));
    // Where the machines of clouds get their credentials.
    with(&|content| content.address = Some("169.254.169.254".parse().unwrap()));
    with(&|content| content.address = Some("::ffff:169.254.169.254".parse().unwrap()));
    with(&|content| content.address = Some("fe80::1".parse().unwrap()));
    let good = content("good").encode().unwrap();
    for (n, body) in bodies.iter().enumerate() {
        let put = vec![Put(1, 1, good.clone()), Put(2, 2, body.clone())];
        net.forge(0, 1, &Frame::Change(change(100 + n as u64, 1, 2, 1, put)));
    }
    assert_eq!(net.tables[1].refusals.records, bodies.len() as u64);
    assert_eq!(net.roles(1), [""; 0], "not even the good one beside");
    // Twice the same number, and one that is newer than itself.
    net.forge(0, 1, &Frame::Change(change(200, 1, 2, 1, vec![Put(1, 1, good.clone()), Put(1, 2, good.clone())])));
    net.forge(0, 1, &Frame::Change(change(201, 1, 2, 1, vec![Put(9, 1, good)])));
    assert_eq!(net.roles(1), [""; 0]);
}

#[test]
fn who_babbles_is_cut_off() {
    let mut net = Net::new(2);
    net.join(0, 1);
    let (_, (_, link)) = net.links[0];
    let table = &mut net.tables[1];
    let told = (0..1000).position(|_| table.receive(link, Bytes::from_static(&[77]), net.now).is_err());
    assert_eq!((told, table.refusals.unknown_frames), (Some(100), 101));
    assert!(table.receive(link, Bytes::from_static(&[3, 1]), net.now).is_err());
    assert_eq!(table.refusals.malformed_frames, 1);
}

#[test]
fn who_says_that_it_lacks_everything_is_told_all_four_times_per_heartbeat_and_no_more() {
    let lacks_all = Frame::Pulse { full: true, beats: Arc::default() };
    let is_stale = Frame::Change(change(2, 1, 0, 0, vec![]));
    for (what, asks) in [("names nobody", lacks_all), ("says what is long over", is_stale)] {
        let mut net = Net::new(2);
        net.join(0, 1);
        net.add(1, Content::of_details("one", Details { data: vec![7; MAX_DATA], ..Details::default() }));
        net.pass(BEAT * 2);
        let (_, (_, link)) = net.links[0];
        for heartbeat in 1..=2 {
            for time in 1..=6 {
                net.tables[1].receive(link, bytes_of(&asks), net.now).unwrap();
                let mut told = 0;
                while let Some(frame) = net.tables[1].next_frame(link, net.now) {
                    told += usize::from(matches!(frame, Frame::Change(change) if change.owner == 2));
                }
                assert_eq!(told, usize::from(time <= 4), "who {what} for time {time} of heartbeat {heartbeat}");
            }
            assert!(net.tables[1].refusals.repeats >= 2 * heartbeat, "{:?}", net.tables[1].refusals);
            net.now += BEAT;
        }
        // Honest members heal as before.
        net.tables[0].remove(RecordId { owner: 2, number: 1 });
        net.pass(BEAT * 8);
        net.everywhere(&["one"]);
    }
}

#[test]
fn a_second_process_under_the_name_of_one_that_is_connected_is_refused() {
    let mut table = Table::new(1, BEAT, LIFE, Instant::now());
    let now = Instant::now();
    table.link_up(2, 20, now).unwrap();
    table.link_up(2, 20, now).unwrap();
    assert_eq!(table.link_up(2, 21, now), Err(Unwanted::Taken));
    assert_eq!(table.link_up(1, 20, now), Err(Unwanted::Myself));
    for owner in 3..speak::MAX_LINKS as u64 + 1 {
        table.link_up(owner, 1, now).unwrap();
    }
    assert_eq!(table.link_up(9999, 1, now), Err(Unwanted::Full));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_frames_of_a_member_leave_a_table_that_works(
        frames in prop::collection::vec((1..9u8, prop::collection::vec(any::<u8>(), 0..64)), 0..40),
        changes in prop::collection::vec((1..4u64, 0..4u64, 0..6u64, 0..6u64, any::<bool>(), 0..8u64), 0..40),
    ) {
        let mut net = Net::new(3);
        net.join(0, 1);
        net.join(1, 2);
        net.add(2, content("good"));
        let (_, (_, link)) = net.links[0];
        for (kind, body) in frames {
            let _ = net.tables[1].receive(link, [&[kind], body.as_slice()].concat().into(), net.now);
        }
        let body = content("forged").encode().unwrap();
        for (owner, incarnation, from, more, gone, beat) in changes {
            let put = if gone { vec![] } else { vec![Put(from + more, from + more, body.clone())] };
            let put = if more == 0 { vec![] } else { put };
            let forged = Change { from, gone, freed: vec![from], ..change(owner, incarnation, from + more, beat, put) };
            let _ = net.tables[1].receive(link, bytes_of(&Frame::Change(forged)), net.now);
            net.settle();
        }
        net.pass(BEAT * 8);
        for table in [1, 2] {
            let good = net.tables[table].get(&Query::parse("good").unwrap());
            prop_assert_eq!(good.len(), 1);
            prop_assert_eq!(net.tables[table].bytes, net.tables[table].owners.values().map(|owner| owner.bytes).sum::<usize>());
        }
    }
}
