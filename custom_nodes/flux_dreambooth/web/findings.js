// What is known about a run's checkpoints: which one to keep and why, the report, and the verdicts of the trainer's guard.
import { shortName, stepName } from './checkpoint_name.js'
import { h } from './elements.js'
import { reportUrl } from './server.js'
import { language, text } from './texts.js'

const ICONS = { too_high: 'pi-exclamation-triangle', too_low: 'pi-arrow-down', improving: 'pi-arrow-up-right', overfitting: 'pi-exclamation-triangle' }
const NOTHING = { recommended: null, verdicts: [], measured: {}, report: null } // of a server that was not restarted yet
const FIGURES = ['likeness', 'bleed', 'drift']

/** checkpoints: of the run, of which one may be used(lora). */
export function drawFindings(run, checkpoints, { recommended, verdicts, report } = NOTHING, use) {
  const link = report && reportLink(run, report)
  return [
    recommended && recommendation(run, checkpoints, recommended, report === 'current' && link, use),
    verdicts.length > 0 && h('h3', {}, text('findings.verdicts')),
    verdicts.length > 0 && h('ul', { class: 'fdb-verdicts' }, verdicts.map(verdict)),
    (!recommended || report !== 'current') && link
  ]
}

function recommendation(run, checkpoints, found, link, use) {
  const lora = checkpoints.find(({ file }) => file === found.file)?.lora
  const name = found.file ? shortName(run, found.file) : stepName(found.step)
  const useButton = h('button', { class: 'fdb-button', type: 'button', disabled: !lora, title: text(lora ? 'training.useTip' : 'training.gone'), onclick: () => use(lora) },
    h('i', { class: 'pi pi-bolt' }), text('training.use'))
  return h('div', { class: 'fdb-recommended' },
    h('p', {}, h('strong', {}, star(), text(found.by === 'so_far' ? 'findings.soFar' : 'findings.recommended', { name })), because(found)),
    h('p', { class: 'fdb-small' }, figuresOf(found.measured?.figures ?? {})),
    h('p', { class: 'fdb-small' }, reason(found)),
    found.newer > 0 && h('p', { class: 'fdb-small' }, text('findings.newer', { n: whole(found.newer) })),
    h('div', { class: 'fdb-buttons' }, found.file ? useButton : h('span', { class: 'fdb-small fdb-name' }, text('findings.noFile')), link))
}

function because({ measured, of }) {
  if (!measured) return null
  const { score, error } = measured
  const points = error === null ? whole(score, 1) : `${whole(score, 1)} ± ${whole(error, 1)}`
  return text(of === 1 ? 'findings.becauseOnly' : 'findings.because', { score: points, n: whole(of) })
}

function reason({ reason: known, close, next, text: english }) {
  if (!known) return english ? h('span', { lang: 'en' }, english) : null
  return text(`findings.reasons.${known}`, { names: close.map(named).join(', '), score: next === null ? '–' : whole(next, 1) })
}

/** The trainer names checkpoints after their steps, or after their files. */
function named(name) {
  const step = name.match(/^step (\d+)$/)
  return step ? stepName(+step[1]) : name
}

/** A checkpoint's figures and, at the one to keep, the mark; null where nothing is known. */
export function checkpointMark(file, { measured, recommended } = NOTHING) {
  const mark = recommended?.file === file && h('strong', { class: 'fdb-good' }, star(), markLabel(recommended))
  const line = figuresOf(measured[file]?.figures ?? {})
  return mark || line ? h('span', { class: 'fdb-figures fdb-small' }, mark, line) : null
}

/** What the checkpoint to keep is marked with. */
export const markLabel = ({ by }) => text(by === 'so_far' ? 'findings.markSoFar' : 'findings.mark')

const star = () => h('i', { class: 'pi pi-star-fill', 'aria-hidden': 'true' })

function figuresOf(figures) {
  if ('likeness' in figures) return listed(FIGURES.map((name) => text(`findings.${name}`, { n: whole(figures[name]) })))
  if (!('loss_on_images' in figures)) return null
  return listed([text('findings.lossOnImages', { n: signed(-figures.loss_on_images) }), text('findings.lossDrift', { n: signed(figures.loss_drift) })])
}

/** Side by side; a line may only break between two of them. */
const listed = (parts) => parts.map((part) => part.replaceAll(' ', '\u00a0')).join(' · ')

function verdict({ kind, step, holds, text: english, facts }) {
  const known = holds ? title(kind, facts) : ICONS[kind] && text('findings.noLonger', { what: text(`findings.kinds.${kind}`) })
  const details = holds && known ? [evidence(kind, step, facts), text(`findings.advice.${kind}`)].filter(Boolean) : []
  return h('li', { class: holds ? `fdb-is-${kind}` : 'fdb-ended' }, h('i', { class: `pi ${holds ? ICONS[kind] ?? 'pi-info-circle' : 'pi-check'}`, 'aria-hidden': 'true' }),
    h('div', {},
      h('div', { class: 'fdb-line' }, h('strong', known ? {} : { lang: 'en' }, known || english), h('span', { class: 'fdb-small' }, stepName(step))),
      details.length > 0 && h('div', { class: 'fdb-small' }, details.join(' '))))
}

/** What a verdict says, null if it lacks a number that belongs to it. */
function title(kind, facts) {
  if (!ICONS[kind]) return null
  const values = { since: whole(facts.since), n: whole(facts.more_steps) }
  if ((kind === 'improving' && facts.more_steps === undefined) || (kind === 'overfitting' && facts.since === undefined)) return null
  return text(`findings.titles.${kind}`, values)
}

function evidence(kind, step, { loss, loss_at_start: start, learned, last_third: last, held_out: heldOut, best, score }) {
  if (kind === 'too_high') return loss > 0 && start > 0 ? text('findings.evidence.raised', { times: whole(loss / start, 1) }) : text('findings.evidence.exploded')
  if (kind === 'too_low' && learned !== undefined) return text('findings.evidence.learned', { percent: whole(100 * Math.max(0, learned), 1), step: whole(step) })
  if (kind === 'improving' && last !== undefined) return text('findings.evidence.lastThird', { percent: whole(100 * last) })
  if (heldOut > 0 && best > 0) return text('findings.evidence.heldOut', { percent: whole(100 * (heldOut / best - 1), 1) })
  return score !== undefined && best !== undefined ? text('findings.evidence.score', { points: whole(best - score) }) : null
}

function reportLink(run, report) {
  return h('a', { class: 'fdb-button', href: reportUrl(run), target: '_blank', rel: 'noopener', title: text('findings.reportTip') },
    h('i', { class: 'pi pi-external-link', 'aria-hidden': 'true' }), text(report === 'current' ? 'findings.report' : 'findings.earlierReport'))
}

/** A number with at most so many digits after the point. */
function whole(value, digits = 0) {
  const rounded = Number((value ?? 0).toFixed(digits)) + 0 // no -0
  return rounded.toLocaleString(language(), { maximumFractionDigits: digits })
}

const signed = (value) => `${value > 0 ? '+' : ''}${whole(value, 1)}`
