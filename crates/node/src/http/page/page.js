// The status page's beginning: asks, remembers, shows.
//
// Only wires the parts together. Nothing is asked of any other host, and one request ends before the
// next begins. The age is looked at more often than answers come, so that old data turn grey even
// while a request hangs.

import { bind, render, renderFailure } from "./dom.js";
import { Feed, askStatus, wakefulClock } from "./feed.js";
import { History } from "./history.js";
import { epochOf, view } from "./model.js";

const LOOK_MS = 500;

const clock = wakefulClock();
const feed = new Feed(askStatus, clock);
const history = new History();
let shown = null;

function show() {
  try {
    render(document, shown, history, feed.freshness(), clock() / 1000);
  } catch (error) {
    renderFailure(document, error);
  }
}

async function ask() {
  const begun = clock();
  const news = await feed.poll();
  setTimeout(ask, feed.pause(begun));
  if (feed.answer !== null && (news || shown === null)) shown = view(feed.answer, window.location.protocol);
  if (news) history.add(clock() / 1000, shown.answeredBy.text, epochOf(feed.answer), shown.plots);
  show();
}

bind(document);
// A tab that was hidden is looked at again: its figures may be minutes old.
document.addEventListener("visibilitychange", show);
window.addEventListener("pageshow", show);
setInterval(show, LOOK_MS);
show();
ask();
