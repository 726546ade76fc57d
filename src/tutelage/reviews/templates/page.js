"use strict";
// Shows pseudo-labels one image at a time and keeps what a person says of them. `data` is what page.py gathered.
// Names reach the page as text nodes and attributes only, never as HTML.

const data = JSON.parse(document.getElementById("data").textContent);
const KEYS = { a: "accept", r: "reject", i: "ignore" };
const PAST = { accept: "accepted", reject: "rejected", ignore: "ignored" };
const SIGNS = { accept: "\u2713", reject: "\u00d7", ignore: "~", human: "+" };
const SVG = "http://www.w3.org/2000/svg";
const STORED = `tutelage-review ${data.store}`;

const state = {
  image: 0, // place in data.images
  label: -1, // place in that image's labels, -1 for none
  only: null, // the one class that is shown, null for all
  from: data.from, // scores that are shown
  to: 1,
  steps: data.class_names.map(() => null), // place in data.grid by class; null is the run's threshold
  said: data.images.map(nothing), // of each image of the page
  elsewhere: [], // records of images that are not on the page, kept as they are
  undone: [], // what to go back to
  zoomed: false,
};

function nothing() {
  return { reviewed: false, verdicts: {}, others: [] }; // verdicts by place of the label; records of other labels
}

const get = (id) => document.getElementById(id);
const current = () => data.images[state.image];
const focused = () => current()?.labels[state.label];
const threshold = (k) => (state.steps[k] === null ? data.limits[k] : data.grid[state.steps[k]]);
const isKept = (label) => label.score >= threshold(label.class);
const isShown = (label) =>
  (state.only === null || label.class === state.only) && label.score >= state.from && label.score <= state.to;
const isFiltered = () => state.only !== null || state.from > data.from || state.to < 1;
const shownLabels = () => current().labels.flatMap((label, place) => (isShown(label) ? [place] : []));
const shownImages = () =>
  data.images.flatMap((image, place) => (!isFiltered() || image.labels.some(isShown) ? [place] : []));

// ---- what was said ----

function record(label, verdict) {
  const place = label.rle ? { rle: label.rle } : { xyxy: label.xyxy };
  const said = { class: data.class_names[label.class], ...place, verdict };
  return { ...said, score: label.score, teacher: data.teacher, round: data.round };
}

function verdictsOf(image, place) {
  const { reviewed, verdicts, others } = state.said[place];
  const labels = Object.entries(verdicts).map(([at, verdict]) => record(image.labels[at], verdict));
  return { path: image.path, size: image.size, reviewed, labels: [...labels, ...others] };
}

function allVerdicts(withUntouched = false) {
  const here = data.images.map(verdictsOf).filter((image) => withUntouched || image.reviewed || image.labels.length);
  const { format, annotation, class_names } = data;
  return { format, annotation, class_names, images: [...here, ...state.elsewhere] };
}

function isSame(label, record) {
  if (data.class_names[label.class] !== record.class) return false;
  if (label.rle) return record.rle?.counts === label.rle.counts && `${record.rle.size}` === `${label.rle.size}`;
  return record.xyxy?.every((value, axis) => Math.abs(value - label.xyxy[axis]) < 0.02);
}

function takeIn(verdicts) {
  const places = new Map(data.images.map((image, place) => [image.path, place]));
  state.said = data.images.map(nothing);
  state.elsewhere = verdicts.images.filter((image) => !places.has(image.path));
  for (const image of verdicts.images.filter((image) => places.has(image.path))) {
    const said = state.said[places.get(image.path)];
    said.reviewed = image.reviewed;
    for (const one of image.labels) {
      const at = data.images[places.get(image.path)].labels.findIndex((label) => isSame(label, one));
      if (at >= 0 && one.verdict !== "human") said.verdicts[at] = one.verdict;
      else said.others.push(one);
    }
  }
  state.undone = [];
}

function overlay(older, newer) {
  const paths = new Set(newer.images.map((image) => image.path));
  return { ...newer, images: [...older.images.filter((image) => !paths.has(image.path)), ...newer.images] };
}

function change(after) {
  const { image, label } = state;
  state.undone.push({ image, label, before: state.said[image] });
  state.said[image] = { ...state.said[image], ...after };
  keep();
}

function judge(verdict) {
  if (!focused() || !isShown(focused())) return say("No label is chosen.");
  const verdicts = { ...state.said[state.image].verdicts };
  const takesBack = verdicts[state.label] === verdict;
  if (takesBack) delete verdicts[state.label];
  else verdicts[state.label] = verdict;
  change({ verdicts });
  if (!takesBack) focusNextOpen();
  draw();
}

function finish() {
  const { verdicts } = state.said[state.image];
  const open = current().labels.flatMap((label, at) => (isKept(label) && !(at in verdicts) ? [at] : []));
  const hidden = open.filter((at) => !isShown(current().labels[at])).length;
  if (hidden) return say(`${hidden} kept without a verdict ${hidden > 1 ? "are" : "is"} not shown: press c to see all.`);
  change({ reviewed: true, verdicts: { ...Object.fromEntries(open.map((at) => [at, "accept"])), ...verdicts } });
  const places = shownImages();
  const left = [...places.filter((place) => place > state.image), ...places].find((p) => !state.said[p].reviewed);
  if (left === undefined) say("Every image that is shown is done.");
  else goTo(left);
  draw();
}

function undo() {
  const last = state.undone.pop();
  if (!last) return say("Nothing to undo.");
  state.said[last.image] = last.before;
  if (last.image !== state.image) state.zoomed = false;
  Object.assign(state, { image: last.image, label: last.label });
  keep();
  draw();
}

// ---- keeping it ----

const saving = { busy: false, again: false };

function keep() {
  if (data.save_to) return post();
  try {
    localStorage.setItem(STORED, JSON.stringify({ time: Date.now(), verdicts: allVerdicts(true) }));
    status("kept in this browser; download to use them");
  } catch {
    status("not kept in this browser: download before closing");
  }
}

async function post() {
  saving.again = saving.busy;
  if (saving.busy) return;
  saving.busy = true;
  status("saving ...");
  try {
    const headers = { "Content-Type": "application/json" };
    const answer = await fetch(data.save_to, { method: "POST", headers, body: JSON.stringify(allVerdicts()) });
    status(answer.ok ? "saved" : `not saved: ${await answer.text()}`);
  } catch {
    status("not saved: the server does not answer; download the verdicts");
  }
  saving.busy = false;
  if (saving.again) post();
}

function start() {
  let verdicts = data.verdicts;
  try {
    const stored = data.save_to ? null : JSON.parse(localStorage.getItem(STORED));
    if (stored && verdicts) {
      const isNewer = stored.time > data.verdicts_time;
      verdicts = isNewer ? overlay(verdicts, stored.verdicts) : overlay(stored.verdicts, verdicts);
    } else if (stored) verdicts = stored.verdicts;
  } catch {
    status("this browser keeps nothing for files: download before closing");
  }
  if (verdicts) takeIn(verdicts);
  const open = state.said.findIndex((said) => !said.reviewed);
  if (data.images.length) goTo(Math.max(open, 0));
}

function download() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(allVerdicts(), null, 1)], { type: "application/json" }));
  link.download = "verdicts.json";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  status("downloaded");
}

async function load(file) {
  try {
    const verdicts = JSON.parse(await file.text());
    if (verdicts.format !== data.format) throw new Error("it holds no verdicts");
    if (verdicts.annotation !== data.annotation) throw new Error(`it is about ${verdicts.annotation}`);
    if (`${verdicts.class_names}` !== `${data.class_names}`) throw new Error("its classes are others");
    takeIn(overlay(allVerdicts(), verdicts));
    say("");
    keep();
  } catch (error) {
    say(`${file.name} cannot be taken in: ${error.message}.`);
  }
  draw();
}

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

// ---- drawing ----

function make(name, attributes = {}, ...children) {
  const element = name.startsWith("svg:") ? document.createElementNS(SVG, name.slice(4)) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key === "color") element.style.setProperty("--color", value);
    else if (key === "fill") element.style.background = value;
    else if (value !== null) element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

const say = (text) => (get("message").textContent = text);
const isDark = (color) => [1, 3, 5].reduce((sum, at, axis) => sum + [0.21, 0.72, 0.07][axis] * parseInt(color.slice(at, at + 2), 16), 0) < 115;
const status = (text) => (get("status").textContent = text);
const number = (value) => value.toLocaleString("en").replaceAll(",", "\u202f");
const score = (value) => value.toFixed(2);

function draw() {
  const none = !data.images.length || !shownImages().length;
  for (const id of ["accept", "reject", "ignore", "done"]) get(id).disabled = none;
  if (data.images.length) {
    drawPicture();
    drawLabels();
  }
  drawPosition(none);
  drawFilters();
  drawClasses();
}

function drawPosition(none) {
  const places = shownImages();
  const done = state.said.filter((said) => said.reviewed).length;
  get("position").textContent = none ? "no image" : `${places.indexOf(state.image) + 1} of ${places.length}`;
  get("path").textContent = `${none ? "" : current().path} (${done} of ${data.images.length} done)`;
  get("undo").disabled = !state.undone.length;
}

function drawPicture() {
  const picture = get("picture");
  const [height, width] = current().size;
  if (picture.dataset.image !== `${state.image}`) {
    picture.dataset.image = state.image;
    const whole = { x: 0, y: 0, width, height };
    const photo = current().picture
      ? make("svg:image", { ...whole, href: current().picture, preserveAspectRatio: "none" })
      : make("svg:rect", { ...whole, class: "hole" });
    picture.replaceChildren(photo, make("svg:g"));
  }
  const [left, top, across, down] = state.zoomed && focused() ? around(focused().xyxy, width, height) : [0, 0, width, height];
  picture.setAttribute("viewBox", `${left} ${top} ${across} ${down}`);
  const unit = Math.max(across / (picture.clientWidth || 800), down / (picture.clientHeight || 600)); // of one screen pixel
  const labels = current().labels.map((label, place) => ({ label, place })).filter(({ label }) => isShown(label));
  const area = ({ label: { xyxy } }) => (xyxy[2] - xyxy[0]) * (xyxy[3] - xyxy[1]);
  labels.sort((one, other) => (one.place === state.label) - (other.place === state.label) || area(other) - area(one));
  const others = state.said[state.image].others.filter((other) => other.xyxy);
  picture.lastChild.replaceChildren(
    ...others.map(({ xyxy }) => make("svg:path", { class: "said", d: outline({ xyxy }) })),
    ...labels.map(({ label, place }) => drawShape(label, place, unit)),
  );
  drawCaption();
}

function drawCaption() {
  const label = focused();
  const verdict = state.said[state.image].verdicts[state.label];
  const { others, reviewed } = state.said[state.image];
  const parts = label ? [`${data.class_names[label.class]}, score ${score(label.score)}`] : ["no label is shown"];
  if (label && !isKept(label)) parts.push("below the threshold");
  if (verdict) parts.push(PAST[verdict]);
  if (others.length) parts.push(`${others.length} more verdicts from elsewhere`);
  if (reviewed) parts.push("image done");
  if (!current().picture) parts.push("the picture is no longer where it was");
  get("caption").textContent = parts.join(" \u00b7 ");
}

function around([x1, y1, x2, y2], width, height) {
  const across = Math.min(Math.max(2.5 * (x2 - x1), (2.5 * (y2 - y1) * width) / height, width / 12), width);
  const down = (across * height) / width;
  const left = Math.min(Math.max((x1 + x2 - across) / 2, 0), width - across);
  return [left, Math.min(Math.max((y1 + y2 - down) / 2, 0), height - down), across, down];
}

const outline = ({ xyxy: [x1, y1, x2, y2] }) => `M${x1} ${y1}H${x2}V${y2}H${x1}Z`;

function classesOf(label, place) {
  const verdict = state.said[state.image].verdicts[place];
  return [isKept(label) ? "" : "below", verdict ?? "", place === state.label ? "focused" : "", label.rle ? "region" : ""];
}

function drawShape(label, place, unit) {
  const [height, width] = current().size;
  const color = data.colors[label.class];
  const scaled = label.rle ? `scale(${width / label.rle.size[1]} ${height / label.rle.size[0]})` : null;
  const shape = { d: label.outline ?? outline(label), transform: scaled, "fill-rule": "evenodd" };
  const verdict = state.said[state.image].verdicts[place];
  const text = place === state.label ? `${SIGNS[verdict] ?? ""} ${data.class_names[label.class]} ${score(label.score)}` : SIGNS[verdict];
  const [x, y] = [label.xyxy[0] + 3 * unit, Math.max(label.xyxy[1] - 5 * unit, 15 * unit)];
  const size = { "font-size": (place === state.label ? 14 : 17) * unit, "stroke-width": 3.5 * unit };
  const choose = () => {
    state.label = place;
    draw();
  };
  return make(
    "svg:g",
    { class: classesOf(label, place).join(" "), "data-label": place, color },
    make("svg:path", { ...shape, class: isDark(color) ? "under light" : "under" }),
    make("svg:path", { ...shape, class: "shape", stroke: color, onclick: choose }),
    ...(text ? [make("svg:text", { x, y, ...size }, text.trim())] : []),
  );
}

function drawLabels() {
  const { verdicts } = state.said[state.image];
  const rows = shownLabels().map((place) => {
    const label = current().labels[place];
    const choose = () => {
      state.label = place;
      draw();
    };
    const button = make(
      "button",
      { "aria-current": place === state.label, onclick: choose },
      make("span", { class: "swatch", fill: data.colors[label.class] }),
      make("span", { class: "name" }, data.class_names[label.class]),
      make("span", { class: "score" }, score(label.score)),
      make("span", { class: "sign", "aria-label": verdicts[place] ?? "no verdict" }, SIGNS[verdicts[place]] ?? ""),
    );
    return make("li", { class: classesOf(label, place).join(" "), "data-label": place }, button);
  });
  get("labels").replaceChildren(...rows);
  const list = get("labels");
  const row = list.querySelector("[aria-current=true]");
  if (row && list.scrollHeight > list.clientHeight) list.scrollTop = row.offsetTop - list.offsetTop - list.clientHeight / 2;
}

function drawFilters() {
  const k = state.only ?? 0;
  const isOne = state.only !== null || state.steps.every((_, other) => threshold(other) === threshold(0));
  get("threshold").max = data.grid.length - 1;
  get("threshold").value = state.steps[k] ?? data.grid.findLastIndex((value) => value <= data.limits[k]);
  get("threshold-value").textContent = isOne ? score(threshold(k)) : "several";
  for (const end of ["from", "to"]) {
    get(end).value = state[end];
    get(`${end}-value`).textContent = score(state[end]);
  }
  get("option").textContent = state.steps.some((place) => place !== null) ? `pseudo.score_threshold=${option()}` : "";
}

function option() {
  const values = data.class_names.map((name, k) => [name, Math.round(threshold(k) * 1e6) / 1e6]);
  const isOne = values.every(([, value]) => value === values[0][1]);
  return isOne ? values[0][1] : `'${JSON.stringify(Object.fromEntries(values))}'`;
}

function drawClasses() {
  const rows = data.class_names.map((name, k) => {
    const column = state.steps[k] ?? data.grid.length;
    const kept = data.kept[k][column];
    const choose = () => {
      state.only = state.only === k ? null : k;
      refilter();
    };
    const button = make(
      "button",
      { "aria-pressed": state.only === k, onclick: choose, title: "show this class alone" },
      make("span", { class: "swatch", fill: data.colors[k] }),
      make("span", {}, name),
    );
    const amount = data.annotation === "masks" ? `${((100 * kept) / data.everything).toFixed(1)}\u00a0%` : number(kept);
    const cells = [make("td", {}, button), make("td", {}, amount), make("td", {}, number(data.kept_images[k][column]))];
    return make("tr", { "data-class": name }, ...cells);
  });
  const active = document.activeElement?.closest?.("#classes tr")?.dataset.class;
  get("classes").replaceChildren(...rows);
  if (active !== undefined) rows.find((row) => row.dataset.class === active)?.querySelector("button").focus();
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
