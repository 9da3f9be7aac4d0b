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
  scale.bent = true;
  scale.ticks = (count) => roundTicks(scale, low, high, Math.abs(to - from) / count);
  return scale;
}

// The roundest numbers that lie so far apart on a bent scale: 0, then 1, 2 and 5 with zeros, large ones first; far from 0
// there are few of these, and multiples of them have to do.
function roundTicks(scale, low, high, apart) {
  const steps = roundSteps(high - low);
  const found = [];
  const take = (tick) => {
    if (tick >= low && tick <= high && found.every((other) => Math.abs(scale(other) - scale(tick)) >= apart)) found.push(tick);
  };
  [0, ...steps.flatMap((step) => [step, -step])].forEach(take);
  if (found.length < 4) steps.filter((step) => (high - low) / step < 2000).forEach((step) => multiples(step, low, high).forEach(take));
  return found.sort((a, b) => a - b);
}

// 5, 2 and 1 with zeros, from the width down, read from their digits: products would not be exact.
function roundSteps(width) {
  const top = Math.floor(Math.log10(width)) + 1;
  return [0, 1, 2, 3, 4].flatMap((down) => [5, 2, 1].map((digit) => Number(`${digit}e${top - down}`)));
}

function niceStep(width, count) {
  const raw = width / count;
  const power = 10 ** Math.floor(Math.log10(raw || 1));
  return power * [1, 2, 5, 10].find((step) => step * power >= raw);
}

const niceTicks = (low, high, count) => multiples(niceStep(high - low, count), low, high);

function multiples(step, low, high) {
  const found = [];
  for (let k = Math.ceil(low / step); k * step <= high; k += 1) found.push(Number((k * step).toPrecision(10)));
  return found;
}

const tickText = (value) => String(value).replace("-", MINUS);
