// @ts-check
/**
 * Light or dark: the system's choice, or the visitor's, which is kept in this browser.
 *
 * A classic script in the head: it runs before the first paint, so that nothing flashes.
 */
{
  const KEY = "varsr-theme";
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");

  /** @returns {string | null} */
  const kept = () => {
    try {
      return localStorage.getItem(KEY);
    } catch {
      return null; // storage is switched off: the choice lasts as long as the page
    }
  };

  const chosen = kept();
  if (chosen === "light" || chosen === "dark") root.dataset.theme = chosen;

  document.addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    const current = () => root.dataset.theme ?? (dark.matches ? "dark" : "light");
    const describe = () => {
      button?.setAttribute("aria-label", current() === "dark" ? "Use light colours" : "Use dark colours");
    };
    button?.addEventListener("click", () => {
      root.dataset.theme = current() === "dark" ? "light" : "dark";
      describe();
      try {
        localStorage.setItem(KEY, root.dataset.theme);
      } catch {
        // as above
      }
    });
    dark.addEventListener("change", describe);
    describe();
  });
}
