// Refreshes pages, and adds commands to the history as they arrive. All markup comes from the
// server; without this script, pages change when they are reloaded.

"use strict";

const REFRESH_MS = 5000;
const RETRY_MS = 2000;
const MAX_LINES = 300;

const pause = document.getElementById("pause");
const lines = document.getElementById("lines");
const state = document.getElementById("state");
let paused = localStorage.getItem("paused") === "yes";
let source = null;

// What the user is working on is left alone: text that is selected, and forms that are in use.
function isInUse(part) {
  const selection = getSelection();
  const focused = document.activeElement;
  return (
    (!selection.isCollapsed && selection.containsNode(part, true)) ||
    (part.contains(focused) && focused.matches("input, textarea, button, summary")) ||
    part.querySelector("input:checked, details[open]") !== null
  );
}

function replacePart(part, fresh) {
  if (part.innerHTML === fresh.innerHTML) return;
  const focused = part.contains(document.activeElement) ? document.activeElement : null;
  const address = focused && focused.getAttribute("href");
  part.replaceChildren(...fresh.childNodes);
  if (!focused) return;
  const again = [...part.querySelectorAll("a")].find((link) => link.getAttribute("href") === address);
  if (again) again.focus({ preventScroll: true });
}

async function refresh() {
  const parts = [...document.querySelectorAll("[data-refresh]")];
  if (paused || document.hidden || !parts.length || parts.some(isInUse)) return;
  try {
    const answer = await fetch(location.href);
    if (!answer.ok) return;
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    for (const part of parts) {
      const fresh = page.getElementById(part.id);
      if (fresh && !paused && !isInUse(part)) replacePart(part, fresh);
    }
  } catch {
    // The server is restarting, or refuses connections: the next refresh tries again.
  }
}

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
      setState("Connection lost, trying again", false);
      if (source.readyState !== EventSource.CLOSED) return;
      source = null;
      setTimeout(watch, RETRY_MS);
    };
  }
}

function showPause() {
  pause.textContent = paused ? "Resume updates" : "Pause updates";
}

pause.onclick = () => {
  paused = !paused;
  localStorage.setItem("paused", paused ? "yes" : "no");
  showPause();
  if (lines) watch();
  else refresh();
};
for (const open of document.querySelectorAll(".tree [aria-current]")) {
  const tree = open.closest(".tree");
  tree.scrollTop = open.offsetTop - tree.offsetTop - tree.clientHeight / 2;
}
if (lines || document.querySelector("[data-refresh]")) {
  showPause();
  document.getElementById("updates").hidden = false;
}
if (lines) {
  document.getElementById("clear").onclick = () => lines.replaceChildren();
  document.getElementById("controls").hidden = false;
  document.addEventListener("visibilitychange", watch);
  watch();
} else {
  setInterval(refresh, REFRESH_MS);
}
