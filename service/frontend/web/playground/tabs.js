// Tabs as in the ARIA Authoring Practices: arrows move between them.

export function tabs(list, onSelect) {
  const all = () => [...list.querySelectorAll("[role=tab]")];
  const select = (chosen) => {
    for (const tab of all()) {
      tab.setAttribute("aria-selected", String(tab === chosen));
      tab.tabIndex = tab === chosen ? 0 : -1;
    }
    onSelect(chosen);
  };
  list.addEventListener("click", ({ target }) => { if (target.role === "tab") select(target); });
  list.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const every = all();
    const next = every[(every.indexOf(event.target) + step + every.length) % every.length];
    next.focus();
    select(next);
  });
  return select;
}
