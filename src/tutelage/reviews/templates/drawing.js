// How the page looks. Names reach it as text nodes and attributes only, never as HTML.

function make(name, attributes = {}, ...children) {
  const isDrawn = name.startsWith("svg:");
  const element = isDrawn ? document.createElementNS(SVG, name.slice(4)) : document.createElement(name);
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
const channel = (color, place) => parseInt(color.slice(place, place + 2), 16);
const isDark = (color) => 0.21 * channel(color, 1) + 0.72 * channel(color, 3) + 0.07 * channel(color, 5) < 115;
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
  const isNear = state.zoomed && focused();
  const [left, top, across, down] = isNear ? around(focused().xyxy, width, height) : [0, 0, width, height];
  picture.setAttribute("viewBox", `${left} ${top} ${across} ${down}`);
  const unit = Math.max(across / (picture.clientWidth || 800), down / (picture.clientHeight || 600)); // a screen pixel
  const labels = current().labels.map((label, place) => ({ label, place })).filter(({ label }) => isShown(label));
  const area = ({ label: { xyxy } }) => (xyxy[2] - xyxy[0]) * (xyxy[3] - xyxy[1]);
  const isFocused = ({ place }) => place === state.label;
  labels.sort((one, other) => isFocused(one) - isFocused(other) || area(other) - area(one)); // later ones lie on top
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
  const isFocused = place === state.label;
  return [isKept(label) ? "" : "below", verdict ?? "", isFocused ? "focused" : "", label.rle ? "region" : ""];
}

function drawShape(label, place, unit) {
  const [height, width] = current().size;
  const color = data.colors[label.class];
  const scaled = label.rle ? `scale(${width / label.rle.size[1]} ${height / label.rle.size[0]})` : null;
  const shape = { d: label.outline ?? outline(label), transform: scaled, "fill-rule": "evenodd" };
  const verdict = state.said[state.image].verdicts[place];
  const sign = SIGNS[verdict] ?? "";
  const text = place === state.label ? `${sign} ${data.class_names[label.class]} ${score(label.score)}` : sign;
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
  if (row && list.scrollHeight > list.clientHeight) {
    list.scrollTop = row.offsetTop - list.offsetTop - list.clientHeight / 2;
  }
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
