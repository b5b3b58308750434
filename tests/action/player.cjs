// player.js with a page and a server made of stubs: node tests/action/player.cjs CASE. Ends with 1 where a case fails.

const assert = require('assert'), fs = require('fs'), path = require('path');

const CODE = fs.readFileSync(path.join(__dirname, '../../pipelines/action/player.js'), 'utf8');
const tick = (ms = 5) => new Promise(next => setTimeout(next, ms));
const pen = new Proxy({}, {get: () => () => {}, set: () => true});

class Element {
  constructor() {
    this.dataset = {};
    this.children = [];
    this.style = {setProperty() {}};
    this.parentElement = {style: {setProperty() {}}};
    this.classList = {toggle() {}, contains: () => false};
  }
  replaceChildren(...children) { this.children = children; }
  append(...children) { this.children.push(...children); }
  getContext() { return pen; }
  toBlob(done) { setTimeout(() => done({}), 1); }
  querySelectorAll() { return []; }
}

class Video extends Element {
  videoWidth = 64;
  videoHeight = 48;
  waiting = [];
  loads(given) { if (given) setTimeout(() => this.onloadeddata?.(), 3); }
  set src(given) { this.source = given; this.loads(given); }
  get src() { return this.source; }
  set srcObject(given) { this.media = given; this.loads(given); }
  get srcObject() { return this.media; }
  async play() {}
  pause() {}
  removeAttribute() { this.source = undefined; }
  requestVideoFrameCallback(call) { this.waiting.push(call); }
  frame(number) { this.waiting.splice(0).forEach(call => call(performance.now(), {presentedFrames: number})); }
}

// fetching, asking: milliseconds that an example and the camera take. gone: the server does not answer an end.
function page({fetching = 1, asking = 1, gone = false, classes = 16, poses = true}) {
  const parts = {}, listeners = [], tracks = [], triggered = [], root = new Element(), setup = new Element();
  const part = name => parts[name] ||= name === 'video' ? new Video() : new Element();
  const examples = ['0', '1'].map(index => Object.assign(new Element(), {dataset: {example: index}}));
  root.dataset.auto = '0';
  root.querySelector = selector => part(selector.match(/data-part="(.*)"/)[1]);
  root.querySelectorAll = selector => selector.includes('data-example') ? examples : [];
  setup.dataset.setup = JSON.stringify({words: {}, names: {}, weights: 'auto', backend: 'local', threshold: 0.5});
  const getUserMedia = async () => {
    await tick(asking);
    const track = {stopped: false, stop() { this.stopped = true; }};
    tracks.push(track);
    return {getTracks: () => [track], getVideoTracks: () => [track]};
  };
  const made = {
    window: {addEventListener: (name, call) => listeners.push([name, call]),
      dispatchEvent: event => listeners.forEach(([name, call]) => name === event.type && call(event))},
    CustomEvent: class { constructor(type, {detail}) { Object.assign(this, {type, detail}); } },
    document: {querySelector: () => setup, createElement: () => new Element(), addEventListener() {},
      body: new Element(), hidden: false},
    navigator: {mediaDevices: {getUserMedia}},
    IntersectionObserver: class { observe() {} },
    FileReader: class { readAsDataURL() { setTimeout(() => this.onload(), 1); } },
    URL: {createObjectURL: () => 'blob:', revokeObjectURL() {}},
    fetch: async () => { await tick(fetching); return {blob: async () => ({})}; },
    requestAnimationFrame: call => setTimeout(call, 1),
  };
  for (const [name, value] of Object.entries(made)) Object.defineProperty(globalThis, name, {value, configurable: true});
  const known = Array.from({length: classes}, (_, k) => `class ${k}`);
  const update = {p: known.map((_, k) => k === classes - 1 ? 0.9 : 0), f: [], action: null, time: 0.1, taught: []};
  const server = {
    open: async () => ({ticket: 'a', known, future: 2, poses}),
    look: async () => ({served: true, pose: null, update, seconds: 0, waited: 0, pose_seconds: 0, model_seconds: 0}),
    finish: async () => { if (gone) throw new TypeError('gone'); return {update: null}; },
    example: async () => ({address: 'data:'}),
  };
  Function('element', 'trigger', 'server', CODE)({querySelector: () => root}, name => triggered.push(name), server);
  return {part, root, tracks, triggered, examples, video: part('video')};
}

const CASES = {
  async plays() {
    const {part, root, examples, video, triggered} = page({});
    examples[0].onclick();
    await tick(60);
    assert.equal(root.dataset.state, 'running');
    assert.deepEqual(triggered, ['play']);
    video.frame(1);
    await tick(40);
    assert.equal(part('labels').children.length, 16);
    assert.equal(part('nobody').hidden, false);
    video.onended();
    await tick(60);
    assert.equal(root.dataset.state, 'still');
    assert.equal(part('told').textContent, 'ended');
  },
  async late_example() {
    const {part, root, examples, video, tracks} = page({fetching: 80});
    examples[0].onclick();
    await tick(10);
    part('camera').onclick();
    await tick(200);
    assert.equal(root.dataset.state, 'running');
    assert.ok(video.srcObject, 'the camera is shown');
    assert.equal(tracks[0].stopped, false);
  },
  async late_camera() {
    const {part, root, examples, video, tracks} = page({asking: 80});
    part('camera').onclick();
    await tick(10);
    examples[0].onclick();
    await tick(200);
    assert.equal(root.dataset.state, 'running');
    assert.ok(video.src && !video.srcObject, 'the example is shown');
    assert.equal(tracks[0].stopped, true, 'a camera that nobody watches is off');
  },
  async server_gone() {
    const {part, root, examples} = page({gone: true});
    examples[0].onclick();
    await tick(60);
    examples[1].onclick();
    await tick(80);
    assert.equal(root.dataset.state, 'running', 'the click counts');
    part('stop').onclick();
    await tick(30);
    assert.equal(part('told').textContent, 'stopped');
  },
  async another_model() {
    const {part, examples, video} = page({classes: 401, poses: false});
    examples[0].onclick();
    await tick(60);
    video.frame(1);
    await tick(40);
    const shown = part('labels').children.map(row => row.textContent);
    assert.equal(shown.length, 30);
    assert.equal(shown[0], 'class 400', 'the likeliest comes first');
    assert.equal(part('nobody').hidden, true, 'who is not looked for is not missing');
  },
};

CASES[process.argv[2]]().then(() => process.exit(0), error => {
  console.error(error);
  process.exit(1);
});
