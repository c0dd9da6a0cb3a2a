//! When a member says that it lives, and that others do.
//!
//! Owns the rhythm. Whoever is connected to one other only answers what that one says of others with its own beat, in the same
//! moment, so that nobody is woken for it alone. Who passes on what others say looks at the time more often. Look next at
//! `speak.rs` for what is said, and at `merge.rs` for what is heard.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::super::events::Event;
use super::Table;
use super::owner::Owner;
use super::speak::Link;

/// Who passes on what others say, and who finds another silent, looks at the time so many times per heartbeat.
const TICKS_PER_BEAT: u32 = 4;

/// Whoever is connected to one other only answers with its own beat if that is so many eighths of a heartbeat after its last one: who
/// says more than one thing per heartbeat is not answered each time.
const EIGHTHS_BEFORE_AN_ANSWER: u32 = 5;

/// And it waits for so many eighths before it beats by itself. Less than the ten after which a connection counts as silent.
const EIGHTHS_WITHOUT_A_WORD: u32 = 9;

/// The longest that a beat waits on its way over so many members that pass it on: at each for the next look at the time, and at the
/// last of them for the beat with which those are told who pass on nothing. Two beats of one member come no further apart than
/// a heartbeat and as much again as its waits may differ. An answer comes after what it answers, and waits always as long at
/// the first; so only what is between the first and the last, and the last, can differ.
#[cfg(test)]
pub(super) fn longest_wait(heartbeat: Duration, members: u32) -> Duration {
    heartbeat / TICKS_PER_BEAT * members + heartbeat * EIGHTHS_WITHOUT_A_WORD / 8
}

impl Link {
    /// Whether the other side passes on what others say.
    fn passes_on(&self, lifetime: Duration, now: Instant) -> bool {
        self.relays.is_some_and(|at| now.duration_since(at) < lifetime)
    }
}

impl Table {
    /// When the time is to go on: at the latest for the next beat. Whoever passes on what others say, and whoever finds another
    /// silent, looks at the time more often.
    pub(in super::super) fn due(&self) -> Instant {
        if self.beaten.is_none() {
            return self.ticked;
        }
        let soon = self.ticked + self.heartbeat / TICKS_PER_BEAT;
        let is_silent = |link: &Link| self.ticked.duration_since(link.heard) > self.heartbeat;
        let passes_on = |link: &Link| self.links.len() > 1 && link.passes_on(self.lifetime, self.ticked);
        let is_unsure = self.unsure_at.is_some_and(|at| self.ticked.duration_since(at) <= self.heartbeat / 2);
        let is_busy = self.links.values().any(|link| is_silent(link) || passes_on(link));
        if is_busy || is_unsure || self.is_tight() || !self.contested.is_empty() {
            return soon;
        }
        self.beat_next.min(self.expire_at).max(soon)
    }

    /// Whether there is so little time between heartbeat and lifetime that a beat may never wait for another one.
    fn is_tight(&self) -> bool {
        self.lifetime < self.heartbeat * 3
    }

    /// The time goes on: beats, and forgets whoever has not.
    pub(in super::super) fn tick(&mut self, now: Instant) {
        // Who looks at it often beats at the look that is nearest.
        let is_due = self.beaten.is_none() || now + self.heartbeat / 16 >= self.beat_next;
        self.go_on(is_due, now);
    }

    /// Beats have come over a link. If it is the only one, one's own is said in answer: that costs nobody a moment of its own.
    pub(super) fn pulse_heard(&mut self, now: Instant) {
        let pause = self.heartbeat * EIGHTHS_BEFORE_AN_ANSWER / 8;
        let is_due = self.beaten.is_some_and(|at| now.duration_since(at) >= pause);
        if self.links.len() == 1 && is_due && !self.is_tight() {
            self.go_on(true, now);
            self.retimed = true;
        }
    }

    fn go_on(&mut self, is_due: bool, now: Instant) {
        let late = now.duration_since(self.ticked);
        self.ticked = now;
        if late > self.lifetime / 2 {
            // This process stood still: what others said meanwhile may not have been read yet.
            self.refusals.pauses += 1;
            let wait = |seen: &mut Instant| *seen = (*seen + late).min(now);
            self.owners.values_mut().for_each(|owner| wait(&mut owner.seen));
            self.links.values_mut().for_each(|link| wait(&mut link.heard));
        }
        let beats = is_due && !self.own(now).is_gone();
        if beats {
            self.beaten = Some(now);
            // Who is connected to one that passes on nothing cannot know who of the two would wait for the other.
            let passes_on = |link: &Link| link.passes_on(self.lifetime, now);
            let waits = self.links.len() == 1 && self.links.values().any(passes_on) && !self.is_tight();
            let eighths = if waits { EIGHTHS_WITHOUT_A_WORD } else { 8 };
            self.beat_next = now + self.heartbeat * eighths / 8;
            self.count += 1;
            let count = self.count;
            let me = self.own(now);
            (me.beat, me.beat_at, me.seen) = (me.beat + 1, count, now);
            self.event(Event::Heartbeat);
        }
        if now >= self.expire_at || beats && self.beat_next >= self.expire_at {
            // Also when it would be due before the next beat: most have been heard since, and that is known better now.
            self.expire(now);
        }
        // Who of two at one address is heard may have changed.
        self.touched.append(&mut self.contested);
        self.doubt(now);
        self.schedule(beats, now);
    }

    /// Finds those behind links that have fallen silent. Others are told, so that they do not take them for dead either.
    fn doubt(&mut self, now: Instant) {
        let silent = |link: &Link| now.duration_since(link.heard) > self.heartbeat * 5 / 4;
        let is_recent = |at: Instant| now.duration_since(at) <= self.heartbeat / 2;
        if !self.unsure_at.is_some_and(is_recent) && !self.links.values().any(silent) {
            return self.unsure.clear();
        }
        let is_unsure = |owner: &Owner| {
            let told = owner.unsure.is_some_and(is_recent);
            told || owner.beat_from.and_then(|link| self.links.get(&link)).is_some_and(silent)
        };
        let owners = self.owners.iter().filter(|(_, owner)| !owner.is_gone() && is_unsure(owner));
        self.unsure = owners.map(|(id, _)| *id).collect();
    }

    /// Beats are due where there are any, and from time to time a comparison. To who passes on nothing that others say, they are
    /// told together with one's own: only those behind it would miss them, if they waited at every step of a long way.
    fn schedule(&mut self, beats: bool, now: Instant) {
        let (tight, lifetime) = (self.is_tight(), self.lifetime);
        let mut is_said = beats;
        for link in self.links.values_mut() {
            let has_news = self.count - link.beats > link.echoes;
            if !self.unsure.is_empty() || has_news && (beats || tight || link.passes_on(lifetime, now)) {
                link.pulse = link.pulse.or(Some(link.beats));
                (link.beats, link.echoes) = (self.count, 0);
                is_said = true;
            }
            link.digest |= now >= link.digest_next;
            link.summary |= now >= link.summary_next;
            let is_dead = now.duration_since(link.heard) > lifetime * 2;
            if link.pulse.is_some() || link.digest || link.summary || is_dead {
                self.bells.push(Arc::clone(&link.bell));
            }
        }
        if is_said {
            // What was gathered for a link that could not take it lacks what came since.
            self.told = None;
        }
    }
}
