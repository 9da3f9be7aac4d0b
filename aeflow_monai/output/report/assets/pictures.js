// Pictures of slices: read once, coloured and outlined here, so that opacity and mask can be changed.

// What runs along the axes of a block: slices, rows, columns; each from the first letter's side to the second's.
const DIRECTIONS = { axial: ["IS", "AP", "RL"], coronal: ["AP", "SI", "RL"], sagittal: ["RL", "SI", "AP"] };
const VIEWS = { axial: ["AP", "RL"], coronal: ["SI", "RL"], sagittal: ["SI", "AP"] }; // downwards, to the right
const flipped = (direction) => direction[1] + direction[0];

async function readSheet(url, block) {
  const image = new Image();
  image.src = url;
  await image.decode();
  const canvas = el("canvas", { width: image.width, height: image.height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  const pixels = context.getImageData(0, 0, image.width, image.height).data;
  const { rows, columns, across, numbers } = block;
  const levels = new Uint8Array(numbers.length * rows * columns);
  for (let n = 0, to = 0; n < numbers.length; n += 1) {
    const [top, left] = [Math.floor(n / across) * rows, (n % across) * columns];
    for (let row = 0; row < rows; row += 1) {
      let from = ((top + row) * image.width + left) * 4;
      for (let column = 0; column < columns; column += 1, to += 1, from += 4) levels[to] = pixels[from];
    }
  }
  return levels;
}

async function readBlock(block) {
  const names = Object.keys(block.layers);
  const read = await Promise.all(names.map((name) => readSheet(block.layers[name], block)));
  const layers = Object.fromEntries(names.map((name, index) => [name, read[index]]));
  if (layers.reconstruction) {
    // the absolute difference, twice as bright
    layers.residual = layers.image.map((level, index) => Math.min(255, 2 * Math.abs(level - layers.reconstruction[index])));
  }
  return { ...block, layers };
}

// A plane through a block: its size, the physical proportions, and how to take a layer's levels.
function planeOf(block, view, at) {
  const own = DIRECTIONS[block.plane];
  const sizes = [block.numbers.length, block.rows, block.columns];
  const mm = [block.extent_mm[2], block.extent_mm[0] / block.rows, block.extent_mm[1] / block.columns];
  const axes = VIEWS[view].map((wanted) => own.findIndex((has) => has === wanted || flipped(has) === wanted));
  const across = [0, 1, 2].find((axis) => !axes.includes(axis));
  const strides = [block.rows * block.columns, block.columns, 1];
  const [height, width] = axes.map((axis) => sizes[axis]);
  const [turnedDown, turnedRight] = axes.map((axis, k) => own[axis] !== VIEWS[view][k]);
  const take = (layer) => {
    const levels = new Uint8Array(width * height);
    for (let row = 0, to = 0; row < height; row += 1) {
      const r = turnedDown ? height - 1 - row : row;
      for (let column = 0; column < width; column += 1, to += 1) {
        const c = turnedRight ? width - 1 - column : column;
        levels[to] = layer[at[across] * strides[across] + r * strides[axes[0]] + c * strides[axes[1]]];
      }
    }
    return levels;
  };
  const place = ([x, y]) => { // from a place in the picture, 0 to 1, to slice, row and column
    const next = [...at];
    const row = Math.min(height - 1, Math.floor(y * height));
    const column = Math.min(width - 1, Math.floor(x * width));
    next[axes[0]] = turnedDown ? height - 1 - row : row;
    next[axes[1]] = turnedRight ? width - 1 - column : column;
    return next;
  };
  const cross = axes.map((axis, k) => {
    const part = (at[axis] + 0.5) / sizes[axis];
    return [turnedDown, turnedRight][k] ? 1 - part : part;
  });
  return { width, height, take, place, cross, ratio: (height * mm[axes[0]]) / (width * mm[axes[1]]) };
}

// layer: what lies below, in grey; over: "map", "mask" or nothing.
function paint(canvas, block, plane, look) {
  const scratch = el("canvas", { width: plane.width, height: plane.height });
  const context = scratch.getContext("2d");
  const picture = context.createImageData(plane.width, plane.height);
  const grey = plane.take(block.layers[look.layer]);
  const map = block.layers.anomaly_map && plane.take(block.layers.anomaly_map);
  const lesion = block.layers.lesion && plane.take(block.layers.lesion);
  const [low, high] = ["image", "reconstruction"].includes(look.layer) ? block.window : [0, 255];
  const limit = (look.threshold / block.map_top) * 255;
  for (let k = 0; k < grey.length; k += 1) {
    const level = Math.max(0, Math.min(255, ((grey[k] - low) / (high - low)) * 255));
    let [red, green, blue] = look.layer === "anomaly_map" ? look.colours[grey[k]] : [level, level, level];
    const shown = look.over === "map" ? Math.max(0, Math.min(1, (map[k] / 255 - 0.12) / 0.3)) * look.opacity
      : look.over === "mask" && map[k] > limit ? look.opacity : 0;
    if (shown) {
      const colour = look.over === "mask" ? MASK : look.colours[map[k]];
      red += (colour[0] - red) * shown; green += (colour[1] - green) * shown; blue += (colour[2] - blue) * shown;
    }
    picture.data.set([red, green, blue, 255], 4 * k);
  }
  context.putImageData(picture, 0, 0);
  const target = canvas.getContext("2d");
  target.imageSmoothingQuality = "high";
  target.drawImage(scratch, 0, 0, canvas.width, canvas.height);
  const size = [canvas.width / plane.width, canvas.height / plane.height];
  const thick = Math.max(1.25, canvas.width / 260);
  if (map && look.outline) outline(target, map, plane, limit, size, MASK, thick, []);
  if (lesion && look.lesion) outline(target, lesion, plane, 127, size, LESION, thick, [3 * thick, 2 * thick]);
  if (look.cross) crosshair(target, canvas, plane.cross);
}

const MASK = [255, 140, 26];
const LESION = [51, 214, 255];
const rgb = (colour) => `rgb(${colour.join(",")})`;

function crosshair(context, canvas, [y, x]) {
  context.strokeStyle = "rgba(255,255,255,.45)";
  context.setLineDash([]);
  context.lineWidth = Math.max(1, canvas.width / 400);
  context.beginPath();
  context.moveTo(x * canvas.width, 0); context.lineTo(x * canvas.width, canvas.height);
  context.moveTo(0, y * canvas.height); context.lineTo(canvas.width, y * canvas.height);
  context.stroke();
}

// Marching squares: where the levels cross the limit between the centres of neighbouring pixels.
function outline(context, levels, plane, limit, [sx, sy], colour, thick, dashes) {
  context.beginPath();
  for (const line of lines(levels, plane, limit)) {
    line.forEach(([x, y], k) => context[k ? "lineTo" : "moveTo"]((x + 0.5) * sx, (y + 0.5) * sy));
  }
  context.strokeStyle = rgb(colour);
  context.lineWidth = thick;
  context.lineJoin = "round";
  context.setLineDash(dashes);
  context.stroke();
}

// The crossings, joined to lines: pieces of their own would each begin with a dash.
function lines(levels, { width, height }, limit) {
  const at = (x, y) => (x < 0 || y < 0 || x >= width || y >= height ? 0 : levels[y * width + x]);
  const places = new Map();
  const next = new Map();
  const crossing = (x, y, isDown) => { // between a pixel and the one to its right, or below it
    const [a, b] = [at(x, y), isDown ? at(x, y + 1) : at(x + 1, y)];
    const part = (limit - a) / (b - a);
    const id = 2 * ((y + 1) * (width + 2) + x + 1) + (isDown ? 1 : 0);
    places.set(id, isDown ? [x, y + part] : [x + part, y]);
    return id;
  };
  for (let y = -1; y < height; y += 1) {
    for (let x = -1; x < width; x += 1) {
      const above = [at(x, y), at(x + 1, y), at(x + 1, y + 1), at(x, y + 1)].map((level) => level > limit);
      const edges = [[x, y, false], [x + 1, y, true], [x, y + 1, false], [x, y, true]];
      const crossed = edges.filter((edge, k) => above[k] !== above[(k + 1) % 4]).map((edge) => crossing(...edge));
      for (let k = 0; k < crossed.length; k += 2) {
        for (const [from, to] of [[crossed[k], crossed[k + 1]], [crossed[k + 1], crossed[k]]]) next.set(from, [...(next.get(from) || []), to]);
      }
    }
  }
  const found = [];
  for (const start of places.keys()) {
    let [id, line] = [start, []];
    while (id !== undefined && next.has(id)) {
      line.push(places.get(id));
      const ways = next.get(id);
      next.delete(id);
      id = ways.find((way) => next.has(way)) ?? (ways.includes(start) ? start : undefined);
    }
    if (line.length > 1) found.push([...line, ...(id === start ? [places.get(start)] : [])]);
  }
  return found;
}

// Size of a canvas for a plane of these proportions in a frame, in pixels of the screen.
function fit(canvas, frame, ratio, tallest) {
  const width = Math.min(frame, tallest / ratio);
  const dense = Math.min(2, window.devicePixelRatio || 1);
  canvas.width = Math.max(1, Math.round(width * dense));
  canvas.height = Math.max(1, Math.round(width * ratio * dense));
  canvas.style.width = `${Math.round(width)}px`;
  canvas.style.height = `${Math.round(width * ratio)}px`;
}
