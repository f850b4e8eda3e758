// Two runs next to each other: the settings that differ, and the newest samples of the prompts that both have.
import { h } from './elements.js'
import { sampleUrl } from './server.js'
import { formatNumber, text } from './texts.js'

const OWN = ['output_name', 'resume', 'overwrite'] // differ between any two runs

/** one, other: {name, settings, samples} of a run, as the server describes it. Returns elements. */
export function sideBySide(one, other) {
  return [settings(one, other), samples(one, other)].flat().filter(Boolean)
}

const shown = (value) => value === undefined ? text('training.usual') : typeof value === 'string' ? value : JSON.stringify(value)

function settings(one, other) {
  const names = [...new Set([one, other].flatMap((run) => Object.keys(run.settings)))].filter((name) => !OWN.includes(name)).sort()
  const rows = names.map((name) => [name, one.settings[name], other.settings[name]]).filter(([, mine, theirs]) => JSON.stringify(mine) !== JSON.stringify(theirs))
  const title = h('h3', {}, text('training.differences'))
  const unknown = [one, other].filter((run) => !Object.keys(run.settings).length)
  if (unknown.length) return [title, h('div', { class: 'fdb-small' }, text('training.settingsUnknown', { name: unknown[0].name }))]
  if (!rows.length) return [title, h('div', { class: 'fdb-small' }, text('training.sameSettings'))]
  const head = h('tr', {}, h('td'), [one, other].map(({ name }) => h('th', { scope: 'col' }, name)))
  return [title, h('table', { class: 'fdb-differences' }, h('thead', {}, head),
    h('tbody', {}, rows.map(([name, ...values]) => h('tr', {}, h('th', { scope: 'row' }, name), values.map((value) => h('td', {}, shown(value)))))))]
}

/** The newest sample of each prompt. */
function newest({ samples: list }) {
  const found = new Map()
  for (const sample of list) if (sample.prompt && !found.has(sample.prompt)) found.set(sample.prompt, sample)
  return found
}

function samples(one, other) {
  const [mine, theirs] = [newest(one), newest(other)]
  const prompts = [...mine.keys()].filter((prompt) => theirs.has(prompt))
  if (!prompts.length) return []
  return [h('h3', {}, text('training.sideBySide')), ...prompts.map((prompt) => h('div', { class: 'fdb-pair' },
    h('div', { class: 'fdb-small' }, prompt),
    h('div', { class: 'fdb-pictures' }, picture(one.name, mine.get(prompt)), picture(other.name, theirs.get(prompt)))))]
}

function picture(run, { file, step, prompt }) {
  const url = sampleUrl(run, file)
  const label = `${run} · ${text('training.step', { step: formatNumber(step) })}`
  return h('a', { href: url, target: '_blank', rel: 'noopener', title: label }, h('img', { src: url, alt: `${label}: ${prompt}`, loading: 'lazy' }), h('span', {}, label))
}
