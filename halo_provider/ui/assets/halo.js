// Follows the look that is chosen in Airflow, whose page frames this one, keeps the page current, and
// does what a form or a link cannot: start a run with the person's own rights, leave the frame, copy.
"use strict";

const REFRESH = 2000; // milliseconds, while a delivery runs
const IDLE_REFRESH = 10000; // milliseconds, otherwise: a run may begin at any time
let updated = Date.now();
let lost = "";

function outerLook() {
  try {
    const classes = window.parent.document.documentElement.classList;
    return ["dark", "light"].find((look) => classes.contains(look));
  } catch {
    return undefined; // framed by another origin
  }
}

function followLook() {
  const chosen = outerLook() ?? localStorage.getItem("theme");
  document.documentElement.dataset.look = ["dark", "light"].includes(chosen) ? chosen : "system";
}

// Change what differs and leave the rest: focus, selection, chosen boxes, what is open and what is being typed stay.
function morph(old, fresh) {
  if (old.nodeType !== fresh.nodeType || old.nodeName !== fresh.nodeName) {
    old.replaceWith(fresh);
  } else if (old.nodeType !== Node.ELEMENT_NODE) {
    if (old.data !== fresh.data) old.data = fresh.data;
  } else {
    if (old.nodeName === "DETAILS") fresh.open = old.open;
    for (const { name } of [...old.attributes]) if (!fresh.hasAttribute(name)) old.removeAttribute(name);
    for (const { name, value } of fresh.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
    morphChildren(old, fresh);
  }
}

function morphChildren(old, fresh) {
  const keyed = new Map([...old.children].filter((each) => each.dataset.key).map((each) => [each.dataset.key, each]));
  let place = old.firstChild;
  for (const wanted of [...fresh.childNodes]) {
    const key = wanted.dataset?.key;
    let found = key ? keyed.get(key) : place;
    if (found && !key && found.dataset?.key) found = null; // an element with a key is only ever itself
    if (!found) {
      old.insertBefore(wanted, place);
      continue;
    }
    if (found !== place) old.insertBefore(found, place);
    place = found.nextSibling;
    morph(found, wanted);
  }
  while (place) {
    const following = place.nextSibling;
    place.remove();
    place = following;
  }
}

async function update() {
  try {
    const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
    if (answer.ok) {
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      localTimes(fresh);
      morph(document.querySelector("main"), fresh.querySelector("main"));
      document.body.toggleAttribute("data-running", fresh.body.hasAttribute("data-running"));
      updated = Date.now();
      lost = "";
    } else {
      lost = answer.status === 401 ? "you are no longer logged in" : `Airflow answered ${answer.status}`;
    }
  } catch {
    lost = "connection lost";
  }
  showAge();
}

async function refresh() {
  if (!document.hidden) await update();
  setTimeout(refresh, document.body.hasAttribute("data-running") ? REFRESH : IDLE_REFRESH);
}

function showAge() {
  const line = document.querySelector("#fresh");
  if (!line) return;
  line.textContent = `updated ${howLong(Date.now() - updated)} ago, times in ${zone()}`;
  const alert = document.querySelector("#lost"); // read aloud when it changes, and only then
  if (alert.textContent !== lost) alert.textContent = lost;
}

function howLong(milliseconds) {
  const seconds = Math.max(0, Math.round(milliseconds / 1000));
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return seconds < 172800 ? `${Math.round(seconds / 3600)} h` : `${Math.round(seconds / 86400)} days`;
}

// The time zone that is chosen in Airflow.
function zone() {
  const chosen = localStorage.getItem("timezone");
  try {
    return JSON.parse(chosen) || "UTC";
  } catch {
    return chosen;
  }
}

function localTimes(root) {
  let format;
  try {
    format = new Intl.DateTimeFormat("sv", { dateStyle: "short", timeStyle: "medium", timeZone: zone() });
  } catch {
    return; // no such zone: the times stay in UTC, and say so
  }
  for (const each of root.querySelectorAll("time")) {
    const at = new Date(each.dateTime);
    const parts = [`${format.format(at)},`, `${howLong(Date.now() - at)} ago`].map((text) =>
      Object.assign(document.createElement("span"), { textContent: text }),
    );
    each.replaceChildren(parts[0], " ", parts[1]); // a narrow column breaks between the two
  }
}

function stayCurrent() {
  if (!document.body.hasAttribute("data-live")) return;
  setTimeout(refresh, REFRESH);
  setInterval(showAge, 1000);
  document.addEventListener("visibilitychange", () => document.hidden || update());
}

followLook();
if (window.parent !== window && outerLook()) {
  new MutationObserver(followLook).observe(window.parent.document.documentElement, { attributeFilter: ["class"] });
}
addEventListener("storage", followLook);
addEventListener("DOMContentLoaded", () => localTimes(document));
addEventListener("DOMContentLoaded", stayCurrent);

// Airflow frames these pages in a sandbox that lets no link leave it. A link in the outer page may.
function leaveFrame(event) {
  const link = event.target.closest("a[data-outer]");
  if (!link || window.parent === window || event.button !== 0) return;
  let outer;
  try {
    outer = window.parent.document.createElement("a");
  } catch {
    return; // framed by another origin
  }
  event.preventDefault();
  outer.href = link.href;
  outer.target = link.target || (event.ctrlKey || event.metaKey ? "_blank" : "");
  outer.rel = link.rel;
  window.parent.document.body.append(outer);
  outer.click();
  outer.remove();
}

async function copy(event) {
  const button = event.target.closest("button[data-copy]");
  if (!button) return;
  try {
    await navigator.clipboard.writeText(button.dataset.copy);
  } catch {
    const field = document.body.appendChild(document.createElement("textarea")); // on plain HTTP there is no clipboard
    field.value = button.dataset.copy;
    field.select();
    document.execCommand("copy");
    field.remove();
  }
  button.textContent = "Copied";
}

function chooseAll(event) {
  if (!event.target.matches("input[data-all]")) return;
  for (const box of document.querySelectorAll("input[name=row]")) box.checked = event.target.checked;
}

// Requeue, then let Airflow run the rows: both with the session of whoever is logged in.
async function decideAndRun(event) {
  const button = event.submitter;
  if (!button?.dataset.api) return;
  event.preventDefault();
  const form = event.target;
  const alert = form.querySelector("[role=alert]");
  const say = (text) => Object.assign(alert, { hidden: false, textContent: text });
  for (const each of form.querySelectorAll("button")) each.disabled = true;
  try {
    const decided = await fetch(form.action, { method: "POST", body: new FormData(form), headers: { Accept: "text/html" } });
    if (!decided.ok) {
      const fresh = new DOMParser().parseFromString(await decided.text(), "text/html");
      document.querySelector("main").replaceWith(fresh.querySelector("main"));
      return;
    }
    const started = await fetch(button.dataset.api, {
      method: "POST",
      body: button.dataset.body,
      headers: { "Content-Type": "application/json" },
    });
    const answer = await started.json().catch(() => ({}));
    if (!started.ok) {
      const why = typeof answer.detail === "string" ? answer.detail : `status ${started.status}`;
      say(`The rows are requeued, but Airflow did not start a run: ${why}. The DAG's next run sends them.`);
      return;
    }
    const live = new URL(button.dataset.then, location.href);
    if (answer.dag_run_id) live.searchParams.set("run_id", answer.dag_run_id);
    const decision = new URL(decided.url).searchParams.get("decision");
    if (decision) live.searchParams.set("decision", decision);
    location.assign(live);
  } catch {
    say("Airflow cannot be reached: look at the rows before you try again.");
  }
}

addEventListener("click", leaveFrame);
addEventListener("click", copy);
addEventListener("change", chooseAll);
addEventListener("submit", decideAndRun);
