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

  // The button of a decision that needs a comment makes the browser ask for one.
  for (const button of document.querySelectorAll("form.decide button[name=do]")) {
    const field = button.form.elements.namedItem("comment");
    if (field && !field.required) button.addEventListener("click", () => { field.required = button.dataset.requires === "comment"; });
  }

  // A click elsewhere, or Escape, closes the account's menu.
  const account = document.querySelector(".account");
  document.addEventListener("click", (event) => { if (account && !account.contains(event.target)) account.open = false; });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !account || !account.open) return;
    account.open = false;
    account.querySelector("summary").focus();
  });

  // Commands can be copied.
  for (const code of document.querySelectorAll("[data-copy]")) {
    if (!navigator.clipboard) break;
    const button = document.createElement("button");
    button.type = "button";
    button.className = "quiet";
    button.textContent = "Copy";
    const said = document.createElement("span");
    said.className = "quiet";
    said.setAttribute("role", "status");
    button.addEventListener("click", () => navigator.clipboard.writeText(code.textContent).then(
      () => { said.textContent = "Copied"; }, () => { said.textContent = "Your browser does not permit it: select the command instead."; }));
    code.after(" ", button, " ", said);
  }

  const background = { headers: { "Broker-Background": "1" }, redirect: "error", credentials: "same-origin" };

  async function fetchPage() {
    const answer = await fetch(location.href, background);
    if (!answer.ok) return null;
    return new DOMParser().parseFromString(await answer.text(), "text/html");
  }

  const inbox = document.querySelector("[data-inbox]");
  const watched = document.querySelector("[data-watch]");
  if ((!inbox && !watched) || !window.EventSource) return;

  const title = document.title.replace(/^\(\d+\) /, "");
  const many = (n, one, more) => n + " " + (n === 1 ? one : more);

  // showCount shows the number of waiting decisions in the title and the navigation.
  function showCount(total) {
    document.title = (total ? `(${total}) ` : "") + title;
    const hidden = document.createElement("span");
    hidden.className = "hidden";
    hidden.textContent = " waiting";
    for (const place of document.querySelectorAll("[data-count]")) place.replaceChildren(...(total ? [" " + total, hidden.cloneNode(true)] : []));
  }

  // announce tells what has changed since the inbox was shown. Nothing on the page moves:
  // the viewer may be about to press a control.
  function announce(change) {
    const rows = change.gone.map((id) => inbox.querySelector(`tr[data-id="${id}"]`)).filter(Boolean);
    for (const row of rows) row.classList.add("gone");
    const parts = [];
    if (change.new) parts.push(many(change.new, "new request", "new requests"));
    if (rows.length) parts.push(rows.length + " decided");
    const news = inbox.querySelector("[data-news]");
    const text = parts.join(", ");
    if (!news || news.dataset.text === text) return;
    news.dataset.text = text;
    const link = document.createElement("a");
    link.href = location.pathname + (change.new ? inbox.dataset.newest : location.search);
    link.textContent = "show";
    news.replaceChildren(...(text ? [text + ": ", link] : []));
  }

  async function refreshInbox() {
    const shown = [...inbox.querySelectorAll("tr[data-id]")].map((row) => row.dataset.id).join(",");
    const answer = await fetch(`${inbox.dataset.inbox}&seen=${inbox.dataset.seen}&shown=${shown}`, background).catch(() => null);
    if (!answer || !answer.ok) return;
    const change = await answer.json();
    showCount(change.total);
    if (!inbox.querySelector("[data-empty]")) return announce(change);
    if (!change.new) return;
    const page = await fetchPage().catch(() => null); // nothing is shown that could move
    const fresh = page && page.querySelector("[data-inbox]");
    const filter = page && page.querySelector(".inbox-filter");
    if (!fresh) return;
    if (filter) inbox.before(filter);
    inbox.dataset.seen = fresh.dataset.seen;
    const news = inbox.querySelector("[data-news]");
    inbox.replaceChildren(...fresh.childNodes);
    const place = inbox.querySelector("[data-news]");
    if (news && place) { place.replaceWith(news); news.textContent = many(change.new, "new request", "new requests"); }
    times();
  }

  async function refresh() {
    if (inbox) await refreshInbox();
    if (!watched) return;
    const page = await fetchPage().catch(() => null);
    if (!page) return;
    if (watched) {
      const fresh = page.querySelector("[data-watch]");
      if (!fresh || fresh.dataset.version === watched.dataset.version || watched.textContent) return;
      const p = document.createElement("p");
      p.className = "changed";
      p.setAttribute("role", "status");
      const a = document.createElement("a");
      const query = new URLSearchParams(location.search);
      query.delete("done");
      a.href = location.pathname + (query.size ? "?" + query : "");
      a.textContent = "Reload";
      p.append("This request has changed. ", a);
      watched.append(p);
    }
  }
  const events = new EventSource(base + "/ui/events");
  events.addEventListener("changed", refresh);
  events.addEventListener("open", refresh);
})();
