// Loss and learning rate of a run as inline SVG.
import { svg } from './elements.js'
import { formatNumber, text } from './texts.js'

const WIDTH = 340
const LEFT = 54 // room for a label such as 9.8e−5
const RIGHT = 8
const TOP = 8
const BOTTOM = 24

/**
 * points: [step, loss, average, learning rate]; validation: [step, loss]; marks: steps of checkpoints; onHover(point, its
 * counterpart of the other run); other: {points, validation, total} of a run to compare with, or null; keep: {step,
 * label} of the recommended checkpoint, or null.
 */
export function lossChart(points, validation, marks, total, onHover, other = null, keep = null) {
  const height = 170
  const known = points.filter(([, loss, average]) => loss !== null || average !== null)
  if (known.length < 2) return null
  const others = (other?.points ?? []).filter(([, , average]) => average !== null)
  const validations = others.length > 1 ? other.validation : []
  const x = stepScale(points, total, other)
  const [least, most] = range([...[...known, ...others].flatMap(([, , average]) => average ?? []), ...[...validation, ...validations].map(([, loss]) => loss)],
    known.flatMap(([, loss]) => loss ?? []))
  const y = scale(least, most, height - BOTTOM, TOP)
  const inside = (value) => y(Math.min(most, Math.max(least, value)))
  const cursor = svg('line', { class: 'fdb-cursor', y1: TOP, y2: height - BOTTOM, visibility: 'hidden' })
  const picture = svg('svg', { class: 'fdb-chart', viewBox: `0 0 ${WIDTH} ${height}`, role: 'img', 'aria-label': text('training.loss') },
    ticks(least, most).map((value) => [
      svg('line', { class: 'fdb-grid', x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value) }),
      svg('text', { class: 'fdb-axis', x: LEFT - 5, y: y(value) + 4, 'text-anchor': 'end' }, formatNumber(value))
    ]).flat(),
    ticks(x.from, x.to).filter((value) => value > 0).map((value) =>
      svg('text', { class: 'fdb-axis', x: Math.min(x(value), WIDTH - RIGHT - 14), y: height - 3, 'text-anchor': 'middle' }, formatNumber(value))),
    marks.map((step) => svg('path', { class: 'fdb-mark', d: `M${x(step)} ${height - BOTTOM + 2} l-3.5 6 h7 z` },
      svg('title', {}, `${text('training.checkpoint')} · ${formatNumber(step)}`))),
    svg('path', { class: 'fdb-raw', d: path(known, (p) => x(p[0]), (p) => p[1], inside) }),
    others.length > 1 && svg('path', { class: 'fdb-other', d: path(others, (p) => x(p[0]), (p) => p[2], inside) }),
    svg('path', { class: 'fdb-average', d: path(known, (p) => x(p[0]), (p) => p[2], inside) }),
    [[validations, 'fdb-validation-other'], [validation, 'fdb-validation']].flatMap(([list, kind]) => list.map(([step, loss]) =>
      svg('circle', { class: kind, cx: x(step), cy: inside(loss), r: 2.6 },
        svg('title', {}, `${text('training.validation')} · ${formatNumber(step)} · ${formatNumber(loss, 4)}`)))),
    keep && keepMark(keep, x(keep.step), height - BOTTOM),
    cursor)
  picture.addEventListener('pointermove', (event) => {
    const box = picture.getBoundingClientRect()
    const step = x.back((event.clientX - box.left) / box.width * WIDTH)
    const point = nearest(known, step)
    for (const end of ['x1', 'x2']) cursor.setAttribute(end, x(point[0]))
    cursor.setAttribute('visibility', 'visible')
    onHover(point, others.length && point[0] <= others.at(-1)[0] ? nearest(others, point[0]) : null)
  })
  picture.addEventListener('pointerleave', () => {
    cursor.setAttribute('visibility', 'hidden')
    onHover(null)
  })
  return picture
}

/** A star on the axis, a dashed line over the chart's height, and the label at its top, on the side that has room. */
function keepMark({ step, label }, x, base) {
  const before = x > WIDTH / 2
  return svg('g', { class: 'fdb-keep' },
    svg('title', {}, `${label} · ${formatNumber(step)}`),
    svg('line', { x1: x, x2: x, y1: TOP, y2: base }),
    svg('path', { d: star(x, base + 5, 6) }),
    svg('text', { x: x + (before ? -5 : 5), y: TOP + 9, 'text-anchor': before ? 'end' : 'start' }, label))
}

function star(x, y, radius) {
  const corner = (index) => {
    const [angle, length] = [Math.PI * (index / 5 - 0.5), index % 2 ? radius * 0.45 : radius]
    return `${(x + length * Math.cos(angle)).toFixed(2)} ${(y + length * Math.sin(angle)).toFixed(2)}`
  }
  return `M${Array.from({ length: 10 }, (_, index) => corner(index)).join('L')}z`
}

/** The learning rates, over the same steps as in the loss chart above it. */
export function rateChart(points, total, other = null) {
  const height = 34
  const [known, others] = [points, other?.points ?? []].map((list) => list.filter((point) => point[3] !== null))
  if (known.length < 2) return null
  const x = stepScale(points, total, other)
  const most = Math.max(...[...known, ...others].map((point) => point[3])) || 1
  const y = scale(0, most * 1.08, height - 4, 4)
  return svg('svg', { class: 'fdb-chart', viewBox: `0 0 ${WIDTH} ${height}`, role: 'img', 'aria-label': text('training.rate') },
    svg('line', { class: 'fdb-grid', x1: LEFT, x2: WIDTH - RIGHT, y1: height - 4, y2: height - 4 }),
    svg('text', { class: 'fdb-axis', x: LEFT - 5, y: y(most) + 6, 'text-anchor': 'end' }, formatNumber(most, 2)),
    others.length > 1 && svg('path', { class: 'fdb-rate-other', d: path(others, (p) => x(p[0]), (p) => p[3], y) }),
    svg('path', { class: 'fdb-rate', d: path(known, (p) => x(p[0]), (p) => p[3], y) }))
}

/** All steps of a run, and of the one that it is compared with. */
function stepScale(points, total, other) {
  const ends = [total, points.at(-1)[0], other?.total, other?.points.at(-1)?.[0]]
  return scale(0, Math.max(...ends.map((step) => step ?? 0)), LEFT, WIDTH - RIGHT)
}

const nearest = (points, step) => points.reduce((best, each) => Math.abs(each[0] - step) < Math.abs(best[0] - step) ? each : best)

function scale(from, to, start, end) {
  const span = to - from || 1
  const map = (value) => +(start + (value - from) / span * (end - start)).toFixed(2)
  return Object.assign(map, { from, to, back: (place) => from + (place - start) / (end - start) * span })
}

function path(points, across, value, up) {
  const known = points.filter((point) => value(point) !== null)
  return known.map((point, index) => `${index ? 'L' : 'M'}${across(point)} ${up(value(point))}`).join('')
}

/** All of the smooth values, and of the noisy ones all but the outliers. */
function range(smooth, noisy) {
  const sorted = noisy.toSorted((a, b) => a - b)
  const at = (part) => sorted[Math.round(part * (sorted.length - 1))]
  const values = [...smooth, ...(sorted.length ? [at(0.03), at(0.97)] : [])]
  const [least, most] = [Math.min(...values), Math.max(...values)]
  const margin = (most - least || Math.abs(most) || 1) * 0.06
  return [least - margin, most + margin]
}

function ticks(least, most) {
  const rough = (most - least) / 4
  const power = 10 ** Math.floor(Math.log10(rough))
  const step = [1, 2, 5, 10].find((factor) => factor * power >= rough) * power
  const first = Math.ceil(least / step)
  return Array.from({ length: Math.floor(most / step) - first + 1 }, (_, index) => +((first + index) * step).toPrecision(6))
}
