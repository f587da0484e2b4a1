"use strict";
// Enhancements: times in the viewer's zone, countdowns, live updates. Pages work
// without them.
(() => {
  const base = document.body.dataset.base || "";
  const clock = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
  const relative = new Intl.RelativeTimeFormat("en", { numeric: "always", style: "long" }); // in English sentences

  // near returns a relative time if it is within a day, else "".
  function near(seconds) {
    const size = Math.abs(seconds);
    if (size < 90) return relative.format(Math.trunc(seconds), "second");
    if (size < 5400) return relative.format(Math.trunc(seconds / 60), "minute");
    if (size < 86400) return relative.format(Math.trunc(seconds / 3600), "hour");
    return "";
  }

  function times() {
    for (const t of document.querySelectorAll("time")) {
      const at = new Date(t.dateTime);
      if (isNaN(at)) continue;
      const words = near((at - Date.now()) / 1000);
      const text = words || clock.format(at);
      if (t.textContent !== text) t.textContent = text;
      if (!t.dataset.done) { t.title = clock.format(at) + " (" + t.title + ")"; t.dataset.done = "1"; }
    }
  }
  times();
  setInterval(times, 1000);

  // busy reports whether the viewer has the focus inside an element.
  const busy = (element) => element.contains(document.activeElement) && document.activeElement !== document.body;

  async function fetchPage() {
    const answer = await fetch(location.href, { headers: { "Broker-Background": "1" }, redirect: "error", credentials: "same-origin" });
    if (!answer.ok) return null;
    return new DOMParser().parseFromString(await answer.text(), "text/html");
  }

  const live = document.querySelector("[data-live]");
  const watched = document.querySelector("[data-watch]");
  if ((!live && !watched) || !window.EventSource) return;

  async function refresh() {
    const page = await fetchPage().catch(() => null);
    if (!page) return;
    if (live) {
      const fresh = page.querySelector("[data-live]");
      if (!fresh || fresh.innerHTML === live.dataset.last) return;
      live.dataset.last = fresh.innerHTML;
      const focused = busy(live) && document.activeElement.getAttribute("href");
      live.replaceChildren(...fresh.childNodes);
      if (focused) for (const a of live.querySelectorAll("a")) if (a.getAttribute("href") === focused) { a.focus(); break; }
      times();
    }
    if (watched) {
      const fresh = page.querySelector("[data-watch]");
      if (!fresh || fresh.dataset.version === watched.dataset.version || watched.textContent) return;
      const p = document.createElement("p");
      p.className = "changed";
      p.setAttribute("role", "status");
      const a = document.createElement("a");
      a.href = location.pathname;
      a.textContent = "Reload";
      p.append("This request has changed. ", a);
      watched.append(p);
    }
  }
  const events = new EventSource(base + "/ui/events");
  events.addEventListener("changed", refresh);
  events.addEventListener("open", refresh);
})();
