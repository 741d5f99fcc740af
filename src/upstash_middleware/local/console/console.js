// The live parts of the console: elements that are refreshed, and commands as they arrive.
// All markup comes from the server; everything else works without this script.

"use strict";

const INTERVAL = 2000;
const MAX_LINES = 300;

// Elements with data-live are fetched again from the same page, while it is visible and they have
// neither the focus nor the pointer.
async function refresh() {
  if (document.hidden) return;
  let page;
  try {
    const response = await fetch(location.href, { headers: { Accept: "text/html" } });
    if (!response.ok) return;
    page = new DOMParser().parseFromString(await response.text(), "text/html");
  } catch {
    return; // perhaps a simulated fault; the next refresh follows soon
  }
  for (const part of document.querySelectorAll("[data-live]")) {
    const next = page.getElementById(part.id);
    if (next && !part.matches(":focus-within, :hover")) part.replaceWith(next);
  }
}

if (document.querySelector("[data-live]")) setInterval(refresh, INTERVAL);

function watch(lines) {
  const controls = document.getElementById("controls");
  const pause = document.getElementById("pause");
  const state = document.getElementById("state");
  let source = null;
  let paused = false;

  function setState(words, on) {
    state.textContent = words;
    state.classList.toggle("on", on);
  }

  function show(event) {
    const part = new DOMParser().parseFromString(event.data, "text/html");
    for (const line of part.querySelectorAll("li")) lines.prepend(line);
    while (lines.childElementCount > MAX_LINES) lines.lastElementChild.remove();
  }

  function open() {
    if (source || paused || document.hidden) return;
    setState("Connecting…", false);
    source = new EventSource(lines.dataset.events);
    source.onopen = () => setState("Watching", true);
    source.onmessage = show;
    source.onerror = () => {
      setState("The connection is lost; trying again", false);
      if (source.readyState !== EventSource.CLOSED) return;
      source = null;
      setTimeout(open, INTERVAL);
    };
  }

  function close(words) {
    if (source) source.close();
    source = null;
    setState(words, false);
  }

  pause.onclick = () => {
    paused = !paused;
    pause.textContent = paused ? "Resume" : "Pause";
    if (paused) close("Paused");
    else open();
  };
  document.getElementById("clear").onclick = () => lines.replaceChildren();
  // A hidden page does not watch, so that the server sends nothing.
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
