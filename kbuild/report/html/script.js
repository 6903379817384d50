"use strict";
// A link may lead into something folded: unfold what is around it.
function unfold() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!target) return;
  for (let one = target; one; one = one.parentElement) if (one.tagName === "DETAILS") one.open = true;
  const runs = target.querySelectorAll(":scope > details");
  if (runs.length === 1) runs[0].open = true;
  target.scrollIntoView();
}
addEventListener("hashchange", unfold);
unfold();
// Where much can be folded, a button does it at once.
for (const section of document.querySelectorAll("section[data-fold]")) {
  const button = document.createElement("button");
  const folds = section.querySelectorAll("details");
  const label = () => (button.textContent = button.dataset.open ? "fold all" : "unfold all");
  button.type = "button";
  button.addEventListener("click", () => {
    button.dataset.open = button.dataset.open ? "" : "1";
    for (const one of folds) one.open = !!button.dataset.open;
    label();
  });
  label();
  section.querySelector("h2").append(" ", button);
}
// On paper nothing can be unfolded.
addEventListener("beforeprint", () => {
  for (const one of document.querySelectorAll("details:not([data-long])")) one.open = true;
});
