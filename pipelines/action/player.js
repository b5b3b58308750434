// The live page: a camera, a file or an example is played here, its frames go to the server one by one, and what comes
// back is drawn: the frame that was looked at with its skeleton, the actions over time, the forecast, the clock.
// element, server, trigger: as gradio gives them. Words, names and settings are in the page's setup element.

const MOST_IN_FLIGHT = 2;   // frames on the way: the next is coded and sent while one is looked at; never more
const SIDE = 640;           // longest side of the frames that are sent, pixels
const COLUMNS = 128;        // chunks in the timeline
const MOST_ROWS = 30;       // classes in the timeline
const CHUNK = 100;          // ms
const BONES = [[11, 12], [11, 13], [13, 15], [12, 14], [14, 16], [11, 23], [12, 24], [23, 24], [23, 25], [25, 27],
  [24, 26], [26, 28], [15, 19], [16, 20], [27, 31], [28, 32], [7, 0], [8, 0]];
const STAGES = ['captured', 'sent', 'waited', 'pose', 'model', 'drawn'];
const INKS = {captured: '#56b4e9', sent: '#0072b2', waited: '#d55e00', pose: '#009e73', model: '#e69f00', drawn: '#cc79a7'};
const root = element.querySelector('.gh-player');
const part = name => root.querySelector(`[data-part="${name}"]`);
const video = part('video'), screen = part('screen'), strip = part('strip');
const canvases = [0, 1, 2].map(() => document.createElement('canvas'));
let setup = null, run = null, spare = 0, shownText = null;

function settings() {
  const holder = document.querySelector('#action-setup [data-setup]');
  if (holder && holder.dataset.setup !== shownText) {
    shownText = holder.dataset.setup;
    setup = JSON.parse(shownText);
    write();
  }
  return setup;
}
const word = (key, values) => {
  let text = (setup && setup.words[key]) || '';
  for (const [name, value] of Object.entries(values || {})) text = text.replace(`[${name}]`, value);
  return text;
};
const nameOf = label => (setup && setup.names[label]) || label;
function write() {
  for (const each of root.querySelectorAll('[data-word]')) each.textContent = word(each.dataset.word);
}
function tell(key, values, bad) {
  const line = part('told');
  line.textContent = word(key, values) || key;
  line.classList.toggle('gh-no', !!bad);
}

// --- sources ---------------------------------------------------------------------------------------------------------

window.addEventListener('glasshouse-action', event => {
  if (event.detail === root || !run) return;
  stop();
  tell('stopped');
});
let begun = 0;  // how often something was begun: the first example by itself only if nothing was
async function begin(kind, choose) {
  const turn = ++begun;
  window.dispatchEvent(new CustomEvent('glasshouse-action', {detail: root}));  // one stream a page
  await stop();
  while (!settings()) await new Promise(next => setTimeout(next, 100));  // a click may come before they do
  if (turn !== begun) return;
  const mine = run = {kind, ticket: null, t0: 0, inFlight: 0, drawn: -1, cells: [], labels: [], looked: 0,
    missed: 0, presented: null, late: 0, updates: 0, spent: [], stopped: false};
  root.dataset.state = 'opening';
  tell('opening');
  try {
    await choose(mine);
    if (run !== mine) return release(mine);
    const opened = await server.open({weights: setup.weights, backend: setup.backend, threshold: setup.threshold,
      lessons: setup.lessons});
    if (run !== mine) { finished(opened); return release(mine); }
    if (opened.error) throw new Error(opened.error);
    Object.assign(mine, opened);
    (window.glasshouse ||= {}).action = opened.ticket;
    mine.labels = mine.known;
    rows(mine);
    empty();
    await video.play();
    mine.t0 = performance.now();
    root.dataset.state = 'running';
    tell(kind === 'camera' ? 'watching' : 'playing');
    trigger('play');  // the networks are loaded: the card says where they run
    video.requestVideoFrameCallback((now, about) => frame(mine, now, about));
  } catch (error) {
    if (run !== mine) return release(mine);
    await stop();
    if (run) return;
    const known = {NotAllowedError: 'refused', NotFoundError: 'nocamera', OverconstrainedError: 'nocamera',
      NotReadableError: 'busy', AbortError: 'busy', NotSupportedError: 'unreadable'}[error.name];
    tell(known || error.message, {}, true);
  }
}
async function camera(mine) {
  if (!navigator.mediaDevices) throw new Error(word('insecure'));
  mine.media = await navigator.mediaDevices.getUserMedia({audio: false,
    video: {width: {ideal: 640}, height: {ideal: 480}, frameRate: {ideal: 30}}});
  if (run !== mine) return;  // something else was chosen while the visitor was asked
  video.srcObject = mine.media;
  for (const track of mine.media.getVideoTracks()) track.onended = () => { if (run === mine) over(mine, 'unplugged'); };
  await ready();
}
async function file(mine, blob) {
  if (run !== mine) return;  // an example that came late must not take the place of what was chosen since
  mine.address = URL.createObjectURL(blob);
  video.srcObject = null;
  video.src = mine.address;
  await ready();
}
async function example(mine, index) {
  const found = await server.example(index);
  if (found.error) throw new Error(found.error);
  await file(mine, await (await fetch(found.address)).blob());
}
function ready() {
  return new Promise((good, bad) => {
    const unreadable = () => bad(Object.assign(new Error(), {name: 'NotSupportedError'}));
    video.onloadeddata = () => video.videoWidth > 0 ? good() : unreadable();
    video.onerror = unreadable;
  });
}
function release(mine) {
  if (mine.media) mine.media.getTracks().forEach(track => track.stop());
  if (mine.address) URL.revokeObjectURL(mine.address);
}
async function stop() {
  const mine = run;
  run = null;
  root.dataset.state = 'still';
  if (!mine) return;
  mine.stopped = true;
  video.onerror = null;
  video.pause();
  release(mine);
  video.removeAttribute('src');
  video.srcObject = null;
  await finished(mine);
}
async function finished(mine) {
  try {
    return mine.ticket ? await server.finish(mine.ticket) : {};
  } catch {  // a server that does not answer: what is begun next must not wait for it
    return {};
  }
}
async function over(mine, key) {
  if (run !== mine) return;
  run = null;
  while (mine.inFlight) await new Promise(next => setTimeout(next, 20));
  const ended = await finished(mine);
  release(mine);
  if (run !== null) return;  // something else was begun meanwhile: the page is its own
  if (ended.update) told(mine, ended, null);
  video.onerror = null;
  root.dataset.state = 'still';
  tell(key);
}

// --- frames ----------------------------------------------------------------------------------------------------------

function frame(mine, now, about) {
  if (run !== mine) return;
  video.requestVideoFrameCallback((now, about) => frame(mine, now, about));
  if (mine.presented !== null) mine.missed += Math.max(0, about.presentedFrames - mine.presented - 1);
  mine.presented = about.presentedFrames;
  if (mine.inFlight >= MOST_IN_FLIGHT) { mine.missed++; return; }
  const captured = about.captureTime;  // of cameras only, and not of all
  look(mine, captured > now - 2000 && captured <= now ? captured : now).catch(error => failed(mine, error));
}
function failed(mine, error) {
  if (run !== mine) return;
  stop();
  tell(error instanceof TypeError ? 'offline' : error.message, {}, true);
}
async function look(mine, captured) {
  mine.inFlight++;
  try {
    const canvas = canvases[spare = (spare + 1) % canvases.length];
    const scale = Math.min(1, SIDE / Math.max(video.videoWidth, video.videoHeight));
    canvas.width = Math.max(1, Math.round(video.videoWidth * scale));
    canvas.height = Math.max(1, Math.round(video.videoHeight * scale));
    canvas.getContext('2d').drawImage(video, 0, 0, canvas.width, canvas.height);
    const coded = await new Promise(done => canvas.toBlob(done, 'image/jpeg', 0.85));
    if (!coded) throw new Error(word('unreadable'));
    const address = await new Promise(done => {
      const reader = new FileReader();
      reader.onload = () => done(reader.result);
      reader.readAsDataURL(coded);
    });
    const sent = performance.now();
    const time = (captured - mine.t0) / 1000;
    const reply = await server.look([mine.ticket, time, address, settings().threshold]);
    const back = performance.now();
    if (mine.stopped) return;
    if (reply.error) throw new Error(reply.error);
    if (!reply.served || time <= mine.drawn) return;
    mine.drawn = time;
    mine.looked++;
    draw(canvas, reply.pose, mine);
    const spent = {captured: sent - captured, sent: Math.max(0, back - sent - reply.seconds * 1000),
      waited: reply.waited * 1000, pose: reply.pose_seconds * 1000, model: reply.model_seconds * 1000};
    told(mine, reply, {captured, back, spent});
  } finally {
    mine.inFlight--;
  }
}

// --- drawing ---------------------------------------------------------------------------------------------------------

function draw(canvas, pose, mine) {
  screen.width = canvas.width;
  screen.height = canvas.height;
  const pen = screen.getContext('2d');
  const mirrored = mine.kind === 'camera';
  pen.save();
  if (mirrored) { pen.translate(screen.width, 0); pen.scale(-1, 1); }
  pen.drawImage(canvas, 0, 0);
  if (pose) {
    const at = k => [pose[k][0] * screen.width, pose[k][1] * screen.height];
    const unit = Math.max(screen.width, screen.height) / 640;
    pen.lineCap = 'round';
    for (const [width, ink] of [[5, 'rgba(0,0,0,.55)'], [2.6, '#2dd4bf']]) {
      pen.lineWidth = width * unit;
      pen.strokeStyle = pen.fillStyle = ink;
      for (const [a, b] of BONES) {
        pen.globalAlpha = Math.min(pose[a][2], pose[b][2]) > 0.5 ? 1 : 0.3;
        pen.beginPath(); pen.moveTo(...at(a)); pen.lineTo(...at(b)); pen.stroke();
      }
      for (const k of [0, 11, 12, 13, 14, 15, 16, 23, 24, 25, 26, 27, 28]) {
        pen.globalAlpha = pose[k][2] > 0.5 ? 1 : 0.3;
        pen.beginPath(); pen.arc(...at(k), width * unit, 0, 7); pen.fill();
      }
    }
  }
  pen.restore();
  part('nobody').hidden = !!pose || !mine.poses;
}
function listed(mine) {  // numbers of the classes that have a row; of hundreds, as Kinetics has, those ever likeliest
  const all = mine.labels.map((_, k) => k);
  if (all.length <= MOST_ROWS) return all;
  const most = all.map(k => Math.max(0, ...mine.cells.map(update => update.p[k] || 0)));
  return all.sort((a, b) => most[b] - most[a]).slice(0, MOST_ROWS);
}
function rows(mine) {
  const labels = part('labels');
  mine.listed = listed(mine);
  labels.replaceChildren(...mine.listed.map(k => {
    const row = document.createElement('div');
    row.textContent = nameOf(mine.labels[k]);
    row.title = nameOf(mine.labels[k]);
    return row;
  }));
  strip.height = mine.listed.length * 8;
  strip.width = (COLUMNS + 1 + mine.future) * 4;
  part('strip').parentElement.style.setProperty('--rows', mine.listed.length);
  timeline(mine);
  clock(mine);
}
function empty() {
  part('action').textContent = '–';
  part('sure').textContent = '';
  part('forecast').replaceChildren();
  part('nobody').hidden = true;
  screen.getContext('2d').clearRect(0, 0, screen.width, screen.height);
}
function told(mine, reply, timing) {
  const update = reply.update;
  if (!update) return;
  mine.updates++;
  if (update.taught.length !== mine.labels.length - mine.known.length || update.taught.some(name => !mine.labels.includes(name))) {
    mine.labels = [...mine.known, ...update.taught];
    rows(mine);
  }
  mine.cells.push(update);
  mine.cells = mine.cells.slice(-COLUMNS);
  if (mine.labels.length > MOST_ROWS) rows(mine); else timeline(mine);
  now(mine, update);
  if (!timing) return;
  requestAnimationFrame(() => {
    const painted = performance.now();
    timing.spent.drawn = painted - timing.back;
    timing.spent.behind = painted - mine.t0 - update.time * 1000;  // since the chunk's end
    if (timing.spent.behind > CHUNK) mine.late++;
    mine.spent.push(timing.spent);
    mine.spent = mine.spent.slice(-50);
    clock(mine);
  });
}
function now(mine, update) {
  const action = part('action'), text = update.action ? nameOf(update.action) : word('nothing');
  if (action.textContent !== text) action.textContent = text;
  action.dataset.label = update.action || '';
  action.classList.toggle('gh-quiet', !update.action);
  const order = update.p.map((_, k) => k).sort((a, b) => update.p[b] - update.p[a]).slice(0, 3);
  part('sure').textContent = order.map(k => `${nameOf(mine.labels[k])} ${Math.round(update.p[k] * 100)} %`).join(' · ');
  const steps = [];  // neighbours that foretell the same are one cell
  update.f.forEach((row, k) => {
    const best = row.indexOf(Math.max(...row)), last = steps[steps.length - 1];
    if (last && last.best === best) { last.count++; last.share += row[best]; } else steps.push({best, count: 1, share: row[best], from: k + 1});
  });
  const cells = steps.map(step => {
    const cell = document.createElement('span'), share = step.share / step.count, name = nameOf(mine.labels[step.best]);
    cell.textContent = step.best === 0 ? '·' : name;
    cell.style.gridColumn = `span ${step.count}`;
    cell.style.setProperty('--s', `${Math.round(share * (step.best === 0 ? 12 : 60))}%`);
    cell.title = `+${(step.from / 10).toFixed(1)} s: ${name} ${Math.round(share * 100)} %`;
    return cell;
  });
  part('forecast').replaceChildren(...cells);
}
function timeline(mine) {
  const pen = strip.getContext('2d'), high = 8, wide = 4;
  const dark = document.body.classList.contains('dark');
  pen.clearRect(0, 0, strip.width, strip.height);
  const cell = (column, row, share, ink) => {
    if (share === undefined) return;  // of an action that was taught later
    pen.globalAlpha = 0.06 + 0.94 * share;
    pen.fillStyle = share < 0.02 ? '#94a3b8' : ink;
    pen.fillRect(column * wide, row * high, wide, high - 1);
  };
  const first = COLUMNS - mine.cells.length;
  mine.cells.forEach((update, k) => mine.listed.forEach((label, row) => cell(first + k, row, update.p[label], label ? '#0d9488' : '#94a3b8')));
  const newest = mine.cells[mine.cells.length - 1];
  if (newest) newest.f.forEach((p, k) => mine.listed.forEach((label, row) => cell(COLUMNS + 1 + k, row, p[label], label ? '#d97706' : '#94a3b8')));
  pen.globalAlpha = 1;
  pen.fillStyle = dark ? '#fff' : '#0f172a';
  pen.fillRect(COLUMNS * wide + 1, 0, 2, strip.height);
}
const median = values => {
  const order = [...values].sort((a, b) => a - b);
  return order.length ? order[order.length >> 1] : 0;
};
function clock(mine) {
  const last = mine.spent[mine.spent.length - 1], usual = {};
  for (const stage of [...STAGES, 'behind']) usual[stage] = median(mine.spent.map(each => each[stage]));
  const bar = (spent, name) => {
    const longest = Math.max(150, ...mine.spent.map(each => STAGES.reduce((sum, s) => sum + each[s], 0)));
    const row = document.createElement('div');
    row.className = 'gh-spent';
    const label = document.createElement('span');
    const total = STAGES.reduce((sum, stage) => sum + spent[stage], 0);
    label.textContent = `${name}: ${Math.round(total)} ms`;
    const track = document.createElement('div');
    for (const stage of STAGES) {
      const piece = document.createElement('i');
      piece.style.cssText = `width:${100 * spent[stage] / longest}%;background:${INKS[stage]}`;
      piece.title = `${word(stage)}: ${spent[stage].toFixed(1)} ms`;
      track.append(piece);
    }
    row.append(label, track);
    return row;
  };
  part('bars').replaceChildren(...(last ? [bar(last, word('newest')), bar(usual, word('median'))] : []));
  part('keys').replaceChildren(...STAGES.map(stage => {
    const key = document.createElement('span');
    key.innerHTML = `<i style="background:${INKS[stage]}"></i>`;
    key.append(`${word(stage)} ${last ? Math.round(usual[stage]) + ' ms' : ''}`);
    return key;
  }));
  const seconds = (performance.now() - mine.t0) / 1000;
  part('counts').textContent = last ? word('counts', {looked: mine.looked, missed: mine.missed,
    rate: (mine.looked / Math.max(seconds, 0.1)).toFixed(1), updates: mine.updates, late: mine.late,
    behind: Math.round(usual.behind)}) : '';
}

// --- buttons ---------------------------------------------------------------------------------------------------------

part('camera').onclick = () => begin('camera', camera);
part('stop').onclick = async () => { begun++; await stop(); if (!run) tell('stopped'); };
part('pick').onclick = () => part('file').click();
part('file').onchange = event => {
  const [chosen] = event.target.files;
  if (chosen) begin('file', mine => file(mine, chosen));
  event.target.value = '';
};
root.querySelectorAll('[data-example]').forEach(button => {
  button.onclick = () => begin('example', mine => example(mine, Number(button.dataset.example)));
});
video.onended = () => run && over(run, 'ended');
document.addEventListener('visibilitychange', () => {
  if (!run) return;
  if (document.hidden) tell('hidden'); else tell(run.kind === 'camera' ? 'watching' : 'playing');
});
window.addEventListener('pagehide', () => { if (run) release(run); });

// A result without a touch: the first example is played when the page is first seen.
let waiting = null;
new IntersectionObserver((seen, observer) => {
  if (!seen.some(each => each.isIntersecting)) return;
  observer.disconnect();
  waiting = setInterval(() => {
    if (!settings()) return;
    clearInterval(waiting);
    setInterval(settings, 500);
    if (root.dataset.auto === '1' && !begun) begin('example', mine => example(mine, 0));
  }, 100);
}).observe(root);
