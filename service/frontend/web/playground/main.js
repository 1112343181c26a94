// The page at /: pictures, one request for each, and its answer drawn here.

import { inWords, itemsOf, showAnswers } from "./answers.js";
import { takePicture } from "./camera.js";
import { LANGUAGES } from "./code.js";
import { download, element, make } from "./dom.js";
import { Live } from "./live.js";
import { SAMPLES } from "./samples.js";
import { call, key, Problem, serverTiming } from "./service.js";
import { colours, Stage } from "./stage.js";
import { tabs } from "./tabs.js";
import { showTimeline } from "./timeline.js";

const TASKS = { classify: "Classify", detect: "Detect", segment: "Segment" };
// The names of figures, each from 0 to 1, as the field writes them.
const METRICS = { top1: "top-1", ap50: "AP@50", box_ap: "box AP", map: "mAP", mask_ap: "mask AP", miou: "mIoU" };
const LOWEST_SCORE = 0.05; // The slider goes down to it without a new request.
const MAX_FILES = 24;
const JSON_SHOWN = 20_000;
const RETRY_MS = 2000;
const WATCH_MS = 5000;
const SLOW_MS = 300; // From then on a request is seen to run.

const PARAMETERS = [
  { name: "top_k", task: "classify", label: "Labels", min: 1, max: 1000, step: 1, value: "5" },
  { name: "max_detections", task: "detect", label: "Maximum detections", min: 1, max: 1000, step: 1, value: "100" },
];

const stage = new Stage(element("stage"), isShown);
const live = new Live();
const state = { files: [], current: null, models: [], asking: null, answer: null, hidden: new Set(), language: "curl" };

// --- what is asked -------------------------------------------------------------------------------------------------

const chosenTasks = () => Object.keys(TASKS).filter((task) => element(`task-${task}`)?.checked);
const chosenModel = (task) => state.models.find(({ name }) => name === element(`model-${task}`)?.value);
const modelScore = (task = "detect") => chosenModel(task)?.postprocessing.score_threshold ?? 0;

// The request for the chosen tasks. `score`: the minimum score to ask for.
function requestFor(score) {
  const tasks = chosenTasks();
  const models = tasks.map(chosenModel);
  const parameters = new Map();
  if (tasks.length === 1) {
    if (!models[0].default) parameters.set("model", models[0].name);
  } else if (models.every((model) => model.default)) parameters.set("tasks", tasks.join(","));
  else parameters.set("models", models.map(({ name }) => name).join(","));
  for (const { name, task, value } of PARAMETERS) {
    const given = element(name).value;
    if (tasks.includes(task) && given !== "" && given !== value) parameters.set(name, given);
  }
  if (element("tiles").checked && !element("tiles").disabled) parameters.set("tiles", "auto");
  if (tasks.includes("detect") && score !== modelScore()) parameters.set("score_threshold", String(score));
  return { path: tasks.length === 1 ? tasks[0] : "analyze", tasks, models, parameters };
}

// An answer of one endpoint in the form of an analysis' one, by task.
function answersOf({ tasks, models }, result) {
  if (!result.answers) return { [tasks[0]]: result };
  const taskOf = new Map(models.map(({ name, task }) => [name, task]));
  return Object.fromEntries(Object.entries(result.answers).map(([name, answer]) => [taskOf.get(name) ?? name, answer]));
}

// The colours of the models that answered, by task: of several versions any may.
function palettesOf({ models }, document) {
  const names = document.models ? Object.values(document.models) : [document.model];
  const answered = state.models.filter(({ name }) => names.includes(name));
  return Object.fromEntries([...models, ...answered].map(({ task, palette }) => [task, palette]));
}

async function ask() {
  const file = state.current;
  if (!file) return;
  state.asking?.abort();
  const asking = new AbortController();
  state.asking = asking;
  if (!chosenTasks().length) {
    file.shown ??= showPicture(file);
    clear();
    showProblem(new Problem("No task is chosen", "Choose at least one task that has a model."));
    return;
  }
  const request = requestFor(Math.min(LOWEST_SCORE, modelScore()));
  const query = new URLSearchParams([...request.parameters]).toString();
  const url = query ? `${request.path}?${query}` : request.path;
  const post = (accept) => call(url, { method: "POST", body: file.blob, headers: { Accept: accept }, signal: asking.signal });
  const started = performance.now();
  const responding = post("application/json"); // before all else: the rest is done while the service works
  file.shown ??= showPicture(file);
  clear();
  const slow = setTimeout(() => element("picture").classList.add("busy"), SLOW_MS);
  try {
    const response = await responding;
    const text = await response.text();
    const elapsedMs = performance.now() - started;
    const shown = await file.shown;
    if (state.asking !== asking) return;
    const document = JSON.parse(text);
    const answers = answersOf(request, document.results[0]);
    const items = itemsOf(answers, palettesOf(request, document), colours());
    state.answer = { request, answers, items, text };
    if (shown) stage.setItems(items.filter(({ box, mask }) => box || mask));
    else {
      // A format that the browser does not know: the service draws it.
      const drawing = await (await post("image/webp")).blob();
      if (state.asking !== asking) return;
      await stage.show(drawing, `${file.name} with the answer drawn on it`);
    }
    showAnswer(shown);
    showTimeline(serverTiming(response.headers.get("server-timing")), elapsedMs, request.models);
  } catch (error) {
    if (error.name === "AbortError" || state.asking !== asking) return;
    if (error.status === 401) askForKey();
    else showProblem(error);
    showCode();
  } finally {
    clearTimeout(slow);
    if (state.asking === asking) element("picture").classList.remove("busy");
  }
}

// --- what is shown -------------------------------------------------------------------------------------------------

function showTiles() {
  element("tiles").disabled = chosenTasks().every((task) => task === "classify");
}

function clear() {
  showTiles();
  state.answer = null;
  clearTimeout(state.waiting);
  for (const id of ["problem", "answer", "timings", "code", "raw", "toolbar", "classes"]) element(id).hidden = true;
  element("summary").textContent = "";
  stage.setItems([]);
  stage.draw();
}

function showProblem(error) {
  element("problem-title").textContent = error.title ?? "The page failed";
  element("problem-detail").textContent = error.detail ?? error.message;
  element("problem").hidden = false;
  const retry = element("retry");
  retry.hidden = !(error.retryAfterS || error.status === 0 && error.title?.startsWith("Cannot reach"));
  const countDown = (seconds) => {
    retry.disabled = seconds > 0;
    retry.textContent = seconds > 0 ? `Try again in ${seconds} s` : "Try again";
    if (seconds > 0) state.waiting = setTimeout(() => countDown(seconds - 1), 1000);
  };
  countDown(Math.min(error.retryAfterS ?? 0, 600));
}

function isShown(item) {
  return !state.hidden.has(item.label) && (item.kind !== "detect" || item.score > Number(element("score").value));
}

function showAnswer(onCanvas) {
  const { answers, items } = state.answer;
  const has = (member) => Object.values(answers).some((answer) => answer[member]);
  element("score-field").hidden = !has("detections");
  element("opacity-field").hidden = !onCanvas || !items.some(({ mask }) => mask);
  element("save-drawing").disabled = !onCanvas;
  element("score").min = String(Math.min(LOWEST_SCORE, modelScore()));
  element("score").value = String(modelScore());
  element("toolbar").hidden = false;
  const labels = new Map(items.map(({ label, colour }) => [label, colour]));
  state.hidden = new Set(labels.has("background") ? ["background"] : []);
  element("class-choices").replaceChildren(...[...labels].map(([label, colour]) => {
    const box = make("input", { type: "checkbox", checked: !state.hidden.has(label) });
    box.addEventListener("change", () => {
      if (box.checked) state.hidden.delete(label);
      else state.hidden.add(label);
      refresh();
    });
    const swatch = make("span", { className: "swatch" });
    swatch.style.setProperty("--colour", colour);
    return make("label", { className: "choice" }, box, swatch, label);
  }));
  element("classes").hidden = !labels.size || !onCanvas;
  element("answer").hidden = false;
  element("raw").hidden = false;
  showJson();
  refresh();
}

// Only where it is seen: masks make it long.
function showJson() {
  if (!element("raw-details").open || !state.answer) return;
  const pretty = JSON.stringify(JSON.parse(state.answer.text), null, 2);
  const more = pretty.length - JSON_SHOWN;
  element("json").textContent = more > 0 ? `${pretty.slice(0, JSON_SHOWN)}\n… ${more} more characters` : pretty;
}

// After a change of the score, or of the classes that are shown: no new request.
function refresh() {
  if (!state.answer) return;
  const { answers, items } = state.answer;
  element("score-value").textContent = Number(element("score").value).toFixed(2);
  stage.draw();
  showAnswers(answers, items, isShown, (item) => stage.highlight(item));
  const words = inWords(answers, items, isShown);
  element("summary").textContent = words;
  element("canvas").ariaLabel = `${state.current.name}: ${words}`;
  showCode();
}

function showCode() {
  if (!chosenTasks().length) return;
  const score = state.answer ? Number(element("score").value) : modelScore();
  const request = requestFor(score);
  element("code-text").textContent = LANGUAGES[state.language]({ ...request, file: state.current.name, key: key.get() !== null });
  element("code").hidden = false;
}

// Whether the browser could draw it.
async function showPicture({ blob, name }) {
  const shown = await stage.show(blob);
  element("canvas").hidden = !shown;
  element("canvas").ariaLabel = name;
  element("empty").hidden = true;
  return shown;
}

// --- pictures --------------------------------------------------------------------------------------------------------

function select(file) {
  state.current = file;
  element("ask").disabled = false;
  for (const button of document.querySelectorAll("#files button")) button.ariaPressed = String(state.files[button.dataset.at] === file);
  element("sample-about").textContent = file.about ?? "";
  file.shown = null;
  ask();
  if (matchMedia("(max-width: 56rem)").matches) element("picture").scrollIntoView(); // it is below the controls
}

function choose(files) {
  const chosen = files.slice(0, MAX_FILES);
  if (!chosen.length) return;
  for (const { thumbnail } of state.files) if (thumbnail) URL.revokeObjectURL(thumbnail);
  state.files = chosen;
  element("files").hidden = chosen.length < 2;
  element("files").replaceChildren(...chosen.map((file, at) => {
    file.thumbnail = chosen.length < 2 ? null : URL.createObjectURL(file.blob);
    const thumbnail = make("img", { src: file.thumbnail ?? "", alt: file.name, loading: "lazy" });
    thumbnail.addEventListener("error", () => thumbnail.replaceWith(file.name)); // the browser cannot show HEIC or TIFF
    const button = make("button", { type: "button", title: file.name, ariaPressed: "false", dataset: { at } }, thumbnail);
    button.addEventListener("click", () => select(file));
    return make("li", {}, button);
  }));
  select(chosen[0]);
}

const chooseFiles = (list) => choose([...list].map((blob) => ({ blob, name: blob.name })));

function showSamples() {
  element("samples").append(...SAMPLES.map(({ file, name, title, about }) => {
    const button = make("button", { type: "button", title }, make("img", { src: file, alt: title, loading: "lazy" }));
    button.addEventListener("click", async () => {
      try {
        choose([{ blob: await (await call(file)).blob(), name, about: `${title}. ${about}` }]);
      } catch (error) {
        clear();
        showProblem(error);
      }
    });
    return make("li", {}, button);
  }));
}

// --- models and the state of the service -------------------------------------------------------------------------------

function showModels() {
  element("tasks").replaceChildren(...Object.entries(TASKS).map(([task, title]) => {
    const mine = state.models.filter((model) => model.task === task);
    const box = make("input", { type: "checkbox", id: `task-${task}`, checked: mine.length > 0, disabled: !mine.length });
    const choice = make("select", { id: `model-${task}`, ariaLabel: `Model: ${title}`, disabled: !mine.length },
      ...mine.map(({ name, default: chosen }) => make("option", { value: name, selected: chosen }, name)));
    const about = make("p", { className: "hint" });
    const describe = () => {
      const model = chosenModel(task);
      about.replaceChildren(...(model ? [modelInWords(model), " ", make("a", { href: `models/${encodeURIComponent(model.name)}` }, "card")] : ["no model of this service has this task"]));
    };
    box.addEventListener("change", ask);
    choice.addEventListener("change", () => { describe(); ask(); });
    queueMicrotask(describe);
    return make("div", { className: "field" }, make("label", { className: "choice" }, box, title), choice, about);
  }));
}

function modelInWords(model) {
  const [figure] = Object.entries(model.accuracy?.metrics ?? {});
  const measured = figure ? `; ${METRICS[figure[0]] ?? figure[0]} ${(100 * figure[1]).toFixed(1)} %` : "";
  return `${classesInWords(model.labels)}; ${model.precision} on ${model.device}${measured};`;
}

// All names of a few classes, or the first two of many.
function classesInWords(labels) {
  return labels.length < 4 ? labels.join(", ") : `${labels.length} classes: ${labels.slice(0, 2).join(", ")}, …`;
}

function showParameters() {
  element("parameters").append(...PARAMETERS.map(({ label, task, ...given }) => {
    const input = make("input", { type: "number", id: given.name, ...given });
    input.addEventListener("change", ask);
    return make("div", { className: "field" }, make("label", { htmlFor: given.name }, label), input);
  }));
  element("tiles").addEventListener("change", ask);
}

function askForKey() {
  showState("API key required", false);
  element("key-hint").textContent = key.get() !== null ? "This key is wrong." : "Enter a key of this service.";
  element("key-form").hidden = false;
  element("key").focus();
}

function showState(text, good) {
  element("state").textContent = text;
  element("state").classList.toggle("good", good);
}

// Reads what is served once, and whether it is ready again and again while the page is visible.
async function watch() {
  let wait = WATCH_MS;
  try {
    if (!document.hidden || !state.models.length) {
      const ready = await fetch("readyz");
      const { detail } = await ready.json();
      if (!state.models.length) {
        state.models = (await (await call("models")).json()).models;
        showModels();
      }
      showState(ready.ok ? "ready" : `not ready: ${detail}`, ready.ok);
      if (!ready.ok) wait = RETRY_MS;
    }
  } catch (error) {
    if (error.status === 401) return askForKey();
    showState(error.status ? `not ready: ${error.title}` : "cannot reach the service", false);
    wait = RETRY_MS;
  }
  state.watching = setTimeout(watch, wait);
}

// --- events --------------------------------------------------------------------------------------------------------

function listenToPictures() {
  element("file").addEventListener("change", ({ target }) => chooseFiles(target.files));
  document.addEventListener("paste", ({ clipboardData }) => { if (clipboardData.files.length) chooseFiles(clipboardData.files); });
  for (const kind of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(kind, (event) => {
      event.preventDefault();
      element("drop").classList.toggle("over", kind === "dragover");
      if (kind === "drop") chooseFiles(event.dataTransfer.files);
    });
  }
  element("camera-button").hidden = !navigator.mediaDevices?.getUserMedia;
  element("camera-button").addEventListener("click", async () => {
    try {
      const blob = await takePicture();
      if (blob) choose([{ blob, name: "camera.jpg" }]);
    } catch (error) {
      clear();
      showProblem(new Problem("There is no picture from the camera", error.message));
    }
  });
}

function listenToAnswers() {
  element("score").addEventListener("input", refresh);
  element("opacity").addEventListener("input", ({ target }) => { stage.opacity = Number(target.value); stage.draw(); });
  new ResizeObserver(() => stage.fit()).observe(stage.image);
  element("canvas").addEventListener("pointermove", ({ offsetX, offsetY, target }) => {
    const item = stage.at(offsetX / target.clientWidth, offsetY / target.clientHeight);
    if (item !== stage.highlighted) stage.highlight(item);
  });
  element("canvas").addEventListener("pointerleave", () => stage.highlight(null));
  const stem = () => state.current.name.replace(/\.[^.]*$/, "");
  element("save-drawing").addEventListener("click", async () => download(await stage.drawing(), `${stem()}.answer.png`));
  element("save-json").addEventListener("click", () => {
    download(new Blob([state.answer.text], { type: "application/json" }), `${stem()}.json`);
  });
  element("raw-details").addEventListener("toggle", showJson);
  element("copy").addEventListener("click", async ({ target }) => {
    await navigator.clipboard.writeText(element("code-text").textContent);
    target.textContent = "Copied";
    setTimeout(() => { target.textContent = "Copy"; }, 1500);
  });
}

function listenToTabs() {
  element("languages").append(...Object.keys(LANGUAGES).map((language, at) => {
    const tab = make("button", { type: "button", id: `tab-${language}`, tabIndex: at ? -1 : 0 }, language);
    tab.role = "tab";
    tab.setAttribute("aria-selected", String(!at));
    tab.setAttribute("aria-controls", "code-panel");
    return tab;
  }));
  element("code-panel").setAttribute("aria-labelledby", `tab-${state.language}`);
  tabs(element("languages"), (tab) => {
    state.language = tab.textContent;
    element("code-panel").setAttribute("aria-labelledby", tab.id);
    showCode();
  });
  tabs(document.querySelector(".top .tabs"), (tab) => {
    const isLive = tab.id === "tab-live";
    element("try").hidden = isLive;
    element("live").hidden = !isLive;
    if (isLive) live.start();
    else live.stop();
  });
}

element("form").addEventListener("submit", (event) => { event.preventDefault(); ask(); });
element("retry").addEventListener("click", ask);
element("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key.set(element("key").value);
  element("key").value = "";
  element("key-form").hidden = true;
  clearTimeout(state.watching);
  watch().then(ask);
});
showParameters();
showModels();
showSamples();
listenToPictures();
listenToAnswers();
listenToTabs();
watch();
