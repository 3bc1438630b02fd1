/* The page stays useful without this: the figures are in it, and the form works. */
"use strict";

const SILENCE = 5000; // ms without an event after which the stream is lost
const RETRY = 2000; // ms until it is opened anew
const TOLERANCE = 1e-4; // by how much two clocks' rates may differ: 100 ppm

const byId = (id) => document.getElementById(id);

/* Figures: an event a second. EventSource reconnects by itself, unless the response was not a
   stream (a proxy's error, too many readers); and it does not notice a host that has vanished. */

let watch; // the timer that finds silence
let last = null; // the event before this one: {figures, at}

function follow() {
  const source = new EventSource("events");
  const reopen = () => {
    source.close();
    lost();
    watch = setTimeout(follow, RETRY);
  };
  const wait = () => {
    clearTimeout(watch);
    watch = setTimeout(reopen, SILENCE);
  };
  source.onmessage = (event) => {
    wait();
    show(JSON.parse(event.data));
  };
  source.onerror = lost;
  wait();
}

function lost() {
  last = null;
  state("Not connected. Trying again\u2026", true);
}

/* Screen readers announce the state, so it is set only when it changes. */
function state(text, alarm) {
  const element = byId("state");
  element.classList.toggle("alarm", alarm);
  if (element.textContent !== text) element.textContent = text;
}

function show(figures) {
  const at = performance.now();
  state("Live: updated every second.", false);
  document.body.classList.add("live");
  for (const row of document.querySelectorAll("[data-figure]")) {
    const name = row.dataset.figure;
    const [, total, rate] = row.children;
    total.textContent = figures[name].toLocaleString("en");
    if (last && name.endsWith("_total")) {
      const perSecond = (figures[name] - last.figures[name]) / ((at - last.at) / 1000);
      rate.textContent = Math.max(0, Math.round(perSecond)).toLocaleString("en");
    }
  }
  last = { figures, at };
}

/* The echo box: the form's own request, without leaving the page. */

async function echo(event) {
  event.preventDefault();
  const reply = byId("reply");
  try {
    const body = new URLSearchParams(new FormData(event.target));
    const response = await fetch("echo", { method: "POST", body });
    reply.textContent = await response.text();
  } catch {
    reply.textContent = "Not sent: the server does not answer.";
  }
}

/* The clock, as `tsecho ping` does it (ping/bounds.py). The server read its clock at a moment between
   `sent` and `received`, so its clock minus this one was

       at most   server - sent
       at least  server - received

   and all exchanges together leave what is in every such interval. The browser rounds this clock down
   to a tick, or to one of the two nearest ticks, so the time is within a tick of the reading. A tick is
   1 ms, or up to 100 ms in a browser that resists fingerprinting.

   Only Date tells what this clock says now: performance.timeOrigin does not change when the clock is
   set. When it is set, no offset is left, and the comparison starts over. */

function tick() {
  let smallest = Infinity;
  for (let i = 0; i < 3; i++) {
    const start = Date.now();
    let next = start;
    while (next === start) next = Date.now();
    if (next > start) smallest = Math.min(smallest, next - start);
  }
  return smallest === 1 ? 1 : smallest + 1; // longer ones may not be whole milliseconds
}

/* The offsets possible after one more exchange, in ms, when `elapsed` ms have passed since the others;
   all of them, if it contradicts the others. */
function narrowed(offsets, [low, high], elapsed) {
  if (low > high) return offsets; // this clock was set in between
  const drift = TOLERANCE * elapsed;
  const both = [Math.max(offsets[0] - drift, low), Math.min(offsets[1] + drift, high)];
  return both[0] <= both[1] ? both : [low, high];
}

/* The bound has two digits, but none below a microsecond, and is rounded up. */
function inWords([low, high]) {
  const half = (high - low) / 2;
  const middle = (high + low) / 2;
  const digits = Math.min(3, Math.max(0, 1 - Math.floor(Math.log10(half))));
  const unit = 10 ** -digits;
  const up = (value) => (Math.ceil(value / unit - 1e-6) * unit).toFixed(digits) + " ms";
  if (Math.abs(middle) <= half) {
    return `No difference shown: this browser\u2019s clock is at most ${up(high)} behind`
      + ` the server\u2019s, and at most ${up(-low)} ahead of it.`;
  }
  const offset = Math.round(middle / unit) * unit;
  const bound = up(half + Math.abs(middle - offset));
  const size = Math.abs(offset);
  const text = size < 1000 ? `${size.toFixed(digits)} ms` : `${(size / 1000).toFixed(digits + 3)} s`;
  return `This browser\u2019s clock is ${text} ${offset > 0 ? "behind" : "ahead of"}`
    + ` the server\u2019s, \u00b1 ${bound}.`;
}

async function compare() {
  const grain = tick();
  let offsets = [-Infinity, Infinity];
  let before = 0;
  for (let count = 1; ; count++) {
    try {
      const sent = Date.now();
      const response = await fetch("time", { cache: "no-store" });
      const server = Number(await response.text()) / 1e6; // ns as ms: a double is exact to 0.3 us
      if (!response.ok || !(server > 0)) throw new Error("no time");
      const received = Date.now();
      const now = performance.now();
      offsets = narrowed(offsets, [server - received - grain, server - sent + grain], now - before);
      before = now;
      byId("clock").textContent = inWords(offsets);
    } catch {
      byId("clock").textContent = "The server does not answer.";
    }
    await new Promise((resolve) => setTimeout(resolve, count < 20 ? 50 : 1000));
  }
}

follow();
compare();
byId("echo").addEventListener("submit", echo);
