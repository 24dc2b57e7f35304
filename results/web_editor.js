// The editor of --setup: draws lines and zones on a picture, and sets confidence and classes.
// results/routes.py puts this file into web.html.

Object.assign(words, chinese ? {
  line: "计数线", zone: "区域", freeze: "定格", name: "名称", delete: "删除",
  conf: "置信度", classes: "类别", all: "全部",
  save: "保存", discard: "放弃修改", reset: "计数清零", done: "完成",
  drawLine: "在画面上从计数线的一端拖到另一端。",
  drawZone: "在画面上拖出一个矩形，再移动各个角；拖动小圆点可增加角。",
  hint: "画一条计数线或一个区域，或选中已有的进行移动。箭头指向“进”的一侧，点击箭头可以反向。",
  small: "太小了，请拖得远一些。",
  taken: "这个名称已被使用。",
  unsaved: "已生效，尚未保存。",
  saved: "已保存。",
  isReset: "所有计数已清零。",
  sure: "将这路流的所有计数清零？",
  unsent: "修改没有送达程序。",
} : {
  line: "Line", zone: "Zone", freeze: "Freeze", name: "Name", delete: "Delete",
  conf: "Confidence", classes: "Classes", all: "all",
  save: "Save", discard: "Discard", reset: "Reset counts", done: "Done",
  drawLine: "Drag on the picture from one end of the line to the other.",
  drawZone: "Drag a rectangle on the picture. Then move its corners; the small dots become new "
            + "corners.",
  hint: "Draw a line or a zone, or select one to move it. The arrow shows the side \"in\"; click it"
        + " to turn it round.",
  small: "Drag further: this is too small.",
  taken: "This name is in use.",
  unsaved: "Used now, not saved yet.",
  saved: "Saved.",
  isReset: "All counts are 0.",
  sure: "Set all counts of this stream to 0?",
  unsent: "The change did not reach the program.",
});

const TOO_NEAR = 10;  // pixels between two points

function svg(tag, parent, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  parent.append(made);
  return made;
}

const middle = ([x1, y1], [x2, y2]) => [(x1 + x2) / 2, (y1 + y2) / 2];
const clamp = value => Math.min(1, Math.max(0, Number(value.toFixed(5))));

// Points moved by (dx, dy), at most to the edge of the picture.
function moved(points, dx, dy) {
  const [xs, ys] = [0, 1].map(axis => points.map(point => point[axis]));
  dx = Math.min(1 - Math.max(...xs), Math.max(-Math.min(...xs), dx));
  dy = Math.min(1 - Math.max(...ys), Math.max(-Math.min(...ys), dy));
  return points.map(([x, y]) => [clamp(x + dx), clamp(y + dy)]);
}

const fetchState = async tile => (await (await fetch(address("setup.json"))).json())[tile.name];

async function openEditor(tile) {
  const state = await fetchState(tile);
  if (!tile.editor) new Editor(tile, state);
}

// Draws on one stream's picture. Points are fractions of its width and height. Every change is sent
// and used at once; "Save" also writes it to the file.
class Editor {
  constructor(tile, state) {
    this.tile = tile;
    this.frozen = false;
    this.drawing = null;   // "line" or "zone" while the next press begins a new one
    this.drag = null;      // see dragOf()
    this.selected = null;  // a shape
    this.sending = Promise.resolve();
    tile.editor = this;
    tile.edit.hidden = true;
    tile.card.classList.add("large", "editing");
    const release = event => this.release(event);
    this.svg = Object.assign(svg("svg", tile.view, {}), {
      onpointerdown: event => this.press(event), onpointermove: event => this.move(event),
      onpointerup: release, onpointercancel: release,
    });
    this.panel = element("div", tile.about, "setup");
    this.addControls(state);
    this.load(state);
    this.resized = new ResizeObserver(() => this.render());
    this.resized.observe(this.svg);
    choose();
  }

  addControls(state) {
    const tools = element("div", this.panel);
    this.tools = {
      line: button(tools, `+ ${words.line}`, () => this.draw("line")),
      zone: button(tools, `+ ${words.zone}`, () => this.draw("zone")),
    };
    const freeze = button(tools, words.freeze, () => {
      this.frozen = !this.frozen;
      freeze.ariaPressed = this.frozen;
    });
    this.about = element("div", this.panel);  // the selected line or zone
    this.name = input(this.about, words.name, { type: "text" });
    this.name.onchange = () => this.rename(this.name.value);
    button(this.about, words.delete, () => {
      this.remove(this.selected);
      this.send("change");
    });
    const slider = { type: "range", min: state.min_conf, max: 1, step: 0.01 };
    this.conf = input(element("div", this.panel), words.conf, slider);
    this.conf.oninput = () => this.set({ conf: Number(this.conf.value) });
    this.conf.onchange = () => this.send("change");
    this.shownConf = element("b", this.conf.parentNode);
    const details = element("details", this.panel);
    this.summary = element("summary", details);
    const list = element("div", details, "classes");
    const box = { type: "checkbox", onchange: () => this.chooseClasses() };
    this.boxes = state.all_classes.map(name => input(list, name, { ...box, value: name }));
    const ends = element("div", this.panel);
    this.save = button(ends, words.save, () => this.send("change", true));
    this.discard = button(ends, words.discard, () => this.send("discard"));
    button(ends, words.reset, () => confirm(words.sure) && this.send("reset"));
    button(ends, words.done, () => this.close());
    this.message = element("p", this.panel, "message");
    this.message.setAttribute("role", "status");
  }

  // Show a state of the program instead of what is drawn.
  load(state) {
    this.shapes = [];
    for (const kind of ["line", "zone"]) {
      for (const [name, points] of Object.entries(state[`${kind}s`])) {
        this.shapes.push({ kind, name, points });
      }
    }
    this.drag = null;
    const conf = state.conf === null ? state.default_conf : state.conf;
    this.conf.value = conf;
    this.conf.parentNode.hidden = conf === null;
    this.set(state);
    for (const box of this.boxes) box.checked = (state.classes || []).includes(box.value);
    this.conf.disabled = "conf" in state.fixed;
    for (const box of this.boxes) box.disabled = "classes" in state.fixed;
    this.accept(state);
    this.select(null);
    this.draw(null);
  }

  // Note a state of the program that agrees with what is drawn.
  accept(state) {
    this.state = state;
    this.save.disabled = this.discard.disabled = state.saved;
  }

  // Set the confidence (null: the default) and the classes (null: all).
  set({ conf = this.values.conf, classes = this.values.classes }) {
    this.values = { conf, classes };
    this.shownConf.textContent = Number(this.conf.value).toFixed(2);
    this.summary.textContent = `${words.classes}: ${classes ? classes.join(", ") : words.all}`;
  }

  chooseClasses() {
    const chosen = this.boxes.filter(box => box.checked).map(box => box.value);
    this.set({ classes: chosen.length ? chosen : null });
    this.send("change");
  }

  // What differs from the program's state. The rest is not sent: a flag may have fixed it.
  changes() {
    const shapes = { line: {}, zone: {} };
    for (const { kind, name, points } of this.shapes) shapes[kind][name] = points;
    const present = { lines: shapes.line, zones: shapes.zone, ...this.values };
    const differs = ([key, value]) => JSON.stringify(value) !== JSON.stringify(this.state[key]);
    return Object.fromEntries(Object.entries(present).filter(differs));
  }

  // One request after the other: each needs the version that the one before has made.
  send(action, save = false) {
    this.sending = this.sending.then(() => this.post(action, save))
      .catch(() => this.say(words.unsent, true));
  }

  async post(action, save) {
    const { version } = this.state;
    const body = { stream: this.tile.name, action, version, save, setup: this.changes() };
    const headers = { "Content-Type": "application/json" };
    const request = { method: "POST", headers, body: JSON.stringify(body) };
    const answer = await fetch(address("setup.json"), request);
    if (!answer.ok) {
      if (answer.status === 409) this.load(await fetchState(this.tile));
      if (answer.status === 400) this.load(this.state);  // a refused change is undone
      return this.say(await answer.text(), true);
    }
    const state = await answer.json();
    if (action === "discard") this.load(state);
    else this.accept(state);
    if (action === "reset") this.say(words.isReset);
    else if (save) this.say(words.saved);
    else this.say(state.saved ? "" : words.unsaved);
  }

  say(text, bad = false) {
    this.message.textContent = text;
    this.message.classList.toggle("bad", bad);
  }

  // ---- drawing ----

  draw(kind) {
    this.drawing = kind === this.drawing ? null : kind;
    this.svg.classList.toggle("drawing", this.drawing !== null);
    for (const [name, tool] of Object.entries(this.tools)) {
      tool.ariaPressed = name === this.drawing;
      tool.disabled = `${name}s` in this.state.fixed;
    }
    const hints = { line: words.drawLine, zone: words.drawZone };
    this.say(hints[this.drawing] || words.hint);
  }

  select(shape) {
    this.selected = shape;
    this.about.hidden = !shape;
    this.name.value = shape ? shape.name : "";
    this.render();
  }

  find(kind, name) {
    return this.shapes.find(shape => shape.kind === kind && shape.name === name);
  }

  rename(name) {
    if (this.find(this.selected.kind, name)) {
      this.name.value = this.selected.name;
      return this.say(words.taken, true);
    }
    this.selected.name = name;
    this.render();
    this.send("change");
  }

  remove(shape) {
    this.shapes = this.shapes.filter(other => other !== shape);
    this.select(null);
  }

  position(event) {
    const { left, top, width, height } = this.svg.getBoundingClientRect();
    return [clamp((event.clientX - left) / width), clamp((event.clientY - top) / height)];
  }

  press(event) {
    if (this.drag || event.button) return;
    this.name.blur();  // takes a name that is being typed
    const start = this.position(event), grip = event.target.grip;
    if (this.drawing) this.drag = this.create(this.drawing, start);
    else if (!grip) return this.select(null);
    else if (grip.part === "flip") return this.flip(grip.shape);
    else this.drag = this.dragOf(grip, start);
    Object.assign(this.drag, { pointer: event.pointerId, start });
    this.svg.setPointerCapture(event.pointerId);
    this.select(this.drag.shape);
  }

  flip(shape) {
    shape.points = [...shape.points].reverse();
    this.select(shape);
    this.send("change");
  }

  // A new line or rectangle. Returns what dragging does, as dragOf().
  create(kind, start) {
    let number = 1;
    while (this.find(kind, `${kind}${number}`)) number++;
    const shape = { kind, name: `${kind}${number}`, points: [start, start] };
    this.shapes.push(shape);
    const line = at => [start, at];
    const rectangle = at => [start, [at[0], start[1]], at, [start[0], at[1]]];
    return { shape, created: true, to: kind === "line" ? line : rectangle };
  }

  // What dragging a grip does: `to` returns the shape's points for a position of the pointer.
  dragOf({ shape, part, index }, start) {
    const before = [...shape.points], points = [...before];
    if (part === "body") {
      return { shape, to: at => moved(before, at[0] - start[0], at[1] - start[1]) };
    }
    if (part === "edge") points.splice(++index, 0, start);  // a new corner
    return { shape, index, to: at => points.map((point, i) => i === index ? at : point) };
  }

  move(event) {
    if (!this.drag || event.pointerId !== this.drag.pointer) return;
    this.drag.shape.points = this.drag.to(this.position(event));
    this.drag.moved = true;
    this.render();
  }

  release(event) {
    if (!this.drag || event.pointerId !== this.drag.pointer) return;
    const { shape, created, index, moved } = this.drag;
    this.drag = null;
    if (created && this.isSmall(shape)) {
      this.remove(shape);
      return this.say(words.small, true);
    }
    if (created) this.draw(null);
    else if (moved) this.mergeCorner(shape, index);
    if (created || moved) this.send("change");
    this.render();
  }

  pixels([x, y]) {
    return [x * this.size.width, y * this.size.height];
  }

  near(a, b) {
    const [[x1, y1], [x2, y2]] = [this.pixels(a), this.pixels(b)];
    return Math.hypot(x2 - x1, y2 - y1) < TOO_NEAR;
  }

  // A line that is too short, or a rectangle with a side that is too short.
  isSmall({ points }) {
    return points.slice(1).some((point, index) => this.near(point, points[index]));
  }

  // A corner of a zone that is dropped on its neighbour is deleted.
  mergeCorner(shape, index) {
    const { kind, points } = shape, count = points.length;
    if (kind !== "zone" || index === undefined || count < 4) return;
    const neighbours = [points[(index + 1) % count], points[(index + count - 1) % count]];
    if (neighbours.some(point => this.near(points[index], point))) {
      shape.points = points.filter((_, i) => i !== index);
    }
  }

  // ---- showing ----

  render() {
    this.size = this.svg.getBoundingClientRect();
    this.svg.replaceChildren();
    const onTop = (a, b) => (a === this.selected) - (b === this.selected);
    for (const shape of [...this.shapes].sort(onTop)) this.show(shape);
  }

  // An invisible mark that can be dragged or clicked; none if a flag has fixed the lines or zones.
  grip(parent, tag, attributes, shape, part, index) {
    const fixed = `${shape.kind}s` in this.state.fixed;
    if (!fixed) svg(tag, parent, attributes).grip = { shape, part, index };
  }

  show(shape) {
    const selected = shape === this.selected;
    const group = svg("g", this.svg, { class: selected ? `${shape.kind} selected` : shape.kind });
    const points = shape.points.map(point => this.pixels(point));
    const d = `M${points.join("L")}` + (shape.kind === "zone" ? "Z" : "");
    for (const name of ["shadow", "mark"]) svg("path", group, { class: name, d });
    this.grip(group, "path", { class: "grip body", d }, shape, "body");
    if (shape.kind === "line") this.showArrow(group, shape, points);
    if (selected) this.showCorners(group, shape, points);
    this.showName(group, shape.name, points);
  }

  // "in" is to the right of the direction from the first point to the second.
  showArrow(group, shape, [[x1, y1], [x2, y2]]) {
    const [x, y] = middle([x1, y1], [x2, y2]);
    const degrees = Math.atan2(y2 - y1, x2 - x1) * 180 / Math.PI + 90;
    const arrow = svg("g", group, { transform: `translate(${x} ${y}) rotate(${degrees})` });
    const d = "M0 0H30M20 -8L30 0L20 8";
    for (const name of ["shadow", "mark"]) svg("path", arrow, { class: name, d });
    this.grip(arrow, "circle", { class: "flip grip", cx: 24, r: 11 }, shape, "flip");
  }

  showCorners(group, shape, points) {
    if (shape.kind === "zone") points.forEach((point, index) => {
      const [cx, cy] = middle(point, points[(index + 1) % points.length]);
      svg("circle", group, { class: "corner", cx, cy, r: 4 });
      this.grip(group, "circle", { class: "grip", cx, cy, r: 4 }, shape, "edge", index);
    });
    points.forEach(([cx, cy], index) => {
      svg("circle", group, { class: "corner", cx, cy, r: 8 });
      this.grip(group, "circle", { class: "grip", cx, cy, r: 8 }, shape, "corner", index);
    });
  }

  showName(group, name, points) {
    const [x, y] = points.reduce((a, b) => b[1] < a[1] ? b : a);  // the highest point
    const side = x < this.size.width / 2 ? { x: x + 10, "text-anchor": "start" }
      : { x: x - 10, "text-anchor": "end" };
    svg("text", group, { ...side, y: Math.max(16, y - 8) }).textContent = name;
  }

  close() {
    this.resized.disconnect();
    this.svg.remove();
    this.panel.remove();
    this.tile.editor = null;
    this.tile.edit.hidden = false;
    this.tile.card.classList.remove("large", "editing");
    choose();
  }
}
