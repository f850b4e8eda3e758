// The view "Runs" of the sidebar tab: the runs, and one of them in detail.
import { shortName } from './checkpoint_name.js'
import { h, section } from './elements.js'
import { checkpointMark, drawFindings, markLabel } from './findings.js'
import { lossChart, rateChart } from './chart.js'
import { createSamples } from './samples.js'
import { sideBySide } from './side_by_side.js'
import { formatDuration, formatNumber, text } from './texts.js'
import { compareButton } from './workbench/comparison.js'
import { button } from './workbench/parts.js'

const LISTENING = ['preparing', 'running', 'quiet']

/** actions: select(name), compare(name), ask(name, wish), use(lora), start(), goOn(run), trainOn(run, lora). Returns {element, showRuns, showRun, showError}. */
export function createRuns(actions) {
  const parts = ['runs', 'progress', 'buttons', 'findings', 'curves', 'both', 'samples', 'checkpoints'].map((name) => h('section', { class: `fdb-${name}` }))
  const [runs, progress, buttons, findings, curves, both, samples, checkpoints] = parts
  const notice = h('div', { class: 'fdb-notice', hidden: true })
  const element = h('div', { class: 'fdb-body' }, notice, parts)
  const draw = {
    runs: section(runs, (list, selected) => list.length > 1 ? list.map((run) => runRow(run, selected, actions)) : []),
    progress: section(progress, drawProgress),
    findings: section(findings, (run, checkpoints, found) => drawFindings(run, checkpoints, found, actions.use)),
    curves: section(curves, (...facts) => drawCurves(actions, ...facts)),
    both: section(both, (one, other) => other ? sideBySide(one, other) : []),
    buttons: section(buttons, (name, state, asked) => drawButtons(name, state, asked, actions)),
    samples: section(samples, createSamples()),
    checkpoints: section(checkpoints, (...facts) => drawCheckpoints(actions, ...facts))
  }
  const clear = () => parts.slice(1).forEach((part) => part.replaceChildren())

  function showRuns({ runs: list }, selected) {
    draw.runs(list.map(({ name, state, step, total }) => ({ name, state, step, total })), selected)
    element.classList.toggle('fdb-none', list.length === 0)
    notice.hidden = list.length > 0
    if (list.length === 0) {
      clear()
      notice.replaceChildren(h('i', { class: 'pi pi-chart-line' }), h('p', {}, text('training.none')),
        h('p', { class: 'fdb-small' }, text('training.how')),
        h('button', { class: 'fdb-button', type: 'button', onclick: actions.start }, h('i', { class: 'pi pi-play' }), text('bench.start.start')))
    }
  }

  /** other: the run whose curve is compared, or null; names: of all runs; isCompared: whether a job compares its checkpoints. */
  function showRun(run, other, names, isCompared) {
    draw.progress(run.name, run.state, run.step, run.total, run.epoch, run.epochs, run.average, run.learning_rate,
      run.seconds_per_picture, run.peak_gib, run.seconds_left, Math.round(run.age / (run.age > 90 ? 60 : 1e9)), run.broken_lines)
    draw.curves(run.name, run.curve, run.validation, run.checkpoints.map(({ step }) => step), run.total,
      other && { name: other.name, points: other.curve, validation: other.validation, total: other.total }, names.filter((name) => name !== run.name), keepOf(run))
    draw.both(...[run, other].map((each) => each && { name: each.name, settings: each.settings, samples: each.samples }))
    draw.buttons(run.name, run.state, run.asked)
    draw.findings(run.name, run.checkpoints, run.findings)
    draw.samples(run.name, run.samples)
    draw.checkpoints(run.name, run.checkpoints, run.findings, isCompared, !LISTENING.includes(run.state))
  }

  function showError(message) {
    notice.hidden = false
    const said = text('training.unreachable')
    notice.replaceChildren(...[h('i', { class: 'pi pi-exclamation-triangle' }), h('p', {}, said), message !== said && h('p', { class: 'fdb-small' }, message)].filter(Boolean))
  }
  return { element, showRuns, showRun, showError }
}

const part = (step, total) => total ? Math.min(1, step / total) : 0
const percent = (step, total) => total ? `${Math.floor(100 * part(step, total))} %` : ''

function runRow({ name, state, step, total }, selected, actions) {
  const properties = { class: 'fdb-run', type: 'button', 'aria-pressed': String(name === selected), onclick: () => actions.select(name) }
  return h('button', properties, stateDot(state), h('span', { class: 'fdb-name' }, name),
    h('span', { class: 'fdb-small' }, text(`state.${state}`)),
    h('span', { class: 'fdb-small fdb-percent' }, percent(step, total) || formatNumber(step)))
}

const stateDot = (state) => h('span', { class: `fdb-dot fdb-is-${state}`, title: text(`state.${state}`) })

function drawProgress(name, state, step, total, epoch, epochs, average, rate, pace, memory, left, _minutes, broken) {
  const shown = { style: `width:${100 * part(step, total)}%`, class: `fdb-fill fdb-is-${state}` }
  const ofEpochs = epochs ? `${formatNumber(epoch)} / ${formatNumber(epochs)}` : formatNumber(epoch)
  const facts = [
    ['epoch', ofEpochs], ['loss', formatNumber(average, 3)], ['rate', formatNumber(rate, 2)],
    ['pace', pace === null ? '–' : text('time.pace', { n: formatNumber(pace, 2) })],
    memory === null ? null : ['memory', `${formatNumber(memory, 3)} GiB`]
  ].filter(Boolean)
  const going = state === 'running' && left !== null && step < total
  return [
    h('div', { class: 'fdb-line' }, h('span', { class: 'fdb-name fdb-strong' }, stateDot(state), name),
      h('span', { class: 'fdb-state' }, text(`state.${state}`))),
    h('div', { class: 'fdb-bar', role: 'progressbar', 'aria-valuenow': step, 'aria-valuemax': total }, h('div', shown)),
    h('div', { class: 'fdb-line fdb-small' },
      h('span', {}, stepText(state, step, total)),
      h('span', {}, going ? text('training.left', { time: formatDuration(left) }) : percent(step, total))),
    h('dl', { class: 'fdb-facts' }, facts.map(([key, value]) => h('div', {}, h('dt', {}, text(`training.${key}`)), h('dd', {}, value)))),
    broken ? h('div', { class: 'fdb-small fdb-warning' }, text('training.broken', { n: formatNumber(broken) })) : null
  ]
}

function stepText(state, step, total) {
  const values = { step: formatNumber(step), total: formatNumber(total) }
  if (!total) return text('training.step', values)
  return text(step === 0 && state === 'running' ? 'training.prepared' : 'training.stepOf', values)
}

/** Where the loss chart marks the checkpoint to keep, and as what; null if its step is not known. */
function keepOf({ findings: { recommended } = {} }) {
  return recommended && recommended.step !== null ? { step: recommended.step, label: markLabel(recommended) } : null
}

function drawCurves(actions, name, points, validation, marks, total, other, others, keep) {
  const readout = h('span', { class: 'fdb-small' })
  const show = (point, counterpart) => readout.replaceChildren(...(point ? [
    text('training.step', { step: formatNumber(point[0]) }), ' · ', formatNumber(point[2] ?? point[1], 4),
    counterpart && h('span', { class: 'fdb-read-other' }, ` / ${formatNumber(counterpart[2], 4)}`), ' · ', formatNumber(point[3], 2)
  ].filter(Boolean) : []))
  const chart = lossChart(points, validation, marks, total, show, other, keep)
  const rates = rateChart(points, total, other)
  return [
    chart && h('h3', {}, text('training.loss'), readout), chart,
    chart && h('div', { class: 'fdb-legend' }, legend('average', other && name), other && legend('other', other.name), legend('raw'), validation.length > 0 && legend('validation'), marks.length > 0 && legend('mark')),
    chart && others.length > 0 && compareWith(others, other?.name, actions),
    rates && h('h3', {}, text('training.rate')), rates
  ]
}

const legend = (kind, label) => h('span', {}, h('i', { class: `fdb-key fdb-key-${kind}` }), label || text(`legend.${kind}`))

function compareWith(others, chosen, actions) {
  const choice = (value, label) => h('option', { value, selected: value === (chosen ?? '') }, label)
  return h('label', { class: 'fdb-compare fdb-small' }, text('training.compare'),
    h('select', { onchange: (event) => actions.compare(event.target.value || null) }, choice('', text('training.noRun')), others.map((name) => choice(name, name))))
}

function drawButtons(name, state, asked, actions) {
  if (!LISTENING.includes(state)) return []
  return ['save', 'stop'].map((wish) => {
    const waits = asked.includes(wish)
    const icon = waits ? 'pi-spin pi-spinner' : wish === 'save' ? 'pi-save' : 'pi-stop-circle'
    return h('button', { class: `fdb-button fdb-${wish}`, type: 'button', disabled: waits, title: text(`${wish}.tip`), onclick: () => actions.ask(name, wish) },
      h('i', { class: `pi ${icon}` }), text(waits ? `${wish}.asked` : `${wish}.label`))
  })
}

function drawCheckpoints(actions, run, list, found, isCompared, hasEnded) {
  if (!list.length) return []
  const row = ({ file, step, lora, with_state }) => h('li', { title: file },
    h('span', { class: 'fdb-name' }, shortName(run, file), with_state && h('i', { class: 'pi pi-history', title: text('training.resumable') }), checkpointMark(file, found)),
    h('span', { class: 'fdb-small' }, text('training.step', { step: formatNumber(step) })),
    h('button', { class: 'fdb-button fdb-use', type: 'button', disabled: !lora, title: text(lora ? 'training.useTip' : 'training.gone'), onclick: () => actions.use(lora) },
      text('training.use')),
    button('pi-forward', text('training.trainOn'), () => actions.trainOn(run, lora), { small: true, disabled: !lora }))
  return [h('h3', {}, text('training.checkpoints'), compareButton(run, list, isCompared)), h('ul', { class: 'fdb-list' }, list.map(row)),
    hasEnded && list.some(({ with_state }) => with_state) && button('pi-forward', text('training.goOn'), () => actions.goOn(run), { class: 'fdb-button fdb-go-on', title: text('training.goOnTip') })]
}
