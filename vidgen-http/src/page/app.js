// The page to try it. State lives in three places: the server (jobs), localStorage (which jobs
// this browser made) and the fragment of the address (which one is shown), so a reload goes on.
"use strict";

const API = document.documentElement.dataset.api;
const STORE = "vidgen.jobs";
const MAX_RECENT = 12;
const LIMITS = { prompt: 500, script: 1000 };
const NUMBERS = ["duration_seconds", "seed"];
const LIVE = ["queued", "processing"];
const POLL_MS = 1000;
const MAX_POLL_MS = 15000;

const $ = (id) => document.getElementById(id);
const form = $("form");
const show = (element, visible) => { element.hidden = !visible; };
const say = (id, text) => { $(id).textContent = text; show($(id), Boolean(text)); };

// --- talking to the API ---

class Failure extends Error {
  constructor(status, body) {
    const words = body.error || `The server answered ${status}`;
    const whole = (body.details || []).filter((d) => !d.field).map((d) => d.message);
    super([words, body.detail, ...whole].filter(Boolean).join(": "));
    this.status = status;
    this.details = (body.details || []).filter((d) => d.field);
    this.id = body.request_id;
  }
}

async function call(method, path, body, headers = {}) {
  const options = { method, headers: { Accept: "application/json", ...headers } };
  if (body !== undefined) {
    options.body = body;
    options.headers["Content-Type"] = "application/json";
  }
  let response;
  try {
    response = await fetch(API + path, options);
  } catch {
    const away = new Failure(0, { error: "The server cannot be reached" });
    away.away = true;
    throw away;
  }
  if (response.status === 204) return null;
  const json = await response.json().catch(() => ({}));
  if (!response.ok) throw new Failure(response.status, json);
  return json;
}

function readable(failure) {
  if (failure.away) return "The server cannot be reached. Check the connection and try again.";
  if (failure.status === 401) return "You are not signed in, so the server refused this.";
  if (failure.status >= 500 && failure.id) return `${failure.message}. If it stays, report the id ${failure.id}.`;
  return failure.message;
}

// --- what this browser remembers ---

const memory = {
  jobs() {
    try {
      const jobs = JSON.parse(localStorage.getItem(STORE));
      return Array.isArray(jobs) ? jobs.filter((j) => j && typeof j.id === "string") : [];
    } catch {
      return [];
    }
  },
  save(jobs) {
    // Private windows may refuse; the page works without it.
    try { localStorage.setItem(STORE, JSON.stringify(jobs.slice(0, MAX_RECENT))); } catch { /* as said */ }
  },
  add(id, prompt) { this.save([{ id, prompt }, ...this.jobs().filter((j) => j.id !== id)]); },
  remove(id) { this.save(this.jobs().filter((j) => j.id !== id)); },
};

// --- the form ---

const fieldOf = (name) => form.querySelector(`[data-field="${CSS.escape(name)}"]`);

function setProblem(name, message) {
  const field = fieldOf(name);
  if (!field) return false;
  const text = field.querySelector(".problem");
  text.textContent = message ? sentence(message) : "";
  show(text, Boolean(message));
  for (const input of field.querySelectorAll("input, textarea, select")) {
    if (message) input.setAttribute("aria-invalid", "true");
    else input.removeAttribute("aria-invalid");
  }
  if (message && field.closest("details")) field.closest("details").open = true;
  return true;
}

const sentence = (text) => `${text.charAt(0).toUpperCase()}${text.slice(1)}${/[.!?]$/.test(text) ? "" : "."}`;

function clearProblems() {
  for (const field of form.querySelectorAll("[data-field]")) setProblem(field.dataset.field, "");
  say("form-error", "");
}

function showProblems(failure) {
  const elsewhere = failure.details.filter((d) => !setProblem(d.field, d.message));
  const first = form.querySelector("[aria-invalid=true]");
  if (first) first.focus();
  if (elsewhere.length) say("form-error", elsewhere.map((d) => `${d.field} ${d.message}`).join("; "));
  else if (!failure.details.length) say("form-error", readable(failure));
}

function requestOf() {
  const request = {};
  for (const [name, raw] of new FormData(form)) {
    const value = raw.trim();
    if (name === "prompt") request.prompt = value;
    else if (value && NUMBERS.includes(name)) request[name] = Number(value);
    else if (value) request[name] = value;
  }
  return request;
}

function randomKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (b) => b.toString(16).padStart(2, "0")).join("");
}

// A create whose answer was lost is sent again under the same key: one video, not two.
let unanswered = null;

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  clearProblems();
  const request = requestOf();
  if (!request.prompt) {
    setProblem("prompt", "say what the video should show");
    $("prompt").focus();
    return;
  }
  const body = JSON.stringify(request);
  if (!unanswered || unanswered.body !== body) unanswered = { body, key: randomKey() };
  $("submit").disabled = true;
  try {
    const job = await call("POST", "/generate", body, { "Idempotency-Key": unanswered.key });
    unanswered = null;
    memory.add(job.job_id, request.prompt);
    open(job.job_id);
    if (matchMedia("(max-width: 860px)").matches) $("screen").scrollIntoView({ behavior: "smooth", block: "center" });
  } catch (failure) {
    if (!failure.away) unanswered = null;
    showProblems(failure);
  } finally {
    $("submit").disabled = false;
  }
});

form.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
});

form.addEventListener("input", (event) => {
  const field = event.target.closest("[data-field]");
  if (field) setProblem(field.dataset.field, "");
  count();
});

function count() {
  for (const [name, limit] of Object.entries(LIMITS)) {
    const length = [...$(name).value].length;
    $(`${name}-count`).textContent = `${length} / ${limit}`;
    $(`${name}-count`).classList.toggle("over", length > limit);
  }
}

$("examples").addEventListener("click", (event) => {
  if (event.target.tagName !== "BUTTON") return;
  $("prompt").value = event.target.textContent;
  setProblem("prompt", "");
  count();
  $("prompt").focus();
});

// --- the job on the screen ---

let current = null;  // its id
let shown = null;    // what the server last said of it
let timer = 0;
let pause = POLL_MS;
let refreshed = false;

function open(id) {
  if (location.hash.slice(1) === id) start(id);
  else location.hash = id; // start() follows by the event
}

window.addEventListener("hashchange", () => start(location.hash.slice(1)));

function start(id) {
  clearTimeout(timer);
  current = id || null;
  shown = null;
  pause = POLL_MS;
  refreshed = false;
  say("job-error", "");
  setVideo(null);
  if (!current) {
    render(null);
    return;
  }
  const known = memory.jobs().find((j) => j.id === id);
  render({ job_id: id, status: "queued", progress: 0, steps: [], request: { prompt: known ? known.prompt : "" } });
  poll();
}

async function poll() {
  clearTimeout(timer);
  const id = current;
  if (!id) return;
  try {
    const job = await call("GET", `/jobs/${encodeURIComponent(id)}`);
    if (id !== current) return;
    pause = POLL_MS;
    say("job-error", "");
    shown = job;
    render(job);
    if (!LIVE.includes(job.status)) {
      renderRecent();
      return;
    }
  } catch (failure) {
    if (id !== current) return;
    if (failure.status === 404) {
      memory.remove(id);
      render({ job_id: id, status: "gone", steps: [], request: { prompt: "" } });
      renderRecent();
      return;
    }
    // The job goes on without us; look again, less often.
    say("job-error", `${readable(failure)} Trying again.`);
    pause = Math.min(pause * 2, MAX_POLL_MS);
  }
  timer = setTimeout(poll, pause);
}

document.addEventListener("visibilitychange", () => {
  if (!document.hidden && shown && LIVE.includes(shown.status)) poll();
});

const WORDS = {
  image: ["Image", "Drawing the first picture"],
  video: ["Video", "Making it move"],
  speech: ["Voice", "Recording the voice"],
  compose: ["Mix", "Putting it together"],
  thumbnail: ["Poster", "Taking the poster picture"],
};

function phaseOf(job) {
  if (job.cancel_requested) return "Canceling";
  if (job.status === "queued") return job.progress > 0 ? "Waiting to go on" : "Waiting for its turn";
  const step = job.steps.find((s) => s.state === "processing");
  return step && WORDS[step.step] ? WORDS[step.step][1] : "Working";
}

const dollars = (amount) => {
  const decimals = amount !== 0 && Math.abs(amount) < 0.1 ? 4 : 2;
  return `$${amount.toFixed(decimals)}`;
};
const seconds = (s) => `${Number(s.toFixed(1))} s`;
const clock = (s) => (s < 60 ? `${Math.floor(s)} s` : `${Math.floor(s / 60)} min ${Math.floor(s % 60)} s`);

function render(job) {
  const status = job ? job.status : null;
  const live = LIVE.includes(status);
  const done = status === "completed" && job.output;
  show($("empty"), !job);
  show($("working"), live);
  show($("ended"), Boolean(job) && !live && !done);
  show($("below"), Boolean(job) && status !== "gone");
  document.title = live ? `${job.progress} % · vidgen` : "vidgen: a video from a sentence";
  setVideo(done ? job.output : null);
  if (!job) return;

  if (live) {
    $("percent").textContent = job.progress;
    $("bar").setAttribute("aria-valuenow", job.progress);
    $("bar-fill").style.transform = `scaleX(${job.progress / 100})`;
    const phase = phaseOf(job);
    if ($("phase").textContent !== phase) $("phase").textContent = phase;
    $("steps").replaceChildren(...job.steps.map((s) => {
      const item = document.createElement("li");
      item.className = s.state;
      item.textContent = WORDS[s.step] ? WORDS[s.step][0] : s.step;
      return item;
    }));
    tick();
  } else if (!done) {
    const titles = { failed: "This one did not work", canceled: "Canceled", gone: "This video is gone" };
    $("ended-title").textContent = titles[status] || "Ended";
    $("ended-reason").textContent = job.error ? sentence(job.error)
      : status === "gone" ? "It was deleted, or it was kept for its time and then removed."
      : status === "canceled" ? "Nothing more happens with it." : "";
  }

  $("job-prompt").textContent = job.request.prompt;
  const facts = [];
  if (done) facts.push(["Length", seconds(job.output.duration_seconds)]);
  if (job.width) facts.push(["Size", `${job.width} × ${job.height}`]);
  if (job.cost !== undefined) facts.push(["Cost", dollars(job.cost)]);
  if (done && job.completed_at) facts.push(["Made in", clock((Date.parse(job.completed_at) - Date.parse(job.created_at)) / 1000)]);
  $("facts").replaceChildren(...facts.map(([name, value]) => {
    const fact = document.createElement("div");
    fact.append(Object.assign(document.createElement("dt"), { textContent: name }),
      Object.assign(document.createElement("dd"), { textContent: value }));
    return fact;
  }));
  const notes = job.notes || [];
  $("notes").replaceChildren(...notes.map((n) => Object.assign(document.createElement("li"), { textContent: sentence(n) })));
  show($("notes"), notes.length > 0);

  show($("cancel"), live);
  $("cancel").disabled = Boolean(job.cancel_requested);
  show($("retry"), status === "failed" || status === "canceled");
  show($("reuse"), !live && Boolean(job.request.prompt));
  show($("remove"), !live && status !== "gone");
  show($("download"), Boolean(done));
  if (done) $("download").href = job.output.video_url;
}

function tick() {
  if (!shown || !LIVE.includes(shown.status)) {
    $("elapsed").textContent = "";
    return;
  }
  const elapsed = Math.max(0, (Date.now() - Date.parse(shown.created_at)) / 1000);
  const left = shown.estimated_time_seconds - elapsed;
  $("elapsed").textContent = left > 1 ? `about ${clock(left)} left` : `${clock(elapsed)} so far`;
}
setInterval(tick, 1000);

function setVideo(output) {
  const video = $("video");
  show(video, Boolean(output));
  // Links change with every answer, the file behind them does not: a playing video stays.
  const path = output ? output.video_url.split("?")[0] : "";
  if (video.dataset.path === path) return;
  video.dataset.path = path;
  if (!output) {
    video.removeAttribute("src");
    video.removeAttribute("poster");
    video.load();
    return;
  }
  if (output.thumbnail_url) video.poster = output.thumbnail_url;
  else video.removeAttribute("poster");
  video.src = output.video_url;
}

$("video").addEventListener("error", () => {
  if (!current || !$("video").dataset.path) return;
  if (refreshed) {
    say("job-error", "This browser could not play the video. Downloading it may help.");
    return;
  }
  // Links end after an hour; a new answer has a new one.
  refreshed = true;
  $("video").dataset.path = "";
  poll();
});

async function act(button, work) {
  button.disabled = true;
  say("job-error", "");
  try {
    await work();
  } catch (failure) {
    say("job-error", readable(failure));
    if (failure.status === 409) poll();
  } finally {
    button.disabled = false;
  }
}

$("cancel").addEventListener("click", () => act($("cancel"), async () => {
  await call("DELETE", `/jobs/${current}`);
  await poll();
}));
$("retry").addEventListener("click", () => act($("retry"), async () => {
  await call("POST", `/jobs/${current}/retry`);
  await poll();
  renderRecent();
}));
$("remove").addEventListener("click", () => act($("remove"), async () => {
  await call("DELETE", `/jobs/${current}`);
  memory.remove(current);
  history.replaceState(null, "", location.pathname);
  start("");
  renderRecent();
}));
$("reuse").addEventListener("click", () => {
  const request = shown ? shown.request : {};
  for (const name of ["prompt", "script", "duration_seconds", "resolution", "style", "negative_prompt", "voice", "seed"]) {
    if ($(name)) $(name).value = request[name] ?? (name === "resolution" ? "720p" : "");
  }
  const ratio = form.querySelector(`[name=aspect_ratio][value="${request.aspect_ratio || "16:9"}"]`);
  if (ratio) ratio.checked = true;
  clearProblems();
  count();
  $("prompt").focus();
});

// --- recent jobs ---

const SHORT = { queued: "Waiting", processing: "Working", failed: "Did not work", canceled: "Canceled" };
let drawing = 0;

async function renderRecent() {
  const mine = ++drawing;
  const jobs = memory.jobs();
  const states = await Promise.all(jobs.map((j) => call("GET", `/status/${encodeURIComponent(j.id)}`).catch((f) => f)));
  if (mine !== drawing) return;
  const items = [];
  jobs.forEach((job, n) => {
    const state = states[n];
    if (state.status === 404) {
      memory.remove(job.id);
      return;
    }
    const button = document.createElement("button");
    button.type = "button";
    button.dataset.id = job.id;
    if (job.id === current) button.setAttribute("aria-current", "true");
    const thumb = Object.assign(document.createElement("span"), { className: "thumb" });
    const picture = state.output && state.output.thumbnail_url;
    if (picture) thumb.append(Object.assign(document.createElement("img"), { src: picture, alt: "", loading: "lazy" }));
    else thumb.textContent = state.output ? "Video" : SHORT[state.status] || "Unknown";
    button.append(thumb, Object.assign(document.createElement("span"), { className: "text", textContent: job.prompt || job.id }));
    button.addEventListener("click", () => open(job.id));
    const item = document.createElement("li");
    item.append(button);
    items.push(item);
  });
  $("recent-list").replaceChildren(...items);
  show($("recent"), items.length > 0);
}

window.addEventListener("hashchange", renderRecent);

count();
// After a reload: what the address says; else the newest job, if it is still live.
if (location.hash.length > 1) {
  start(location.hash.slice(1));
} else {
  const newest = memory.jobs()[0];
  if (newest) {
    call("GET", `/status/${encodeURIComponent(newest.id)}`)
      .then((s) => { if (!current && LIVE.includes(s.status)) open(newest.id); })
      .catch(() => {});
  }
}
renderRecent();
