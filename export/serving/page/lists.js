// The lists of classes and of objects beside the picture.

// Fills the list of classes: those with most objects first, each with a checkbox.
//   counts: Map of class name to {count, maskSeen}; hidden: Set of names; onChange(name, shown).
export function fillClasses(list, counts, hidden, onChange) {
  const names = [...counts.keys()].sort(
    (a, b) => counts.get(b).count - counts.get(a).count || a.localeCompare(b),
  );
  const order = names.join("\n");
  if (list.dataset.names !== order) {
    list.replaceChildren(...names.map((name) => classItem(name, counts.get(name), onChange)));
    list.dataset.names = order;
  }
  [...list.children].forEach((item, i) => {
    const { count } = counts.get(names[i]);
    item.querySelector("input").checked = !hidden.has(names[i]);
    item.querySelector(".count").textContent = count;
  });
}

function classItem(name, { maskSeen }, onChange) {
  const item = document.createElement("li");
  const label = document.createElement("label");
  const box = document.createElement("input");
  box.type = "checkbox";
  box.addEventListener("change", () => onChange(name, box.checked));
  label.append(box, key(maskSeen), text("name", name), setOf(maskSeen), text("count", ""));
  item.append(label);
  return item;
}

// Fills the list of objects, a listbox with one stop of the Tab key.
//   objects: those shown, best first; alone: the one seen alone, or null.
export function fillObjects(list, objects, alone) {
  const focused = list.contains(document.activeElement);
  const number = Number(document.activeElement?.dataset?.number ?? -1);
  list.replaceChildren(...objects.map((object) => objectItem(object, object === alone)));
  const current = alone ? objects.indexOf(alone) : 0;
  const at = objects.findIndex((object) => object.number === number);
  const stop = list.children[at >= 0 ? at : Math.max(current, 0)];
  if (!stop) return;
  stop.tabIndex = 0;
  if (focused) stop.focus();
}

function objectItem(object, selected) {
  const item = document.createElement("li");
  item.role = "option";
  item.id = `object-${object.number}`;
  item.dataset.number = object.number;
  item.tabIndex = -1;
  item.ariaSelected = String(selected);
  const score = text("score", object.score.toFixed(2));
  item.append(key(object.maskSeen), text("name", object.className), setOf(object.maskSeen), score);
  return item;
}

// Calls choose(number) on click, Enter or Space, and near(number or null) as pointer or focus move.
export function wireObjects(list, choose, near) {
  const numberOf = (event) => {
    const item = event.target.closest("li");
    return item ? Number(item.dataset.number) : null;
  };
  list.addEventListener("click", (event) => {
    const number = numberOf(event);
    if (number !== null) choose(number);
  });
  list.addEventListener("pointerover", (event) => near(numberOf(event)));
  list.addEventListener("pointerleave", () => near(null));
  list.addEventListener("focusin", (event) => near(numberOf(event)));
  list.addEventListener("focusout", () => near(null));
  list.addEventListener("keydown", (event) => {
    const item = event.target.closest("li");
    if (!item) return;
    const target = {
      ArrowDown: item.nextElementSibling,
      ArrowUp: item.previousElementSibling,
      Home: list.firstElementChild,
      End: list.lastElementChild,
    };
    if (event.key in target) {
      moveTo(item, target[event.key]);
      event.preventDefault();
    } else if (event.key === "Enter" || event.key === " ") {
      choose(Number(item.dataset.number));
      event.preventDefault();
    }
  });
}

function moveTo(from, to) {
  if (!to) return;
  from.tabIndex = -1;
  to.tabIndex = 0;
  to.focus();
}

function key(maskSeen) {
  const mark = document.createElement("i");
  mark.className = `key ${maskSeen ? "a" : "b"}`;
  mark.ariaHidden = "true";
  return mark;
}

// Says to screen readers what the colour says to others.
function setOf(maskSeen) {
  return text("hidden", maskSeen ? "(class trained with masks)" : "(class never seen with a mask)");
}

function text(className, content) {
  const span = document.createElement("span");
  span.className = className;
  span.textContent = content;
  return span;
}
