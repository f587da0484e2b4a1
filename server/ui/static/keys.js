"use strict";
// Keyboard shortcuts. They only move the focus or open a page; none decides anything. The
// viewer can turn them off (WCAG 2.2, 2.1.4).
(() => {
  const base = document.body.dataset.base || "";
  const off = "broker-keys-off";
  const stored = () => { try { return localStorage.getItem(off) === "1"; } catch { return false; } };
  const store = (value) => { try { value ? localStorage.setItem(off, "1") : localStorage.removeItem(off); } catch { /* it lasts until the page is left */ } };
  let disabled = stored();

  const entries = () => [...document.querySelectorAll("#requests .what a, .cards h2 a, .cards-on-phones td:not(:has(form)) a[href*='/ui/requests/']")];

  // step moves the focus to the next or previous entry of a list.
  function step(by) {
    const list = entries();
    if (!list.length) return false;
    const at = list.indexOf(document.activeElement);
    const to = at < 0 ? (by > 0 ? 0 : list.length - 1) : Math.min(Math.max(at + by, 0), list.length - 1);
    list[to].focus();
    return true;
  }

  function focus(selector) {
    const element = document.querySelector(selector);
    if (element) element.focus();
    return !!element;
  }

  function open(href) {
    if (href) location.assign(href);
    return !!href;
  }

  const keys = [
    ["j", "next request of a list", () => step(1)],
    ["k", "previous request of a list", () => step(-1)],
    ["/", "search or filter", () => focus("main input[type=search], main form.search input[name=q], main .filter input")],
    ["d", "to the decision", () => focus("#decide")],
    ["n", "next request that waits, after a decision", () => open(document.querySelector(".done a.button")?.href)],
    ["i", "inbox", () => open(base + "/ui/")],
    ["?", "this list", () => { help(); return true; }],
  ];

  let dialog;
  function help() {
    if (!dialog) {
      dialog = document.createElement("dialog");
      dialog.className = "keys";
      dialog.setAttribute("aria-labelledby", "keys-title");
      const title = document.createElement("h2");
      title.id = "keys-title";
      title.textContent = "Keyboard shortcuts";
      const list = document.createElement("dl");
      for (const [key, words] of keys) {
        const dt = document.createElement("dt"), kbd = document.createElement("kbd"), dd = document.createElement("dd");
        kbd.textContent = key;
        dt.append(kbd);
        dd.textContent = words;
        list.append(dt, dd);
      }
      const label = document.createElement("label"), box = document.createElement("input");
      label.className = "check";
      box.type = "checkbox";
      box.checked = !disabled;
      box.addEventListener("change", () => { disabled = !box.checked; store(disabled); });
      label.append(box, " Shortcuts are on in this browser");
      const close = document.createElement("button");
      close.textContent = "Close";
      close.addEventListener("click", () => dialog.close());
      dialog.append(title, list, label, close);
      document.body.append(dialog);
    }
    if (!dialog.open) dialog.showModal();
  }

  document.addEventListener("keydown", (event) => {
    if (disabled || event.defaultPrevented || event.ctrlKey || event.altKey || event.metaKey || event.isComposing) return;
    if (event.target.closest("input, textarea, select, dialog, [contenteditable]")) return;
    const key = keys.find(([name]) => name === event.key);
    if (key && key[2]()) event.preventDefault();
  });

  // The account's menu names the shortcuts, so that people find them.
  const menu = document.querySelector(".account form");
  if (menu) {
    const p = document.createElement("p"), button = document.createElement("button");
    button.type = "button";
    button.className = "link";
    button.textContent = "Keyboard shortcuts";
    button.addEventListener("click", help);
    p.append(button);
    menu.before(p);
  }
})();
