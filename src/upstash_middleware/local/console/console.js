// What is live in the console: parts of a page that are brought anew, and commands as they come.
// All markup comes from the server; everything else works without this.

"use strict";

const BETWEEN = 2000;
const MOST_LINES = 300;

// Elements with data-live are taken from the same page again, while it is seen and nobody is
// in the middle of them with keyboard or pointer.
async function refresh() {
  if (document.hidden) return;
  let fresh;
  try {
    const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
    if (!answer.ok) return;
    fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  } catch {
    return; // the weather, perhaps: the next time is soon
  }
  for (const part of document.querySelectorAll("[data-live]")) {
    const next = fresh.getElementById(part.id);
    if (next && !part.matches(":focus-within, :hover")) part.replaceWith(next);
  }
}

if (document.querySelector("[data-live]")) setInterval(refresh, BETWEEN);

function watch(lines) {
  const controls = document.getElementById("controls");
  const pause = document.getElementById("pause");
  const state = document.getElementById("state");
  let source = null;
  let paused = false;

  function say(words, on) {
    state.textContent = words;
    state.classList.toggle("on", on);
  }

  function show(event) {
    const part = new DOMParser().parseFromString(event.data, "text/html");
    for (const line of part.querySelectorAll("li")) lines.prepend(line);
    while (lines.childElementCount > MOST_LINES) lines.lastElementChild.remove();
  }

  function open() {
    if (source || paused || document.hidden) return;
    say("Connecting…", false);
    source = new EventSource(lines.dataset.events);
    source.onopen = () => say("Watching", true);
    source.onmessage = show;
    source.onerror = () => {
      say("The connection is lost; trying again", false);
      if (source.readyState !== EventSource.CLOSED) return;
      source = null;
      setTimeout(open, BETWEEN);
    };
  }

  function close(words) {
    if (source) source.close();
    source = null;
    say(words, false);
  }

  pause.onclick = () => {
    paused = !paused;
    pause.textContent = paused ? "Go on" : "Pause";
    if (paused) close("Paused");
    else open();
  };
  document.getElementById("clear").onclick = () => lines.replaceChildren();
  // A page that nobody sees does not watch, so that the server has nothing to tell.
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) close(paused ? "Paused" : "Not watching");
    else open();
  });
  controls.hidden = false;
  document.getElementById("without").hidden = true;
  document.getElementById("waiting").hidden = false;
  open();
}

const lines = document.getElementById("lines");
if (lines) watch(lines);
