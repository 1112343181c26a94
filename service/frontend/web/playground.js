// The playground: one image, one task, and the result. It sends two requests, for the overlay and for the JSON, and shows
// both unchanged. Text of the service or of a file is inserted as text, never as markup.

const TASKS = { classify: "Classify", detect: "Detect", segment: "Segment" };
const JSON_SHOWN = 20_000;
const KEY = "convmlp-api-key";

const PARAMETERS = {
  classify: [{ name: "top_k", label: "Labels", min: 1, max: 1000, step: 1, value: "5" }],
  detect: [
    { name: "score_threshold", label: "Minimum score", min: 0, max: 1, step: 0.05, value: "", hint: "empty: the model's default" },
    { name: "max_detections", label: "Maximum detections", min: 1, max: 1000, step: 1, value: "100" },
  ],
  segment: [],
};

const element = (id) => document.getElementById(id);
const state = { photograph: null, name: "", models: [], shown: null, asking: null };

function make(tag, text, properties = {}) {
  const node = Object.assign(document.createElement(tag), properties);
  node.textContent = text;
  return node;
}

function task() {
  return document.querySelector("input[name=task]:checked").value;
}

function chosenModel() {
  return state.models.find(({ name }) => name === element("model").value);
}

function query() {
  const values = new URLSearchParams();
  const model = chosenModel();
  if (model && !model.default) values.set("model", model.name);
  for (const input of document.querySelectorAll("#parameters input")) {
    if (input.value !== "" && input.value !== input.dataset.default) values.set(input.name, input.value);
  }
  const text = values.toString();
  return text ? `?${text}` : "";
}

function showTasks() {
  for (const [value, label] of Object.entries(TASKS)) {
    const radio = make("input", "", { type: "radio", name: "task", value, checked: value === "classify" });
    const choice = make("label", label);
    choice.prepend(radio);
    element("tasks").append(choice);
  }
}

function showModels() {
  const mine = state.models.filter((model) => model.task === task());
  element("model").replaceChildren(...mine.map((model) => make("option", model.name, { value: model.name, selected: model.default })));
  showModelHint();
  element("parameters").replaceChildren(
    ...PARAMETERS[task()].map(({ label, hint, ...given }) => {
      const field = make("div", "", { className: "field" });
      const input = make("input", "", { type: "number", id: given.name, ...given });
      input.dataset.default = given.value;
      field.append(make("label", label, { htmlFor: given.name }), input);
      if (hint) field.append(make("span", hint, { className: "hint" }));
      return field;
    }),
  );
}

function showModelHint() {
  const model = chosenModel();
  if (!model) {
    element("model-hint").textContent = state.models.length ? "this task has no model" : "";
    return;
  }
  const figures = Object.entries(model.accuracy?.metrics ?? {}).map(([name, value]) => `${name} ${Number(value.toPrecision(3))}`);
  const measured = figures.length ? `; ${figures.join(", ")} on ${model.accuracy.measured_on}` : "";
  element("model-hint").textContent = `${model.labels.length} classes${measured}`;
}

// A request with the key that was typed in, if any. It is kept until the tab is closed.
function call(path, { headers, ...options } = {}) {
  const key = sessionStorage.getItem(KEY);
  return fetch(path, { ...options, headers: key ? { ...headers, Authorization: `Bearer ${key}` } : headers });
}

function askForKey() {
  const refused = sessionStorage.getItem(KEY) !== null;
  element("state").textContent = "API key required";
  element("key-hint").textContent = refused ? "This key is wrong." : "Enter a key of this service.";
  element("key-form").hidden = false;
  element("key").focus();
}

function useKey(event) {
  event.preventDefault();
  sessionStorage.setItem(KEY, element("key").value);
  element("key").value = "";
  element("key-form").hidden = true;
  learnState();
  ask();
}

async function learnState() {
  try {
    const ready = await fetch("readyz");
    const readiness = await ready.json();
    element("state").textContent = ready.ok ? "ready" : `not ready: ${readiness.detail}`;
    const models = await call("models");
    if (models.status === 401) {
      askForKey();
      return;
    }
    if (models.ok) {
      state.models = (await models.json()).models;
      showModels();
    }
    if (!ready.ok || !models.ok) setTimeout(learnState, 2000);
  } catch {
    element("state").textContent = "cannot reach the service";
    setTimeout(learnState, 2000);
  }
}

function showPicture(blob, description) {
  if (state.shown) URL.revokeObjectURL(state.shown);
  state.shown = URL.createObjectURL(blob);
  Object.assign(element("image"), { src: state.shown, alt: description, hidden: false });
  element("empty").hidden = true;
}

function showProblem(title, detail) {
  element("problem-title").textContent = title;
  element("problem-detail").textContent = detail;
  element("problem").hidden = false;
}

function hideAnswer() {
  for (const id of ["problem", "answer", "timings", "command", "raw"]) element(id).hidden = true;
}

// Title and detail of an error; null for a success.
async function problemOf(response) {
  if (response.ok) return null;
  const kind = response.headers.get("content-type") ?? "";
  if (!kind.includes("json")) return { title: `The service answered ${response.status}`, detail: response.statusText };
  const problem = await response.json();
  const wait = response.headers.get("retry-after");
  return { title: problem.title, detail: wait ? `${problem.detail} (try again in ${wait} s)` : problem.detail };
}

function showAnswer(result) {
  const percent = (score) => `${(100 * score).toFixed(1)} %`;
  const area = result.image.width * result.image.height;
  const [head, rows] = result.labels
    ? [["Label", "Score"], result.labels.map(({ label, score }) => [label, percent(score)])]
    : result.detections
      ? [["Label", "Score", "Box (px)"], result.detections.map(({ label, score, box }) => [label, percent(score), `${box.xmin.toFixed(0)}, ${box.ymin.toFixed(0)} to ${box.xmax.toFixed(0)}, ${box.ymax.toFixed(0)}`])]
      : [["Class", "Area", "Pixels"], result.segments.map((segment) => [segment.label, percent(segment.area / area), segment.area.toLocaleString("en")])];
  const header = make("tr", "");
  header.append(...head.map((text, at) => make("th", text, { scope: "col", className: at ? "number" : "" })));
  element("answer-head").replaceChildren(header);
  element("answer-rows").replaceChildren(...rows.map((cells) => {
    const row = make("tr", "");
    row.append(...cells.map((text, at) => make("td", text, { className: at ? "number" : "" })));
    return row;
  }));
  if (!rows.length) element("answer-rows").append(make("tr", "nothing found"));
  element("answer").hidden = false;
}

function showTimings(header) {
  const stages = header.split(",").map((stage) => stage.trim().split(";dur="));
  element("timing-head").replaceChildren(...stages.map(([name]) => make("th", name, { scope: "col" })));
  element("timing-row").replaceChildren(...stages.map(([, ms]) => make("td", `${Number(ms).toFixed(1)} ms`)));
  element("timings").hidden = false;
}

function showCommand(path) {
  const quoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;
  const key = sessionStorage.getItem(KEY) ? '-H "Authorization: Bearer $CONVMLP_API_KEY" ' : "";
  element("curl").textContent = `curl ${key}--data-binary ${quoted(`@${state.name}`)} ${quoted(new URL(path, document.baseURI).href)}`;
  element("command").hidden = false;
}

function showJson(text) {
  const pretty = JSON.stringify(JSON.parse(text), null, 2);
  element("json").textContent = pretty.length > JSON_SHOWN ? `${pretty.slice(0, JSON_SHOWN)}\n… ${pretty.length - JSON_SHOWN} more characters` : pretty;
  element("raw").hidden = false;
}

async function ask() {
  if (!state.photograph) return;
  state.asking?.abort();
  const asking = new AbortController();
  state.asking = asking;
  const path = task() + query();
  const post = (accept) => call(path, { method: "POST", body: state.photograph, headers: { Accept: accept }, signal: asking.signal });
  hideAnswer();
  element("picture").classList.add("busy");
  try {
    const [json, drawn] = await Promise.all([post("application/json"), post("image/webp")]);
    const problem = (await problemOf(json)) ?? (await problemOf(drawn));
    if (json.status === 401) {
      askForKey();
      return;
    }
    if (problem) {
      showProblem(problem.title, problem.detail);
      showCommand(path);
      return;
    }
    const [text, overlay] = await Promise.all([json.text(), drawn.blob()]);
    if (state.asking !== asking) return;
    showPicture(overlay, `${state.name} with the answer drawn on it`);
    showAnswer(JSON.parse(text).results[0]);
    showTimings(json.headers.get("server-timing"));
    showCommand(path);
    showJson(text);
  } catch (error) {
    if (error.name !== "AbortError") showProblem("Cannot reach the service", "Check that it is running, then try again.");
  } finally {
    if (state.asking === asking) element("picture").classList.remove("busy");
  }
}

function choose(blob, name) {
  state.photograph = blob;
  state.name = name;
  element("ask").disabled = false;
  showPicture(blob, name);
  ask();
}

function listen() {
  const drop = element("drop");
  element("key-form").addEventListener("submit", useKey);
  element("form").addEventListener("submit", (event) => { event.preventDefault(); ask(); });
  element("file").addEventListener("change", ({ target }) => { if (target.files[0]) choose(target.files[0], target.files[0].name); });
  // The browser may not know the format, as HEIC or TIFF. The picture with the answer drawn on it replaces this one.
  element("image").addEventListener("error", () => { element("image").hidden = true; });
  element("sample").addEventListener("click", async () => choose(await (await fetch("web/sample.jpg")).blob(), "sample.jpg"));
  element("tasks").addEventListener("change", () => { showModels(); ask(); });
  element("model").addEventListener("change", () => { showModelHint(); ask(); });
  element("copy").addEventListener("click", async ({ target }) => {
    await navigator.clipboard.writeText(element("curl").textContent);
    target.textContent = "Copied";
    setTimeout(() => { target.textContent = "Copy"; }, 1500);
  });
  for (const kind of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(kind, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", kind === "dragover");
      const [file] = kind === "drop" ? event.dataTransfer.files : [];
      if (file) choose(file, file.name);
    });
  }
}

showTasks();
showModels();
listen();
learnState();
