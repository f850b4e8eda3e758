// The images that a run generated: all of a step, or those of one prompt at every step, side by side.
import { h } from './elements.js'
import { fetchSeries, sampleUrl } from './server.js'
import { formatNumber, text } from './texts.js'

const numberOf = (file) => file.match(/-(\d+)\.png$/)?.[1]

/** Returns draw(run, list), which remembers the prompt that is looked at while the list grows. */
export function createSamples() {
  let chosen = null // {run, number} of the prompt whose steps are side by side
  return function draw(run, list) {
    if (!list.length) return []
    const element = h('div')
    const showSteps = () => { chosen = null; element.replaceChildren(...steps(run, list, showSeries)) }
    const showSeries = async (number) => {
      chosen = { run, number }
      const { samples } = await fetchSeries(run, number)
      element.replaceChildren(...series(run, samples, showSteps))
    }
    if (chosen?.run === run) showSeries(chosen.number).catch(showSteps)
    else showSteps()
    return [element]
  }
}

function steps(run, list, showSeries) {
  const numbers = [...new Set(list.map(({ step }) => step))]
  const grid = h('div', { class: 'fdb-pictures' })
  const label = h('span', { class: 'fdb-small' })
  const older = button('pi-chevron-left', 'training.older', () => show(at + 1))
  const newer = button('pi-chevron-right', 'training.newer', () => show(at - 1))
  let at = 0
  function show(index) {
    at = index
    older.disabled = at === numbers.length - 1
    newer.disabled = at === 0
    label.textContent = text('training.step', { step: formatNumber(numbers[at]) })
    grid.replaceChildren(...list.filter(({ step }) => step === numbers[at]).map((sample) => {
      const all = button('pi-images', 'training.allSteps', (event) => {
        event.preventDefault() // it is inside a link
        showSeries(numberOf(sample.file))
      })
      return picture(run, sample, sample.prompt, numbers.length > 1 && all)
    }))
  }
  show(0)
  return [h('h3', {}, text('training.samples'), h('span', { class: 'fdb-stepper' }, older, label, newer)), grid]
}

function series(run, samples, showSteps) {
  const strip = samples.map((sample) => picture(run, sample, text('training.step', { step: formatNumber(sample.step) })))
  return [
    h('h3', {}, text('training.samples'), button('pi-arrow-left', 'training.oneStep', showSteps)),
    h('div', { class: 'fdb-small' }, samples.at(-1)?.prompt),
    h('div', { class: 'fdb-series' }, strip)
  ]
}

function picture(run, { file, prompt }, label, more) {
  const url = sampleUrl(run, file)
  return h('a', { href: url, target: '_blank', rel: 'noopener', title: prompt || file },
    h('img', { src: url, alt: prompt || file, loading: 'lazy' }), more, label && h('span', {}, label))
}

const button = (icon, key, onclick) => h('button', { class: 'fdb-icon', type: 'button', title: text(key), onclick }, h('i', { class: `pi ${icon}` }))
