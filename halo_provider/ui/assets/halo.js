// Follows the look that is chosen in Airflow, whose page frames this one, and keeps a running delivery's page current.
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
