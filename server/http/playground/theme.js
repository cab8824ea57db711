/**
 * Light, dark, or as the device has it. Not a module: it runs before anything is drawn, so that nothing flashes.
 */

(() => {
  const stored = "schnell.theme";
  const themes = ["auto", "light", "dark"];
  const root = document.documentElement;

  const apply = (/** @type {string} */ theme) => {
    root.dataset.theme = theme;
    const button = document.getElementById("theme-button");
    if (button) {
      const words = theme === "auto" ? "as the device" : theme;
      button.setAttribute("aria-label", `Colours: ${words}. Change`);
      button.title = `Colours: ${words}`;
    }
  };

  const kept = (/** @type {string | null} */ theme) => {
    try {
      if (theme) {
        localStorage.setItem(stored, theme);
      }
      return localStorage.getItem(stored);
    } catch {
      return theme; // this browser keeps nothing
    }
  };

  apply(kept(null) ?? "auto");
  document.addEventListener("DOMContentLoaded", () => {
    apply(root.dataset.theme ?? "auto");
    document.getElementById("theme-button")?.addEventListener("click", () => {
      const next = themes[(themes.indexOf(root.dataset.theme ?? "auto") + 1) % themes.length];
      kept(next);
      apply(next);
    });
  });
})();
