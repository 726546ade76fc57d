// What keys, buttons and sliders do.

// ---- moving about ----

function goTo(image) {
  Object.assign(state, { image, label: -1, zoomed: false });
  focusNextOpen();
}

function focusNextOpen() {
  const places = shownLabels();
  const isOpen = (place) => !(place in state.said[state.image].verdicts);
  const next = places.find((place) => place > state.label && isOpen(place)) ?? places.find(isOpen);
  state.label = next ?? (places.includes(state.label) ? state.label : places[0] ?? -1);
}

function step(places, from, by) {
  const next = by > 0 ? places.find((place) => place > from) : places.findLast((place) => place < from);
  return next ?? from;
}

function moveLabel(by) {
  state.label = step(shownLabels(), state.label, by);
  draw();
}

function moveImage(by) {
  const next = step(shownImages(), state.image, by);
  if (next !== state.image) goTo(next);
  draw();
}

function refilter() {
  const places = shownImages();
  if (places.length && !places.includes(state.image)) goTo(places[0]);
  else if (!focused() || !isShown(focused())) focusNextOpen();
  draw();
}

function showAll() {
  Object.assign(state, { only: null, from: data.from, to: 1 });
  refilter();
}

// ---- what people do ----

const ON_KEY = {
  j: () => moveLabel(1),
  k: () => moveLabel(-1),
  ArrowDown: () => moveLabel(1),
  ArrowUp: () => moveLabel(-1),
  ArrowRight: () => moveImage(1),
  ArrowLeft: () => moveImage(-1),
  Enter: finish,
  u: undo,
  c: showAll,
  "?": () => get("keys").showModal(),
  z: () => {
    state.zoomed = !state.zoomed;
    draw();
  },
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || get("keys").open || !data.images.length) return;
  if (event.target.matches("input") && event.key.length > 1) return; // arrows move the slider
  if (event.target.matches("button") && event.key === "Enter") return; // it presses the button
  const act = ON_KEY[event.key] ?? (KEYS[event.key] && (() => judge(KEYS[event.key])));
  if (!act) return;
  event.preventDefault();
  say("");
  act();
});

document.addEventListener("click", (event) => {
  if (event.detail > 0) document.activeElement?.blur(); // after the mouse the keys belong to the labels again
});

for (const [id, act] of Object.entries({
  previous: () => moveImage(-1),
  next: () => moveImage(1),
  accept: () => judge("accept"),
  reject: () => judge("reject"),
  ignore: () => judge("ignore"),
  undo,
  done: finish,
  save: download,
  load: () => get("file").click(),
  help: ON_KEY["?"],
})) {
  get(id).addEventListener("click", () => {
    say("");
    act();
  });
}

get("file").addEventListener("change", () => {
  if (get("file").files.length) load(get("file").files[0]);
  get("file").value = "";
});

get("threshold").addEventListener("input", (event) => {
  const place = Number(event.target.value);
  state.steps = state.steps.map((before, k) => (state.only === null || state.only === k ? place : before));
  draw();
});

for (const end of ["from", "to"]) {
  get(end).addEventListener("input", (event) => {
    state[end] = Number(event.target.value);
    refilter();
  });
}

new ResizeObserver(() => data.images.length && drawPicture()).observe(get("stage"));
start();
draw();
