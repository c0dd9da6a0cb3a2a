//! When members speak and look at the time, and how long their beats are on their way.
//!
//! Owns only tests. Look next at `living.rs` for what comes of it.

use super::*;

#[test]
fn only_who_finds_others_silent_looks_at_the_time_between_beats() {
    let mut net = Net::new(3);
    net.join(0, 1);
    net.join(0, 2);
    net.add(1, content("one"));
    net.live(BEAT * 4);
    let begun = net.looks.clone();
    net.live(BEAT * 16);
    for (table, begun) in begun {
        let looks = net.looks[&table] - begun;
        assert!(looks <= 18, "member {table} looked at the time {looks} times in 16 heartbeats");
    }
    net.paused[0] = true;
    net.live(BEAT * 3 / 2);
    assert_eq!(net.tables[1].due() - net.tables[1].ticked, BEAT / 4, "nobody is heard");
    let tight = Table::new(9, BEAT, BEAT * 2, net.now);
    assert!(tight.due() <= net.now, "the first beat is due at once");
}

/// Members connected in some way, each with two more that are connected to it alone, and how far it is through them at most.
fn stars(hubs: usize, links: &[(usize, usize)]) -> Net {
    let mut net = Net::new(hubs * 3);
    for table in 0..hubs * 3 {
        // They start at other times and have other names than the order in which they are connected.
        net.now += Duration::from_millis(170);
        let me = (table as u64 * 7919) % 1000 + 1;
        net.tables[table] = Table::new(me, BEAT, LIFE, net.now);
        net.tables[table].tick(net.now);
    }
    links.iter().for_each(|(a, b)| net.join(*a, *b));
    for hub in 0..hubs {
        net.join(hub, hubs + hub * 2);
        net.join(hub, hubs + hub * 2 + 1);
    }
    net.live(BEAT * 10);
    // While they were made they stood still.
    net.tables.iter_mut().for_each(|table| table.refusals = Refusals::default());
    net
}

#[test]
fn no_beat_waits_for_longer_than_is_said_and_nobody_is_lost_for_it() {
    let chain: Vec<_> = (1..12).map(|hub| (hub - 1, hub)).collect();
    let star: Vec<_> = (1..8).map(|hub| (0, hub)).collect();
    let tree: Vec<_> = (1..15).map(|hub| ((hub - 1) / 2, hub)).collect();
    let ring: Vec<_> = (0..8).map(|hub| (hub, (hub + 1) % 8)).collect();
    for (shape, hubs, links, passed) in
        [("chain", 12, chain, 12), ("star", 8, star, 3), ("tree", 15, tree, 7), ("ring", 8, ring, 8)]
    {
        let mut net = stars(hubs, &links);
        let (begun, frames) = (net.now, net.frames);
        let mut made: BTreeMap<(u64, u64), Instant> = BTreeMap::new();
        let mut heard: BTreeMap<(usize, u64), (u64, Instant)> = BTreeMap::new();
        let (mut oldest, mut gap) = (Duration::ZERO, Duration::ZERO);
        while net.now < begun + BEAT * 40 {
            net.step(begun + BEAT * 40);
            let now = net.now;
            for table in &net.tables {
                made.entry((table.me, table.owners[&table.me].beat)).or_insert(now);
            }
            for (n, table) in net.tables.iter().enumerate() {
                for (id, owner) in table.owners.iter().filter(|(id, _)| **id != table.me) {
                    let (beat, at) = heard.get(&(n, *id)).copied().unwrap_or((owner.beat, now));
                    if beat != owner.beat {
                        gap = gap.max(now - at);
                        if let Some(made) = made.get(&(*id, owner.beat)) {
                            oldest = oldest.max(now - *made);
                        }
                    }
                    if beat != owner.beat || !heard.contains_key(&(n, *id)) {
                        heard.insert((n, *id), (owner.beat, now));
                    }
                }
            }
        }
        let longest = beats::longest_wait(BEAT, passed);
        assert!(oldest <= longest, "{shape}: a beat was {oldest:?} old, and at most {longest:?} is said");
        assert!(gap < LIFE - BEAT / 2, "{shape}: {gap:?} between two beats, of {LIFE:?} after which one is dead");
        // One frame each way over the connections of those that pass on nothing; so many over the others; and the summaries.
        let most = 45 * (hubs * 4 + links.len() * 2 * 4) + 10 * (hubs * 2 + links.len()) * 2;
        let frames = net.frames - frames;
        assert!(frames <= most, "{shape}: {frames} frames in 40 heartbeats, and at most {most} are enough");
        for table in &mut net.tables {
            assert_eq!(table.refusals, Refusals::default(), "{shape}");
            assert!(table.owners.values().all(|owner| owner.life == Life::Live), "{shape}");
        }
    }
}

/// Lets them live for so long, in which nobody must be lost anywhere.
fn nobody_is_lost(net: &mut Net, time: Duration, when: &str) {
    let end = net.now + time;
    while net.now < end {
        net.step(end);
        for (n, table) in net.tables.iter().enumerate() {
            let lost = table.owners.iter().find(|(_, owner)| owner.life != Life::Live);
            assert!(lost.is_none(), "{when}: this one is lost in the table of member {n}: {lost:?}");
        }
    }
}

#[test]
fn far_away_in_a_long_chain_nobody_is_lost_because_news_are_faster_than_beats() {
    let chain: Vec<_> = (1..20).map(|hub| (hub - 1, hub)).collect();
    let mut net = stars(20, &chain);
    nobody_is_lost(&mut net, LIFE * 2, "after they have met");
    for changer in [20, 0, 59, 19] {
        let id = net.add(changer, content("news"));
        nobody_is_lost(&mut net, LIFE * 2, "after something was registered");
        net.tables[changer].free(id, net.now).unwrap();
        nobody_is_lost(&mut net, LIFE * 2, "after it was taken back");
    }
}

#[test]
fn a_member_that_looks_at_the_time_only_when_it_is_due_notices_everything_as_soon() {
    let (mut net, lifetime) = (Net::new(2), LIFE + BEAT / 2);
    net.join(0, 1);
    net.add(1, content("one"));
    net.pass(BEAT * 5);
    let (begun, last) = (net.now, net.tables[0].owners[&2].seen);
    let table = &mut net.tables[0];
    table.take_events();
    while !table.find(|_| true).is_empty() {
        let now = table.due();
        assert!(now - last <= lifetime, "it is given up {:?} after its last beat", now - last);
        table.tick(now);
    }
    assert_eq!(table.refusals.pauses, 0, "no wait is taken for standing still");
    assert!(table.ticked - begun > LIFE - BEAT);
}
