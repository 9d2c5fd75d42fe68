// Follows the conversation and sends forms without a reload. Everything on the page works without this file.
"use strict";

const POLL_MS = 1000;

/** Say how long ago each time on the page was. */
function tellTimes(root = document) {
  for (const time of root.querySelectorAll("time[datetime]")) {
    const seconds = Math.max(0, Math.round((Date.now() - Date.parse(time.dateTime)) / 1000));
    const text = seconds < 5 ? "just now" : seconds < 60 ? `${seconds} s ago`
      : seconds < 3600 ? `${Math.floor(seconds / 60)} min ago`
      : seconds < 86400 ? `${Math.floor(seconds / 3600)} h ago` : time.dateTime.slice(0, 10);
    if (time.textContent !== text) time.textContent = text;
  }
}

/** Bring one live part up to date, keeping every element whose version is the same (and so its focus and folds). */
function refresh(part, html) {
  const fresh = document.createElement("template");
  fresh.innerHTML = html;
  if (![...fresh.content.children].some((child) => child.dataset.version)) {
    if (part.dataset.seen !== html) part.innerHTML = html;
    part.dataset.seen = html;
    return;
  }
  const old = new Map([...part.children].map((child) => [child.id, child]));
  let at = part.firstElementChild;
  for (const wanted of [...fresh.content.children]) {
    const known = old.get(wanted.id);
    old.delete(wanted.id);
    if (known && known.dataset.version === wanted.dataset.version) {
      if (known === at) at = at.nextElementSibling;
      else part.insertBefore(known, at);
      continue;
    }
    wanted.classList.add("fresh");
    if (known) {
      if (known === at) at = at.nextElementSibling;
      known.replaceWith(wanted);
    } else part.insertBefore(wanted, at);
  }
  for (const gone of old.values()) gone.remove();
}

let etag = "";
let failures = 0;

async function poll() {
  const answer = await fetch(document.body.dataset.liveUrl, { headers: etag ? { "If-None-Match": etag } : {}, cache: "no-store" });
  if (answer.status === 200) {
    etag = answer.headers.get("etag") || "";
    const parts = await answer.json();
    for (const part of document.querySelectorAll("[data-live]")) refresh(part, parts[part.dataset.live]);
  }
  tellTimes();
}

async function follow() {
  try {
    await poll();
    failures = 0;
  } catch {
    failures += 1;
  }
  document.body.classList.toggle("away", failures > 2);
  setTimeout(follow, POLL_MS);
}

/** Send a form in the background; its problem, if any, stands below it. */
async function send(form) {
  const button = form.querySelector("button:not([type=button])");
  const wrong = form.querySelector(".wrong");
  button.disabled = true;
  wrong.hidden = true;
  try {
    const answer = await fetch(form.action, {
      method: "POST", body: new URLSearchParams(new FormData(form)), headers: { Accept: "application/json" },
    });
    if (answer.ok) {
      const text = form.querySelector("textarea");
      if (text) text.value = "";
    } else {
      wrong.textContent = (await answer.json()).message;
      wrong.hidden = false;
    }
  } catch {
    wrong.textContent = "The local GitHub does not answer.";
    wrong.hidden = false;
  }
  button.disabled = false;
  await poll().catch(() => {});
}

document.addEventListener("submit", (event) => {
  if (!event.target.matches("form[data-quiet]")) return;
  event.preventDefault();
  send(event.target);
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && event.target.matches("textarea")) {
    event.preventDefault();
    event.target.form.requestSubmit();
  }
});
document.addEventListener("click", (event) => {
  const chip = event.target.closest("[data-insert]");
  if (!chip) return;
  const text = chip.form.querySelector("textarea");
  text.value = text.value.trim() ? `${text.value.trimEnd()}\n${chip.dataset.insert}` : chip.dataset.insert;
  text.focus();
});

tellTimes();
if (document.body.dataset.liveUrl) follow();
else setInterval(tellTimes, POLL_MS);
