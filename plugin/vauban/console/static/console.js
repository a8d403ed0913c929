"use strict";
// Keeps the middle of an open page up to date, and counts down. All pages work without it.
(() => {
  const policy = window.trustedTypes
    ? window.trustedTypes.createPolicy("console", { createHTML: (text) => text })
    : { createHTML: (text) => text };
  const live = document.getElementById("live");
  const stale = document.getElementById("stale");
  const follow = document.getElementById("follow");
  let shown = null;
  let left = []; // what counts down: [element, when it is over]

  const spell = (seconds) => {
    const s = Math.max(0, Math.round(seconds));
    if (s >= 3600) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min left`;
    return s >= 60 ? `${Math.floor(s / 60)} min ${s % 60} s left` : `${s} s left`;
  };

  const count = () => {
    const now = performance.now() / 1000;
    for (const [element, ends] of left) {
      element.textContent = ends > now ? spell(ends - now) : "time is over";
      element.classList.toggle("soon", ends - now < 60);
    }
  };

  // Buttons work in some states of what is shown, and not when its time is over.
  const settle = () => {
    const state = document.querySelector("[data-state]");
    if (!state) return;
    const now = performance.now() / 1000;
    const over = left.some(([element, ends]) => state.contains(element) && ends <= now);
    for (const button of document.querySelectorAll("button[data-in]")) {
      const may = button.dataset.in.split(" ").includes(state.dataset.state);
      button.disabled = over || !may || "never" in button.dataset;
    }
  };

  const begin = () => {
    const now = performance.now() / 1000;
    left = [...document.querySelectorAll("[data-left]")].map((e) => [e, now + Number(e.dataset.left)]);
    count();
    settle();
  };

  // How an element is found again once everything around it is new.
  const finder = (element) => {
    const { id, tagName, href } = element;
    if (id) return () => document.getElementById(id);
    if (href) return () => [...live.querySelectorAll("a")].find((a) => a.href === href);
    const holder = element.closest("[id]").id;
    return () => document.getElementById(holder)?.querySelector(tagName);
  };

  const put = (text) => {
    if (text !== shown) {
      const made = new DOMParser().parseFromString(policy.createHTML(text), "text/html");
      const open = [...live.querySelectorAll("details[open][id]")].map((e) => e.id);
      const focused = live.contains(document.activeElement) ? document.activeElement : null;
      const same = focused && finder(focused);
      live.replaceChildren(...made.body.childNodes);
      for (const id of open) document.getElementById(id)?.setAttribute("open", "");
      if (same) (same() ?? document.getElementById("main")).focus({ preventScroll: true });
      shown = text;
    }
    begin();
  };

  const complain = (why) => {
    stale.textContent = why ? `Not up to date: ${why}` : "";
    stale.hidden = !why;
    live.classList.toggle("old", Boolean(why));
  };

  const ask = async () => {
    try {
      const answer = await fetch(live.dataset.address, {
        headers: { "x-console-part": "1" },
        redirect: "error",
        signal: AbortSignal.timeout(10000),
      });
      if (answer.status === 401) {
        window.location.reload();
        return;
      }
      const text = await answer.text();
      if (answer.ok) {
        put(text);
        document.getElementById("as-of").textContent = new Date().toISOString().slice(0, 19).replace("T", " ") + " UTC";
      }
      complain(answer.ok ? "" : text.trim());
    } catch {
      complain("the console does not answer.");
    }
  };

  const again = async () => {
    const reading = window.getSelection && !window.getSelection().isCollapsed;
    if (follow.checked && !document.hidden && !reading) await ask();
    window.setTimeout(again, Number(live.dataset.every) * 1000);
  };

  begin();
  window.setInterval(() => { count(); settle(); }, 1000);
  if (live) window.setTimeout(again, Number(live.dataset.every) * 1000);
})();
