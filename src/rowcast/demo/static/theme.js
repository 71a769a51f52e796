// Loaded before the first paint, so that a chosen theme does not flash. Three choices: as the system, light, dark.
(() => {
  const root = document.documentElement;
  const order = ["auto", "light", "dark"];
  let choice = "auto";
  try { choice = localStorage.getItem("rowcast-theme") || "auto"; } catch { /* storage may be off */ }

  function apply() {
    if (choice === "auto") delete root.dataset.theme;
    else root.dataset.theme = choice;
    const button = document.getElementById("theme");
    const said = { auto: "as the system", light: "light", dark: "dark" }[choice];
    button?.setAttribute("aria-label", `Theme: ${said}. Change it`);
    button?.setAttribute("title", `Theme: ${said}`);
  }

  apply();
  addEventListener("DOMContentLoaded", () => {
    apply();
    document.getElementById("theme").addEventListener("click", () => {
      choice = order[(order.indexOf(choice) + 1) % order.length];
      try { localStorage.setItem("rowcast-theme", choice); } catch { /* then for this page only */ }
      apply();
    });
  });
})();
