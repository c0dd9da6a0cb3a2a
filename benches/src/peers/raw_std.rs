//! Blocking sockets, one thread on each side: the floor of latency, and the ceiling of what one batch after the other can do.
//!
//! It is no peer that one could call: the client is a loop. Must never use a runtime. Next: `raw`.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::sample::histogram;
use crate::workloads::{Figures, Plan, WARM_UP, calls};

pub(crate) const NAME: &str = "raw-std";

/// Two numbers and a place; the answer is a number and the place.
const REQUEST: usize = 20;
const ANSWER: usize = 12;
const BUFFER: usize = 64 << 10;

pub(crate) fn serve(listener: &TcpListener) {
    for stream in listener.incoming() {
        let stream = stream.expect("a connection");
        std::thread::spawn(move || answer(stream));
    }
}

fn answer(mut stream: TcpStream) {
    stream.set_nodelay(true).expect("an open connection");
    let (mut inbox, mut out, mut have) = (vec![0; BUFFER], Vec::with_capacity(BUFFER), 0);
    while let Ok(bytes @ 1..) = stream.read(&mut inbox[have..]) {
        have += bytes;
        let whole = have - have % REQUEST;
        for request in inbox[..whole].chunks_exact(REQUEST) {
            let sum = number(request).wrapping_add(number(&request[8..]));
            out.extend_from_slice(&sum.to_le_bytes());
            out.extend_from_slice(&request[16..]);
        }
        if stream.write_all(&out).is_err() {
            return;
        }
        out.clear();
        inbox.copy_within(whole..have, 0);
        have -= whole;
    }
}

fn number(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(*bytes.first_chunk().expect("eight bytes"))
}

fn request(out: &mut Vec<u8>, a: u64, place: u32) {
    out.extend_from_slice(&a.to_le_bytes());
    out.extend_from_slice(&1_u64.to_le_bytes());
    out.extend_from_slice(&place.to_le_bytes());
}

/// A closed loop: every answer is followed by the next request, and all that one read brought go in one write.
pub(crate) fn load(workload: &str, plan: &Plan) -> Figures {
    let in_flight = calls::in_flight(workload).expect("raw-std does W1 and W2");
    let mut stream = TcpStream::connect(plan.address).expect("a server");
    stream.set_nodelay(true).expect("an open connection");
    let (mut inbox, mut out, mut have) = (vec![0; BUFFER], Vec::with_capacity(BUFFER), 0);
    let (mut latencies, mut calls) = (histogram(), 0_u64);
    let begin = Instant::now();
    let mut begun = vec![begin; in_flight];
    for place in 0..in_flight {
        request(&mut out, 0, place as u32);
    }
    let mut watch = None;
    loop {
        stream.write_all(&out).expect("an open connection");
        out.clear();
        have += stream.read(&mut inbox[have..]).expect("an open connection");
        let now = Instant::now();
        let whole = have - have % ANSWER;
        for answer in inbox[..whole].chunks_exact(ANSWER) {
            let place = u32::from_le_bytes(*answer.last_chunk().expect("four bytes"));
            let took: Duration = now - begun[place as usize];
            begun[place as usize] = now;
            if watch.is_some() {
                latencies.saturating_record(took.as_nanos() as u64);
                calls += 1;
            }
            request(&mut out, number(answer), place);
        }
        inbox.copy_within(whole..have, 0);
        have -= whole;
        match &watch {
            None if begin.elapsed() >= WARM_UP => watch = Some(plan.watch()),
            Some(watch) if watch.elapsed() >= plan.measured => return calls::figures(watch.stop(), calls, &latencies),
            _ => {}
        }
    }
}
