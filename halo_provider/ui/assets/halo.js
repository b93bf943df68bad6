// Follows the look that is chosen in Airflow, whose page frames this one, keeps a running delivery's page current, and
// does what a form or a link cannot: start a run with the person's own rights, leave the frame, copy.
"use strict";

const REFRESH = 2000; // milliseconds

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

async function refresh() {
  if (!("running" in document.body.dataset)) return;
  if (!document.hidden && !document.querySelector("main :focus")) {
    try {
      const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
      if (answer.ok) {
        const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
        document.querySelector("main").replaceWith(fresh.querySelector("main"));
        if (!("running" in fresh.body.dataset)) delete document.body.dataset.running;
      }
    } catch {
      // the server is away for a moment
    }
  }
  setTimeout(refresh, REFRESH);
}

followLook();
if (window.parent !== window && outerLook()) {
  new MutationObserver(followLook).observe(window.parent.document.documentElement, { attributeFilter: ["class"] });
}
addEventListener("storage", followLook);
addEventListener("DOMContentLoaded", () => setTimeout(refresh, REFRESH));

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
