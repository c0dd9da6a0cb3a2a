//! How tables that should be the same find out that they are not, and heal.
//!
//! Owns only tests. Look next at `living.rs`.

use super::*;

#[test]
fn a_digest_heals_what_was_lost_or_spoiled() {
    let mut net = Net::new(2);
    net.join(0, 1);
    let id = net.add(0, content("one"));
    net.add(0, content("two"));
    net.pass(BEAT);
    net.tables[1].remove(id);
    assert_eq!(net.roles(1), ["two"]);
    net.pass(Duration::from_secs(12));
    net.everywhere(&["one", "two"]);
    assert_eq!(net.tables[0].refusals.takeovers, 1, "a table that differs looks like somebody else's word");
}

#[test]
fn what_both_sides_know_alike_is_not_named_line_by_line() {
    let mut net = Net::new(4);
    for n in 1..4 {
        net.join(n - 1, n);
    }
    for n in 0..4 {
        net.add(n, content("one"));
    }
    net.add(2, persistent("kept"));
    net.pass(BEAT * 2);
    let before = net.digests;
    for _ in 0..20 {
        let id = net.add(1, content("news"));
        net.pass(Duration::from_secs(6));
        net.tables[1].free(id, net.now).unwrap();
        net.pass(Duration::from_secs(7));
    }
    assert_eq!(net.digests, before, "in more than four minutes");
    // After five it is, whatever the summaries say: twice for each of three links.
    net.pass(Duration::from_secs(120));
    assert_eq!(net.digests, before + 6);
    // Who has gone for whatever reason is known alike too.
    net.paused[3] = true;
    net.tables[0].leave(net.now);
    net.pass(Duration::from_secs(60));
    let before = net.digests;
    net.pass(Duration::from_secs(100));
    assert_eq!(net.digests, before);
}

#[test]
fn a_difference_that_is_under_way_is_waited_for_but_not_for_ever() {
    let mut net = Net::new(2);
    net.join(0, 1);
    net.add(0, content("one"));
    let ((_, link), (_, other)) = net.links[0];
    let summary = |net: &Net, heard| bytes_of(&Frame::Summary { sum: net.tables[1].summary(), heard });
    let heard = net.tables[1].links[&other].heard_news;
    net.tables[0].add(content("two"), net.now).unwrap();
    for round in 1..=3 {
        net.now += BEAT;
        let said = summary(&net, heard);
        net.tables[0].receive(link, said, net.now).unwrap();
        let mut digests = 0;
        while let Some(frame) = net.tables[0].next_frame(link, net.now) {
            // They get lost.
            digests += usize::from(matches!(frame, Frame::Pulse { full: true, .. }));
        }
        assert_eq!(digests, usize::from(round == 3), "with summary {round} that did not contain the news");
    }
    // It has heard all, it says, and yet differs.
    net.now += BEAT;
    let said = summary(&net, heard + 1);
    net.tables[0].receive(link, said, net.now).unwrap();
    assert!(matches!(net.tables[0].next_frame(link, net.now), Some(Frame::Pulse { full: true, .. })));
}

#[test]
fn every_difference_that_can_be_is_healed_by_comparing() {
    type Spoil = fn(&mut Table);
    // What has gone with nothing left is remembered so for a minute, whatever others say.
    let (soon, later) = (BEAT * 7, BEAT * 40);
    let spoils: [(&str, Duration, Spoil); 6] = [
        ("a record is lost", soon, |table| table.remove(RecordId { owner: 1, number: 1 })),
        ("an owner is lost", soon, |table| {
            table.remove(RecordId { owner: 1, number: 1 });
            table.forget_owner(1);
        }),
        ("a persistent record is lost", later, |table| table.remove(RecordId { owner: 3, number: 1 })),
        ("news are lost", soon, |table| {
            table.owners.get_mut(&1).unwrap().version -= 1;
            table.links.values_mut().for_each(|link| link.forget(1));
        }),
        ("another content", soon, |table| {
            let content = Arc::new(content("spoiled"));
            let body = content.encode().unwrap();
            table.insert(RecordId { owner: 1, number: 1 }, &content, 1, body);
        }),
        ("what is not there", soon, |table| {
            let content = Arc::new(content("invented"));
            let body = content.encode().unwrap();
            table.insert(RecordId { owner: 1, number: 9 }, &content, 1, body);
        }),
    ];
    for (what, heals, spoil) in spoils {
        for spoiled in [1, 3] {
            for lies in [false, true] {
                let mut net = Net::new(4);
                net.join(0, 1);
                net.join(1, 2);
                net.join(1, 3);
                net.add(0, content("one"));
                net.add(2, persistent("kept"));
                net.pass(BEAT);
                net.cut(1, 2);
                net.paused[2] = true;
                net.pass(LIFE * 2);
                net.lies = lies;
                spoil(&mut net.tables[spoiled]);
                // Who lies that nothing differs keeps that up until all is compared at last.
                net.pass(if lies { Duration::from_secs(400) } else { heals });
                for table in [0, 1, 3] {
                    assert_eq!(net.roles(table), ["kept", "one"], "{what} in {spoiled}, in the table of {table}");
                    assert_eq!(net.tables[table].summary(), net.tables[0].summary(), "{what}");
                }
            }
        }
    }
}

#[test]
fn who_lies_in_its_summaries_costs_no_more_than_a_comparison_per_heartbeat() {
    let mut net = Net::new(3);
    net.join(0, 1);
    net.join(1, 2);
    net.add(0, content("zero"));
    net.add(2, content("two"));
    net.pass(BEAT);
    let (digests, frames) = (net.digests, net.frames);
    for round in 0..600u64 {
        let heard = if round % 3 == 0 { 0 } else { u64::MAX };
        net.forge(0, 1, &Frame::Summary { sum: round, heard });
        if round % 5 == 0 {
            net.pass(BEAT / 4);
        }
    }
    // Each is answered by the honest other end of that link once, as if somebody did differ.
    let (seconds, beats) = (60, 30);
    let digests = net.digests - digests;
    assert!((1..=2 * beats + 2).contains(&digests), "{digests} comparisons in {seconds} s");
    assert!(net.frames - frames < 60 * 20, "{} frames", net.frames - frames);
    net.everywhere(&["two", "zero"]);
    for table in &net.tables {
        assert_eq!(table.refusals, Refusals::default());
    }
}

#[test]
fn a_freed_record_is_not_brought_back_through_one_who_never_had_it() {
    // The first is the owner, the second frees, the third comes later, the fourth was away.
    for others in [false, true] {
        let mut net = Net::new(4);
        net.join(0, 1);
        net.join(0, 3);
        let id = net.add(0, persistent("kept"));
        if others {
            net.add(0, persistent("other"));
        }
        net.pass(BEAT);
        net.cut(0, 3);
        net.cut(0, 1);
        net.paused[0] = true;
        net.pass(LIFE * 2);
        net.tables[1].free(id, net.now).unwrap();
        net.join(1, 2);
        net.pass(BEAT);
        net.join(2, 3);
        net.pass(BEAT * 40);
        let expected: &[&str] = if others { &["other"] } else { &[] };
        for table in [1, 2, 3] {
            assert_eq!(
                net.roles(table),
                expected,
                "in the table of {table}, which knows of others of that owner: {others}"
            );
        }
    }
}

#[test]
fn two_truths_about_one_that_is_gone_heal() {
    let mut net = Net::new(3);
    net.join(0, 1);
    net.join(1, 2);
    net.add(0, persistent("one"));
    net.add(0, persistent("two"));
    net.pass(BEAT);
    net.cut(0, 1);
    net.paused[0] = true;
    net.pass(LIFE * 3);
    net.tables[2].remove(RecordId { owner: 1, number: 1 });
    net.pass(BEAT * 7);
    assert_eq!(net.roles(1), net.roles(2));
    // Nor is it compared for ever.
    let before = net.digests;
    net.pass(Duration::from_secs(100));
    assert_eq!(net.digests, before);
}
