// The page Live: commands as they arrive. All markup comes from the server; other pages need no script.

"use strict";

const RETRY_MS = 2000;
const MAX_LINES = 300;

const lines = document.getElementById("lines");
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

// A hidden page does not watch, so that the server sends nothing.
function watch() {
  if (paused || document.hidden) {
    if (source) source.close();
    source = null;
    setState(paused ? "Paused" : "Not watching", false);
  } else if (!source) {
    setState("Connecting…", false);
    source = new EventSource(lines.dataset.events);
    source.onopen = () => setState("Watching", true);
    source.onmessage = show;
    source.onerror = () => {
      setState("The connection is lost; trying again", false);
      if (source.readyState !== EventSource.CLOSED) return;
      source = null;
      setTimeout(watch, RETRY_MS);
    };
  }
}

pause.onclick = () => {
  paused = !paused;
  pause.textContent = paused ? "Resume" : "Pause";
  watch();
};
document.getElementById("clear").onclick = () => lines.replaceChildren();
document.addEventListener("visibilitychange", watch);
document.getElementById("controls").hidden = false;
document.getElementById("without").hidden = true;
document.getElementById("waiting").hidden = false;
watch();
