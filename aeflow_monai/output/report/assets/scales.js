// From numbers to pixels.

function linear(low, high, from, to) {
  const width = high - low || 1;
  const scale = (value) => from + ((value - low) / width) * (to - from);
  scale.invert = (place) => low + ((place - from) / (to - from)) * width;
  scale.ticks = (count) => niceTicks(low, high, count);
  return scale;
}

// Scores of a few cases can be many times those of the others: then large numbers lie closer.
function scoreScale(values, from, to) {
  const sorted = [...values].sort((a, b) => a - b);
  const at = (part) => sorted[Math.min(sorted.length - 1, Math.round(part * (sorted.length - 1)))];
  const [low, high] = [sorted[0], sorted[sorted.length - 1]];
  const margin = (high - low || 1) * 0.03;
  const middle = at(0.9) - at(0.1) || 1;
  if (high - low < 8 * middle) return linear(low - margin, high + margin, from, to);
  const centre = at(0.5);
  const bend = (value) => Math.asinh((value - centre) / middle);
  const outer = linear(bend(low) - 0.1, bend(high) + 0.1, from, to);
  const scale = (value) => outer(bend(value));
  scale.invert = (place) => centre + middle * Math.sinh(outer.invert(place));
  scale.ticks = (count) => {
    const step = 2 * niceStep(bend(high) - bend(low), count);
    const found = [];
    for (let place = bend(low); place <= bend(high); place += step) found.push(rounded(centre + middle * Math.sinh(place)));
    return [...new Set(found)];
  };
  return scale;
}

function niceStep(width, count) {
  const raw = width / count;
  const power = 10 ** Math.floor(Math.log10(raw || 1));
  return power * [1, 2, 5, 10].find((step) => step * power >= raw);
}

function niceTicks(low, high, count) {
  const step = niceStep(high - low, count);
  const found = [];
  for (let k = Math.ceil(low / step); k * step <= high; k += 1) found.push(Number((k * step).toPrecision(10)));
  return found;
}

const rounded = (value) => Number(value.toPrecision(2));
const tickText = (value) => String(value).replace("-", MINUS);
