// Moleculer as server and as client: `peer.js serve` and
// `peer.js load WORKLOAD MODE ADDRESS SECONDS SERVER_PID`, which prints the same line of JSON as the other peers.
//
// A broker as it comes, without logs: TCP transporter, JSON, no UDP discovery (the address is given). Each broker has one
// connection to the other for all that it sends. Bodies are text, which is the fastest form of bytes that JSON has.
// Must never: replace a part of Moleculer. Next: src/peers/moleculer.rs, which installs and starts this.

"use strict";

const fs = require("fs");
const { createHistogram, performance } = require("perf_hooks");
const { ServiceBroker } = require("moleculer");

const KIB = 1024;
const CALLS = { w1: 1 };
const ECHOES = { "w3-1k": [64, KIB], "w3-64k": [64, 64 * KIB], "w3-1m": [8, KIB * KIB] };

// How the process ends when it cannot do the workload.
const CANNOT = 3;

// Longer than that of the others: code is compiled while it runs.
const WARM_UP_MS = 1000;

function broker(nodeID, urls) {
    return new ServiceBroker({
        nodeID,
        logger: false,
        transporter: {
            type: "TCP",
            // 1 MiB by default, which a body of 1 MiB would pass.
            options: { urls, udpDiscovery: false, gossipPeriod: 1, maxPacketSize: 16 * KIB * KIB },
        },
        serializer: "JSON",
    });
}

async function serve() {
    const server = broker("server", null);
    server.createService({
        name: "bench",
        actions: {
            add: context => context.params.a + context.params.b,
            echo: context => context.params.body,
        },
    });
    await server.start();
    console.log(`127.0.0.1:${server.transit.tx.opts.port}`);
}

// One caller's call, or undefined when there is no such workload. Answers are looked at, as by the other peers.
function caller(client, workload) {
    const many = /^w2-(\d+)$/.exec(workload);
    const inFlight = CALLS[workload] ?? (many ? Number(many[1]) : undefined);
    if (inFlight !== undefined) {
        const call = async number => {
            const sum = await client.call("bench.add", { a: number, b: 1 });
            if (sum !== number + 1) throw new Error("the sum is wrong");
        };
        return { inFlight, call };
    }
    if (!(workload in ECHOES)) return undefined;
    const [echoing, size] = ECHOES[workload];
    const body = text(size);
    const call = async () => {
        const back = await client.call("bench.echo", { body });
        if (back.length !== size) throw new Error("the body is wrong");
    };
    return { inFlight: echoing, call, size };
}

function text(size) {
    return Array.from({ length: size }, (_, i) => String.fromCharCode(97 + ((i * 31) % 26))).join("");
}

async function measure({ inFlight, call, size }, seconds, server) {
    const latencies = createHistogram({ lowest: 1, highest: 60e9, figures: 3 });
    let measuring = false;
    let over = false;
    const callers = Array.from({ length: inFlight }, async () => {
        let begun = performance.now();
        for (let number = 0; !over; number++) {
            await call(number);
            const now = performance.now();
            if (measuring) latencies.record(Math.max(1, Math.round((now - begun) * 1e6)));
            begun = now;
        }
    });
    const all = Promise.all(callers);
    await Promise.race([sleep(WARM_UP_MS), all]);
    const [cpu, begun] = [used(server), performance.now()];
    measuring = true;
    await Promise.race([sleep(seconds * 1000), all]);
    measuring = false;
    const [client, theirs] = used(server).map((now, i) => now - cpu[i]);
    const elapsed = (performance.now() - begun) / 1000;
    over = true;
    await all;
    const calls = latencies.count;
    const ofBoth = server ? { server_cpu_us: theirs / calls, cpu_us: (client + theirs) / calls } : {};
    return {
        rate: calls / elapsed,
        ...(size ? { mb_s: (calls * size) / 1e6 / elapsed } : {}),
        client_cpu_us: client / calls,
        ...ofBoth,
        p50_us: latencies.percentile(50) / 1e3,
        p99_us: latencies.percentile(99) / 1e3,
        p999_us: latencies.percentile(99.9) / 1e3,
    };
}

function sleep(ms) {
    return new Promise(resolve => setTimeout(resolve, ms));
}

// Microseconds of processor time of this process and of the server's; the latter in hundredths of a second, as the kernel
// counts them for others.
function used(server) {
    const { user, system } = process.cpuUsage();
    if (!server) return [user + system, 0];
    const fields = fs.readFileSync(`/proc/${server}/stat`, "latin1").split(") ").pop().split(" ");
    return [user + system, (Number(fields[11]) + Number(fields[12])) * 1e4];
}

async function check(client) {
    if ((await client.call("bench.add", { a: 2, b: 40 })) !== 42) throw new Error("the sum is wrong");
    for (const size of [0, 1, KIB, 64 * KIB, KIB * KIB]) {
        const body = text(size);
        if ((await client.call("bench.echo", { body })) !== body) throw new Error("the body is wrong");
    }
}

async function load(workload, mode, address, seconds, server) {
    // A server remembers where a name was.
    const client = broker(`client-${process.pid}`, `${address}/server`);
    await client.start();
    await client.waitForServices("bench", 10000, 20);
    if (workload === "check") {
        await check(client);
        process.exit(0);
    }
    const each = caller(client, workload);
    if (each === undefined) process.exit(CANNOT);
    const figures = await measure(each, Number(seconds), server);
    console.log(JSON.stringify({ peer: "moleculer", workload, mode, figures }));
    process.exit(0);
}

const [command, ...rest] = process.argv.slice(2);
(command === "serve" ? serve() : load(...rest)).catch(error => {
    console.error(error);
    process.exit(1);
});
