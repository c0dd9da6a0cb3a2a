//! Honest members: who learns what and when, who is removed, and what heals.
//!
//! Owns only tests. Look next at `comparing.rs` and `hostile.rs`.

use super::*;

#[test]
fn a_newcomer_learns_everything_and_changes_reach_everybody_along_a_chain() {
    let mut net = Net::new(4);
    let first = net.add(0, content("one@1.0.0"));
    for n in 1..4 {
        net.join(n - 1, n);
    }
    net.everywhere(&["one@1.0.0"]);
    net.add(3, content("two"));
    net.everywhere(&["one@1.0.0", "two"]);
    let stopped = NodeStatus::now(crate::NodeState::Stopped, Some("repair"));
    net.tables[0].set_status(first.number, &stopped, net.now);
    net.settle();
    let seen = net.tables[3].get(&Query::parse("one@^1").unwrap());
    assert_eq!(seen[0].details.status.to_string(), "stopped: repair");
    net.tables[0].free(first, net.now).unwrap();
    net.settle();
    net.everywhere(&["two"]);
}

#[test]
fn cycles_do_no_harm_and_nothing_is_said_back() {
    let mut net = Net::new(3);
    for (a, b) in [(0, 1), (1, 2), (2, 0)] {
        net.join(a, b);
    }
    let before = net.frames;
    net.add(0, content("one"));
    net.everywhere(&["one"]);
    assert!(net.frames - before <= 4, "one change cost {} frames on three links", net.frames - before);
}

#[test]
fn a_beat_late_by_one_removes_nobody_and_a_silent_member_is_removed_after_its_lifetime() {
    let mut net = Net::new(3);
    net.join(0, 1);
    net.join(1, 2);
    net.add(2, content("one"));
    net.pass(Duration::from_secs(60));
    net.everywhere(&["one"]);
    net.paused[2] = true;
    net.pass(LIFE - BEAT - BEAT / 4);
    assert_eq!(net.roles(0), ["one"]);
    net.pass(BEAT * 2);
    assert_eq!((net.roles(0), net.roles(1)), (vec![], vec![]));
    net.paused[2] = false;
    net.pass(BEAT);
    net.everywhere(&["one"]);
}

#[test]
fn an_observer_that_stood_still_removes_nobody() {
    for standing in [0, 1, 2] {
        let mut net = Net::seeking(3);
        net.join(0, 1);
        net.join(1, 2);
        for n in 0..3 {
            net.add(n, content(["zero", "one", "two"][n]));
        }
        net.pass(Duration::from_secs(20));
        net.paused[standing] = true;
        net.pass(Duration::from_secs(8));
        net.paused[standing] = false;
        // It looks at the time before it has read anything.
        net.tables[standing].tick(net.now);
        assert_eq!(net.roles(standing), ["one", "two", "zero"], "member {standing} doubted others first");
        assert_eq!(net.tables[standing].refusals.pauses, 1);
        net.pass(BEAT * 2);
        net.everywhere(&["one", "two", "zero"]);
    }
}

#[test]
fn a_relay_that_stood_still_costs_nobody_behind_it() {
    // 0 - 1 - 2 - 3 with another connection of 0, so that it is never cut off.
    for rooted in [true, false] {
        let mut net = if rooted { Net::new(5) } else { Net::seeking(5) };
        for (a, b) in [(0, 1), (1, 2), (2, 3), (0, 4)] {
            net.join(a, b);
        }
        let roles = ["r0", "r1", "r2", "r3", "r4"];
        roles.iter().enumerate().for_each(|(n, role)| assert_eq!(net.add(n, content(role)).number, 1));
        net.pass(Duration::from_secs(21));
        net.tables.iter_mut().for_each(|table| table.take_events().clear());
        net.paused[1] = true;
        net.pass(Duration::from_secs(8));
        net.paused[1] = false;
        net.pass(BEAT * 3);
        net.everywhere(&roles);
        for n in [0, 2, 3, 4] {
            let lost = net.tables[n].take_events().into_iter().filter_map(|event| match event {
                Event::Freed(record) => Some(record.role),
                _ => None,
            });
            // Only those who are told by others than the one that stood still can know that it does.
            assert!(lost.into_iter().all(|role| role == "r1"), "member {n} lost somebody who lives");
        }
    }
}

#[test]
fn who_is_cut_off_remembers_and_who_is_not_forgets() {
    let mut net = Net::seeking(3);
    net.tables[1].rooted = true;
    net.join(0, 1);
    net.join(1, 2);
    net.add(0, content("zero"));
    net.add(2, content("two"));
    net.pass(BEAT);
    net.cut(0, 1);
    assert_eq!(net.roles(0), ["two", "zero"], "nothing is removed for a lost connection");
    assert_eq!(tier(&mut net, 1, "zero"), Some(Tier::Doubtful), "but its other end is doubted");
    net.pass(LIFE * 3);
    assert!(!net.tables[0].is_connected(net.now));
    assert_eq!(net.roles(0), ["zero"], "the table has only what lives");
    assert_eq!(tier(&mut net, 0, "two"), Some(Tier::Unhealthy), "but readers keep what was known");
    assert_eq!((net.roles(1), net.roles(2)), (vec!["two".to_owned()], vec!["two".to_owned()]));
    net.join(0, 1);
    net.pass(BEAT);
    net.everywhere(&["two", "zero"]);
    assert_eq!(tier(&mut net, 0, "two"), Some(Tier::Healthy));
    assert_eq!(tier(&mut net, 1, "zero"), Some(Tier::Healthy));
}

#[test]
fn a_remembered_member_that_is_not_there_any_more_is_forgotten_with_the_next_connection() {
    let mut net = Net::seeking(3);
    net.join(0, 1);
    net.join(1, 2);
    net.add(2, content("two"));
    net.pass(BEAT);
    net.cut(0, 1);
    net.tables[2].leave(net.now);
    net.settle();
    net.pass(LIFE * 2);
    assert_eq!(tier(&mut net, 0, "two"), Some(Tier::Unhealthy));
    net.join(0, 1);
    net.pass(BEAT);
    assert_eq!(tier(&mut net, 0, "two"), None);
}

#[test]
fn two_halves_heal() {
    let mut net = Net::seeking(6);
    for (a, b) in [(0, 1), (1, 2), (3, 4), (4, 5), (2, 3)] {
        net.join(a, b);
    }
    let left = net.add(0, content("left"));
    net.add(5, content("right"));
    net.pass(BEAT * 2);
    net.cut(2, 3);
    net.pass(LIFE * 3);
    assert_eq!((net.roles(0), net.roles(5)), (vec!["left".to_owned()], vec!["right".to_owned()]));
    net.tables[0].free(left, net.now).unwrap();
    net.add(1, content("new-left"));
    net.add(4, content("new-right"));
    net.join(2, 3);
    net.pass(BEAT);
    net.everywhere(&["new-left", "new-right", "right"]);
}

#[test]
fn leaving_is_known_at_once_and_is_not_undone_by_one_who_missed_it() {
    let mut net = Net::new(4);
    net.join(0, 1);
    net.join(1, 2);
    net.join(0, 3);
    net.add(3, content("left"));
    net.pass(BEAT);
    net.cut(1, 2);
    net.tables[3].leave(net.now);
    net.settle();
    assert_eq!((net.roles(0), net.roles(1)), (vec![], vec![]));
    assert_eq!(net.roles(2), ["left"], "it has not heard of it");
    net.join(1, 2);
    net.pass(BEAT);
    net.everywhere(&[]);
}

#[test]
fn of_two_at_one_address_the_one_that_came_later_counts_also_for_a_newcomer() {
    // The process at an address dies, and the next one takes its place, whichever has the greater name.
    for (old, new) in [(1, 2), (2, 1)] {
        let mut net = Net::new(4);
        net.join(0, old);
        net.pass(BEAT);
        net.add(old, process(1));
        net.pass(BEAT);
        net.paused[old] = true;
        net.join(0, new);
        net.add(new, process(2));
        net.pass(BEAT / 2);
        net.join(0, 3);
        for table in [0, 3] {
            assert_eq!(
                published(&mut net, table),
                Some(2),
                "in the table of {table}, which has {:?}",
                net.roles(table)
            );
        }
    }
}

fn process(incarnation: u64) -> Content {
    let mut content = content("one");
    content.incarnation = Some(incarnation);
    content
}

/// Which process is published at an address that two claim: the last one.
fn published(net: &mut Net, table: usize) -> Option<u64> {
    let found = net.tables[table].endpoints(&Query::parse("one").unwrap());
    assert_eq!(found.len(), 2, "both claim it");
    found.last().and_then(|endpoint| endpoint.incarnation)
}

#[test]
fn of_two_at_one_address_the_one_that_is_not_heard_loses_it_before_it_is_given_up_and_readers_are_told() {
    let mut net = Net::new(3);
    net.join(0, 1);
    net.join(0, 2);
    net.add(1, process(1));
    net.add(2, process(2));
    net.pass(BEAT);
    assert_eq!(published(&mut net, 0), Some(2));
    for (silent, wins) in [(2, 1), (1, 2)] {
        net.paused = vec![false; 3];
        net.pass(BEAT * 2);
        net.paused[silent] = true;
        let mut told = Duration::ZERO;
        while published(&mut net, 0) != Some(wins) {
            assert!(told < BEAT * 2, "it was still believed after {told:?}");
            net.tables[0].take_touched();
            net.pass(BEAT / 4);
            told += BEAT / 4;
        }
        assert!(net.tables[0].take_touched().contains("one"), "readers are told of the change");
        assert_eq!(net.roles(0), ["one", "one"], "neither was given up");
    }
}

#[test]
fn one_that_was_doubted_and_is_heard_again_is_told_to_readers() {
    let mut net = Net::new(2);
    net.join(0, 1);
    net.add(1, content("one"));
    net.pass(BEAT);
    net.cut(0, 1);
    assert_eq!(tier(&mut net, 0, "one"), Some(Tier::Doubtful));
    net.tables[0].take_touched();
    net.join(0, 1);
    net.pass(BEAT);
    assert_eq!(tier(&mut net, 0, "one"), Some(Tier::Healthy));
    assert!(
        net.tables[0].take_touched().contains("one"),
        "readers were told that it is doubted, and must be told that not"
    );
}

#[test]
fn news_of_one_that_was_doubted_say_that_it_lives() {
    let mut net = Net::new(3);
    for (a, b) in [(0, 1), (1, 2), (2, 0)] {
        net.join(a, b);
    }
    let id = net.add(1, content("one"));
    net.pass(BEAT * 2);
    net.cut(0, 1);
    assert_eq!(tier(&mut net, 0, "one"), Some(Tier::Doubtful));
    net.pass(BEAT / 4);
    net.tables[1].tick(net.now);
    net.tables[1].set_status(id.number, &NodeStatus::now(crate::NodeState::Doing, None), net.now);
    net.settle();
    assert_eq!(tier(&mut net, 0, "one"), Some(Tier::Healthy));
}

#[test]
fn why_a_record_was_freed_is_known_everywhere_although_it_was_said_and_done_at_once() {
    let mut net = Net::new(3);
    net.join(0, 1);
    net.join(1, 2);
    let id = net.add(0, content("one"));
    let other = net.add(0, content("one"));
    net.pass(BEAT);
    net.tables.iter_mut().for_each(|table| drop(table.take_events()));
    let (down, now) = (NodeStatus::now(crate::NodeState::Down, Some("SIGTERM (15)")), net.now);
    net.tables[0].set_status(id.number, &down, now);
    net.tables[0].free(id, now).unwrap();
    net.tables[0].free(other, now).unwrap();
    net.settle();
    for table in 0..3 {
        let freed = net.tables[table].take_events().into_iter().filter_map(|event| match event {
            Event::Freed(record) => Some((record.id, record.details.status.to_string())),
            _ => None,
        });
        let freed: BTreeMap<_, _> = freed.collect();
        assert_eq!(freed[&id], "down: SIGTERM (15)", "as member {table} was told");
        assert_eq!(freed[&other], "running", "no reason was given for this one");
    }
}

#[test]
fn a_clock_that_is_an_hour_off_changes_nothing() {
    let mut net = Net::new(2);
    net.join(0, 1);
    let id = net.add(0, content("one"));
    let hour = Duration::from_secs(3600);
    for (since, reason) in [
        (Some(std::time::SystemTime::now() + hour), "ahead"),
        (None, "none"),
        (Some(std::time::UNIX_EPOCH + hour), "behind"),
    ] {
        let status = NodeStatus { since, ..NodeStatus::now(crate::NodeState::Stopped, Some(reason)) };
        net.tables[0].set_status(id.number, &status, net.now);
        net.pass(BEAT);
        let seen = net.tables[1].find(|_| true);
        assert_eq!(
            seen[0].details.status.reason.as_deref(),
            Some(reason),
            "the newer version counts, not the later time"
        );
    }
}

#[test]
fn persistent_records_outlive_their_owner_and_may_be_freed_by_anybody() {
    let mut net = Net::new(3);
    net.join(0, 1);
    net.join(1, 2);
    let id = net.add(0, persistent("kept"));
    net.add(0, content("lost"));
    net.pass(BEAT);
    net.cut(0, 1);
    net.paused[0] = true;
    net.pass(Duration::from_secs(180));
    assert_eq!((net.roles(1), net.roles(2)), (vec!["kept".to_owned()], vec!["kept".to_owned()]));
    // Also by somebody who comes later.
    net.tables.push(Table::new(77, BEAT, LIFE, net.now));
    net.paused.push(false);
    net.join(2, 3);
    net.pass(BEAT);
    assert_eq!(net.roles(3), ["kept"]);
    net.tables[3].free(id, net.now).unwrap();
    net.pass(BEAT * 12);
    assert_eq!((net.roles(1), net.roles(2), net.roles(3)), (vec![], vec![], vec![]));
    // Its owner hears of it when it is back.
    net.paused[0] = false;
    net.tables[0].tick(net.now);
    net.join(0, 1);
    net.pass(BEAT * 2);
    net.everywhere(&["lost"]);
}

#[test]
fn one_that_was_given_up_but_for_what_is_persistent_is_whole_again_when_it_is_back() {
    type Meanwhile = fn(&mut Net, RecordId);
    let changes: [(&str, &[&str], Meanwhile); 4] = [
        ("nothing has changed", &["kept"], |_, _| {}),
        ("something was registered", &["kept", "new"], |net, _| {
            net.add(1, content("new"));
        }),
        ("its state has changed", &["kept"], |net, id| {
            let status = NodeStatus::now(crate::NodeState::Doing, Some("backup"));
            net.tables[1].set_status(id.number, &status, net.now);
        }),
        ("it was freed", &[], |net, id| drop(net.tables[1].free(id, net.now).unwrap())),
    ];
    for (relayed, owns_more) in [(false, false), (false, true), (true, false), (true, true)] {
        for (what, then, meanwhile) in &changes {
            let case = format!("{what}, through another one: {relayed}, with something that is not kept: {owns_more}");
            let mut net = Net::new(3);
            // Who is cut off from the middle, and who gives it up then.
            let (end, far) = if relayed { (2, 2) } else { (1, 0) };
            net.join(0, 1);
            net.join(0, 2);
            let address = Some(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 7)));
            let kept = Details { address, port: 4000, persistent: true, ..Details::default() };
            let id = net.add(1, Content::of_details("kept", kept));
            let mut then = then.to_vec();
            if owns_more {
                net.add(1, content("lost"));
                then.insert(then.iter().filter(|role| **role < "lost").count(), "lost");
            }
            net.pass(BEAT * 2);
            net.cut(0, end);
            net.pass(LIFE * 2);
            assert_eq!(
                (net.roles(far), tier(&mut net, far, "kept")),
                (vec!["kept".into()], Some(Tier::Doubtful)),
                "{case}"
            );
            meanwhile(&mut net, id);
            net.join(0, end);
            net.pass(BEAT * 8);
            net.everywhere(&then);
            if then.contains(&"kept") {
                assert_eq!(tier(&mut net, far, "kept"), Some(Tier::Healthy), "{case}");
            }
            let digests = net.digests;
            net.pass(BEAT * 8);
            assert_eq!(net.digests, digests, "they go on to compare all that they know: {case}");
            assert_eq!(net.tables[1].refusals.takeovers, 0, "nobody has lied: {case}");
        }
    }
}

#[test]
fn the_last_persistent_record_of_one_that_died_is_known_to_those_who_had_not_heard_of_it() {
    let mut net = Net::new(3);
    net.join(0, 1);
    net.join(0, 2);
    net.add(1, persistent("first"));
    net.pass(BEAT);
    // It reaches only one of the others, and only that one lives.
    net.paused[2] = true;
    net.add(1, persistent("last"));
    net.paused[1] = true;
    net.pass(BEAT);
    net.on_its_way.clear();
    net.cut(0, 2);
    net.cut(0, 1);
    net.paused[2] = false;
    net.pass(LIFE * 3);
    assert_eq!((net.roles(0), net.roles(2)), (vec!["first".to_owned(), "last".to_owned()], vec!["first".to_owned()]));
    net.join(0, 2);
    net.pass(BEAT);
    assert_eq!(net.roles(2), ["first", "last"]);
}

#[test]
fn a_living_owner_hears_that_its_persistent_record_was_freed() {
    let mut net = Net::new(2);
    net.join(0, 1);
    let id = net.add(0, persistent("kept"));
    net.tables[1].free(id, net.now).unwrap();
    net.pass(BEAT * 12);
    net.everywhere(&[]);
    assert_eq!(net.tables[0].refusals.takeovers, 0);
}

#[test]
fn an_address_of_ones_own_is_filled_in_once_it_is_known() {
    let mut net = Net::new(2);
    net.join(0, 1);
    net.add(0, Content::of_details("one", Details { port: 4000, ..Details::default() }));
    assert_eq!(tier(&mut net, 1, "one"), None, "nobody else guesses it");
    let now = net.now;
    net.tables[0].set_address("10.0.0.7".parse().unwrap(), now);
    net.settle();
    let seen = net.tables[1].endpoints(&Query::parse("one").unwrap());
    assert_eq!(seen[0].addr.to_string(), "10.0.0.7:4000");
}

#[test]
fn a_day_of_an_idle_mesh_costs_little_and_changes_nothing() {
    let mut net = Net::new(5);
    for n in 0..5 {
        for other in 0..n {
            net.join(other, n);
        }
    }
    for n in 0..5 {
        net.add(n, content(&format!("service-{n}")));
    }
    net.tables.iter_mut().for_each(|table| drop(table.take_events()));
    let before = net.bytes;
    net.pass(Duration::from_secs(600));
    let per_second = (net.bytes - before) / 600 / 5;
    assert!(per_second < 500, "{per_second} bytes per second and member");
    for table in &mut net.tables {
        assert!(table.take_events().iter().all(|event| *event == Event::Heartbeat), "no flapping");
        assert_eq!(table.refusals, Refusals::default());
    }
}

#[derive(Clone, Debug)]
enum Step {
    Add(usize),
    Free(usize, usize),
    Status(usize, usize),
    Join(usize, usize),
    Cut(usize, usize),
    Pause(usize),
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let (m, n) = (0..5usize, 0..5usize);
    prop_oneof![
        m.clone().prop_map(Step::Add),
        (m.clone(), 0..8usize).prop_map(|(m, k)| Step::Free(m, k)),
        (m.clone(), 0..8usize).prop_map(|(m, k)| Step::Status(m, k)),
        (m.clone(), n.clone()).prop_map(|(a, b)| Step::Join(a, b)),
        (m.clone(), n).prop_map(|(a, b)| Step::Cut(a, b)),
        m.prop_map(Step::Pause),
        (1..20u64).prop_map(Step::Pass),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_happens_all_agree_in_the_end(steps in prop::collection::vec(step(), 1..40)) {
        let mut net = Net::seeking(5);
        let mut truth: BTreeMap<usize, Vec<(RecordId, String)>> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Add(m) => {
                    let role = format!("role-{m}");
                    let id = net.tables[m].add(content(&role), net.now).unwrap();
                    truth.entry(m).or_default().push((id, role));
                }
                Step::Free(m, k) => {
                    if let Some(records) = truth.get_mut(&m).filter(|records| k < records.len()) {
                        let (id, _) = records.remove(k);
                        let now = net.now;
                        net.tables[m].free(id, now).unwrap();
                    }
                }
                Step::Status(m, k) => {
                    if let Some((id, _)) = truth.get(&m).and_then(|records| records.get(k)) {
                        let status = NodeStatus::now(crate::NodeState::Doing, Some(&k.to_string()));
                        let now = net.now;
                        net.tables[m].set_status(id.number, &status, now);
                    }
                }
                Step::Join(a, b) if a != b => {
                    net.cut(a, b);
                    net.join(a, b);
                }
                Step::Join(..) => {}
                Step::Cut(a, b) => net.cut(a, b),
                Step::Pause(m) => net.paused[m] = !net.paused[m],
                Step::Pass(seconds) => net.pass(Duration::from_secs(seconds)),
            }
        }
        net.paused = vec![false; 5];
        for n in 1..5 {
            net.cut(n - 1, n);
            net.join(n - 1, n);
        }
        net.pass(Duration::from_secs(30));
        let mut wanted: Vec<_> = truth.values().flatten().map(|(_, role)| role.clone()).collect();
        wanted.sort();
        let sums = |table: &Table| table.owners.iter().filter(|(_, owner)| owner.life == Life::Live)
            .map(|(id, owner)| (*id, owner.incarnation, owner.version, owner.sum)).collect::<Vec<_>>();
        for table in 0..5 {
            prop_assert_eq!(net.roles(table), wanted.clone());
            prop_assert_eq!(sums(&net.tables[table]), sums(&net.tables[0]));
            prop_assert_eq!(net.tables[table].refusals.takeovers, 0);
        }
    }
}
