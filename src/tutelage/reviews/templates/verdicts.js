"use strict";
// Shows pseudo-labels one image at a time and keeps what a person says of them. `data` is what page.py gathered.
// The script is three files in a row: this one keeps, drawing.js draws, acting.js listens and begins.

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
const least = (k) => (state.from > data.from ? state.from : Math.min(data.limits[k], threshold(k)) - data.near);
const isShown = (label) =>
  (state.only === null || label.class === state.only) && label.score >= least(label.class) && label.score <= state.to;
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
  if (hidden) return say(`${hidden} kept without a verdict, but not shown: press c to see all.`);
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
    const headers = { "Content-Type": "application/json", "If-Match": data.seen };
    const answer = await fetch(data.save_to, { method: "POST", headers, body: JSON.stringify(allVerdicts()) });
    const text = await answer.text();
    if (answer.ok) data.seen = text;
    status(answer.ok ? "saved" : `not saved: ${text}`);
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
